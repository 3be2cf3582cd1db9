"""Pictures inside a page, and the axes that plots are drawn on."""

import base64
import io
from html import escape
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def axes_or_new(ax: "Axes | None", width: float = 5.0, height: float = 3.2) -> "Axes":
    """The axes to draw on: those given, or those of a new figure of this size in inches."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(width, height), layout="constrained")[1]


def picture(figure: "Figure", alt: str) -> str:
    """A figure as an HTML image that contains its own bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}">'


def strip(images: Float[np.ndarray, "n h w"]) -> str:
    """Grey images side by side, one pixel apart, as a PNG in base64; each is scaled from its 1st to its 99th
    percentile."""
    from matplotlib.image import imsave

    low, high = np.percentile(images, [1, 99], axis=(1, 2), keepdims=True)
    grey = np.clip((images - low) / np.maximum(high - low, 1e-9), 0, 1)
    spaced = np.pad(grey, ((0, 0), (0, 0), (0, 1)), constant_values=0.0)
    out = io.BytesIO()
    imsave(out, np.concatenate(list(spaced), axis=1)[:, :-1], cmap="gray", vmin=0, vmax=1, format="png")
    return base64.b64encode(out.getvalue()).decode()
