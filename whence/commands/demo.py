"""The whole story on embedded data, to an HTML report."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Demo:
    """Train a small transformer on the Python language reference and report which passages taught it what it says.

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
        from cache import Store
        from whence.demo import demo

        print(demo(Store(self.store), self.out, quiet=self.quiet))


COMMANDS = {"demo": Demo}
