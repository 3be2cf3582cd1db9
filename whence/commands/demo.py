"""All packages on embedded data, in one HTML report."""

from dataclasses import dataclass
from pathlib import Path

from whence.options import Device, Page

from ._shared import Stored


@dataclass(frozen=True)
class Demo(Stored):
    """Run all packages on embedded data and write one HTML report: which passages of the Python language reference
    raised the probability of what a small transformer writes, which atoms of a dictionary carried that influence,
    and, on handwritten digits, the results of unlearning and of condensation.

    The first run takes some minutes on two cores; the next one reads everything from the store. No network is used.

    Example:

        whence demo --out out/report.html
    """

    out: Page = Path("out/report.html")
    """The report to write."""
    device: Device = "cpu"
    """The device of the models: cpu, cuda, cuda:1."""
    quiet: bool = False
    """Show no progress bars."""

    def run(self) -> None:
        from whence.demo import demo

        print(demo(self.open_store(), self.out, device=self.device, quiet=self.quiet))


COMMANDS = {"demo": Demo}
