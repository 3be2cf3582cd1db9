"""Self-contained HTML pages: one template, one style, and what a notebook shows of an object.

    page("Unlearning", "<h2>Digits</h2>", table(["method", "KLoM"], rows)).save("out/unlearning.html")

A page loads nothing from anywhere, follows the reader's light or dark theme, and escapes every text that is not HTML
already (a `Shown`, or a string that the caller marks as HTML).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ResourceError


@dataclass(frozen=True)
class Shown:
    """Something to look at: `html` in a notebook or on a page, `text` when it is printed."""

    html: str
    text: str

    def __add__(self, other: "Shown") -> "Shown":
        return Shown(self.html + other.html, f"{self.text}\n\n{other.text}")

    def __repr__(self) -> str:
        return self.text

    def __html__(self) -> str:
        """Tells a template that this is HTML already."""
        return self.html

    def _repr_html_(self) -> str:
        return self.html

    def save(self, path: str | Path, title: str = "Whence") -> Path:
        """Write it as a page of its own. Raises ResourceError when the file cannot be written."""
        return write_page(page(title, self), path)


def page(title: str, *parts: "str | Shown") -> str:
    """A whole HTML document of these parts, each of them HTML already."""
    return render("page.html", title=title, scripts=True, parts=[getattr(part, "html", part) for part in parts])


def render(template: str, packages: Sequence[str] = (), /, **values: Any) -> str:
    """A template's HTML.

    Args:
        template: file name of a template; it may extend `page.html` and set its blocks.
        packages: import names of the packages whose `templates` folder is searched before this package's own.
        values: what the template names. Every text is escaped; a `Shown` is inserted as it is.
    """
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=ChoiceLoader([PackageLoader(name) for name in (*packages, "whence.cache.display")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"signed": signed, "percent": lambda share: f"{100 * share:.0f} %"}
    return environment.get_template(template).render(**values)


def signed(value: float) -> str:
    """A number with its sign, three significant digits.

    >>> signed(-12.3456), signed(1.234e-5), signed(0)
    ('−12.3', '+1.23e−5', '0')
    """
    if value == 0:
        return "0"
    size = f"{abs(value):#.3g}" if abs(value) >= 1e-3 else f"{abs(value):.2e}".replace("e-0", "e−")
    return ("+" if value > 0 else "−") + size


def write_page(html: str, path: str | Path) -> Path:
    """Write a page and return its path. Raises ResourceError when the file cannot be written."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(html, "utf-8")
    except OSError as error:
        raise ResourceError(f"{path} cannot be written ({error.strerror}).", "Give another path.") from error
    return path
