"""Pages need nothing else, follow the theme, and escape everything that is not HTML already."""

import pytest

from tests.pages import HOSTILE, Tags, harmless
from whence.cache import ResourceError
from whence.cache.display import Shown, axes_or_new, heat, page, picture, render, strip, table, write_page


def test_a_title_is_escaped_and_parts_are_html() -> None:
    harmless(page(HOSTILE, "<p>ours</p>"))
    assert "<p>ours</p>" in page("T", "<p>ours</p>", Shown("<b>x</b>", "x"))


def test_a_policy_forbids_what_a_page_does_not_need() -> None:
    assert "default-src 'none'" in page("T")
    assert "script-src" not in render("page.html", title="T", scripts=False, parts=[])
    assert not Tags(page("T")).loaded


def test_pages_and_pictures(tmp_path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1, 1))
    axes = figure.subplots()
    assert axes_or_new(axes) is axes
    where = write_page(page("T", picture(figure, '"quoted"')), tmp_path / "a" / "b.html")
    assert "color-scheme: light dark" in where.read_text()
    assert (heat(["a"], [1.0], "nats") + table(["x"], [[1]])).save(tmp_path / "c.html").exists()
    with pytest.raises(ResourceError, match="cannot be written"):
        write_page("", tmp_path)


def test_a_strip_of_images_is_a_png() -> None:
    import base64

    import numpy as np

    assert base64.b64decode(strip(np.arange(32.0).reshape(2, 4, 4)))[:4] == b"\x89PNG"
