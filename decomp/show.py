"""Dictionaries for the eye: what one is, its atoms, where an atom fires in a text, how it grew and what it costs."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from whence.cache.display import Shown, axes_or_new, heat, table
from whence.cache.errors import DataError

from .activations import Activations
from .dictionary import SHOWN, Dictionary, atom_rows, quoted
from .features import Features

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes


def atoms(dictionary: Dictionary, found: Features | None = None, most: int = SHOWN) -> Shown:
    """A sortable table of atoms: the place and text each came from, its activation's norm, and what was unexplained
    then (share of the squared norm); with `features`, the densest atoms first, and how often each fires."""
    return table(*atom_rows(dictionary, None if found is None else found.density, most))


def atom_map(
    dictionary: Dictionary,
    activations: Any,
    document: int,
    decode: Callable[[Sequence[int]], str],
    atom: int | None = None,
    k: int | None = None,
) -> Shown:
    """A document's tokens shaded by how much of them one atom makes up (its coefficient, in units of the activations);
    without `atom`, by the share of the squared norm that the code leaves unexplained.

    decode: token ids -> text. Raises DataError where the activations hold nothing of that document.
    """
    acts = Activations.of(activations)
    dictionary.origin.check_same(acts.origin)
    here = np.flatnonzero(acts.document == document)
    if not len(here):
        raise DataError(f"No activation of document {document}.", "Name one of the documents that were observed.")
    batch = acts.select(here).whole()
    code = dictionary.encode(batch.x, k)
    tokens = [decode([int(t)]) for t in batch.token]
    if atom is None:
        left = np.asarray(code.residual) / np.maximum(np.asarray(code.energy), 1e-30)
        return heat(tokens, left, "of the squared norm unexplained", f"document {document}")
    values = np.where(np.asarray(code.indices) == atom, np.asarray(code.values), 0).sum(1)
    name = f"atom {atom}" if dictionary.text is None else f"atom {atom}: {quoted(dictionary.text[atom])}"
    return heat(tokens, values, "coefficient", name)


def plot_growth(dictionary: Dictionary, ax: "Axes | None" = None) -> "Axes":
    """Atoms against activations read, as the builder went. Returns the axes. Raises DataError for a dictionary whose
    builder kept no curve."""
    curve = np.asarray(dictionary.settings.get("curve", ()))
    if curve.ndim != 2:
        raise DataError("This dictionary has no growth curve.", "Build it with decomp.ITDA or decomp.Partition.")
    axes = axes_or_new(ax)
    axes.plot(curve[:, 0], curve[:, 1])
    axes.set(xlabel="activations read", ylabel="atoms", ylim=(0, None))
    return axes


def plot_curve(curve: "xr.Dataset", metric: str = "fvu", label: str = "", ax: "Axes | None" = None) -> "Axes":
    """One metric of `evaluate` at several k or of `training_curve` (its first axis across) with its 95 % interval.
    Returns the axes."""
    axes, found = axes_or_new(ax), curve.sel(metric=metric)
    across = str(found["value"].dims[0])
    x = found["tokens"] if across == "mark" else found[across]
    axes.plot(x, found["value"], marker="o", markersize=3, label=label or metric)
    axes.fill_between(x, found["low"], found["high"], alpha=0.2)
    names = {"k": "steps k", "mark": "tokens seen"}
    axes.set(xlabel=names.get(across, across), ylabel=METRICS.get(metric, metric))
    if label:
        axes.legend(frameon=False)
    return axes


METRICS = {"fvu": "variance unexplained, share", "cosine_error": "1 − cosine", "l0": "atoms a token"}
