"""The whole story on embedded data, to an HTML report."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Demo:
    """The whole story on embedded data, in one HTML file: which passages of the Python language reference taught a
    small transformer what it says, which atoms of a dictionary carried that, and, on handwritten digits, what
    forgetting and condensing come to.

    Some minutes on two cores the first time; the second time everything comes from the cache. No network is used.

    Example:

        whence demo --out out/report.html
    """

    out: Path = Path("out/report.html")
    """Where the report goes."""
    store: str | None = None
    """The cache: a folder; $WHENCE_CACHE or your cache folder by default."""
    quiet: bool = False
    """No progress bars."""

    def run(self) -> None:
        from whence.cache import Store
        from whence.demo import demo

        print(demo(Store(self.store), self.out, quiet=self.quiet))


COMMANDS = {"demo": Demo}
