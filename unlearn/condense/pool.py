"""The real examples that a set is condensed from: scaled, on the device, sampled by class.

Every class has a row of example numbers, padded to the largest class; a draw is of fixed size, without
repetition, and examples that a small class does not have weigh zero.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from whence.cache import Entry, Examples
from whence.cache.errors import DataError


class Reals(NamedTuple):
    """What the compiled program sees: examples, and for every class its rows (padded with zeros) and their count."""

    x: Float[Array, "n ..."]
    rows: Int[Array, "c most"]
    counts: Int[Array, " c"]


LAYOUTS = ("vectors", "grey", "channels last", "channels first")


class Scaling(NamedTuple):
    """From the data's own units and layout to (x - mean) / spread with channels last, and back.

    mean, spread: over the last axis (channels of images, features of vectors).
    """

    mean: np.ndarray
    spread: np.ndarray
    layout: str

    @staticmethod
    def of(x: np.ndarray) -> "Scaling":
        """The scaling after which every channel or feature has mean 0 and spread 1; constant ones stay as they are.
        Raises DataError for what is neither vectors nor images."""
        layout = _layout(x)
        x = _channels_last(x, layout)
        axes = tuple(range(x.ndim - 1))
        mean, spread = x.mean(axes, dtype=np.float64), x.std(axes, dtype=np.float64)
        return Scaling(mean, np.where(spread > 1e-6 * max(float(spread.max()), 1e-30), spread, 1.0), layout)

    def apply(self, x: np.ndarray) -> Float[np.ndarray, "n ..."]:
        if _layout(x) != self.layout:
            raise DataError(
                f"Examples of shape {list(x.shape[1:])} ({_layout(x)}) where {self.layout} are expected.",
                "Give all data the same layout.",
            )
        return ((_channels_last(x, self.layout) - self.mean) / self.spread).astype(np.float32)

    def undo(self, x: Float[np.ndarray, "n ..."]) -> np.ndarray:
        x = (x * self.spread + self.mean).astype(np.float32)
        if self.layout == "grey":
            return x[..., 0]
        return np.ascontiguousarray(np.moveaxis(x, -1, 1)) if self.layout == "channels first" else x


@dataclass(frozen=True, eq=False)
class Pool:
    """Labelled examples ready to condense.

    x: scaled, [n h w channels] or [n d] float32; y: class numbers; classes: how many; ids: of the examples.

    >>> pool = Pool.of((np.random.default_rng(0).normal(size=(30, 5)), np.arange(30) % 3))
    >>> pool.x.shape, pool.classes
    ((30, 5), 3)
    """

    x: Float[np.ndarray, "n ..."]
    y: Int[np.ndarray, " n"]
    classes: int
    ids: Int[np.ndarray, " n"]
    scaling: Scaling
    fingerprint: str

    @staticmethod
    def of(data: Any, classes: int | None = None, scaling: Scaling | None = None) -> "Pool":
        """From Examples with columns x and y, or (x, y) arrays.

        x: [n d] vectors, [n h w] grey images, [n h w channels] or [n channels h w] images (channels: the axis that
            is 1 or 3 long; the last one when both are). uint8 or float.
        scaling: of another pool (test data take that of the training data); their own unless given.
        Raises DataError for NaN, for labels that are no class or outside 0..classes-1, and for a class without
        examples.
        """
        examples = Examples.of(data)
        for name in ("x", "y"):
            if not isinstance(examples.columns.get(name), np.ndarray):
                raise DataError(f"Condensation needs a column {name!r} with one row an example.", "Give x and y.")
        x, y = np.asarray(examples.columns["x"]), np.asarray(examples.columns["y"])
        _check(x, y, classes)
        classes = int(y.max()) + 1 if classes is None else classes
        scaling = Scaling.of(x) if scaling is None else scaling
        return Pool(scaling.apply(x), y.astype(np.int64), classes, examples.ids, scaling, examples.fingerprint)

    @staticmethod
    def of_activations(entry: Entry, y: Any, array: str | None = None, classes: int | None = None) -> "Pool":
        """From stored activations: one label for every row of the entry's (first) two-axis array."""
        wide = [name for name, spec in entry.arrays.items() if len(spec.shape) == 2]
        if array is None and not wide:
            raise DataError(f"{entry!r} has no array of vectors.", "Name the array that has them.")
        x = entry.read(array or wide[0]).astype(np.float32)
        return Pool.of((x, np.asarray(y)), classes)

    def __len__(self) -> int:
        return len(self.y)

    def __repr__(self) -> str:
        return f"Pool({len(self)} examples {list(self.shape)} of {self.classes} classes, {self.scaling.layout})"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one example."""
        return self.x.shape[1:]

    @property
    def labels(self) -> Float[np.ndarray, "n c"]:
        """One-hot distributions over classes."""
        return np.eye(self.classes, dtype=np.float32)[self.y]

    @property
    def counts(self) -> Int[np.ndarray, " c"]:
        return np.bincount(self.y, minlength=self.classes)

    def select(self, rows: Any) -> "Pool":
        """Some of the examples, in the same scaling. Raises DataError if a class has no example left."""
        rows = np.arange(len(self))[rows]
        chosen = Examples({"x": self.x[rows], "y": self.y[rows]}, self.ids[rows])
        _check(chosen.columns["x"], chosen.columns["y"], self.classes)  # type: ignore[arg-type]
        return Pool(self.x[rows], self.y[rows], self.classes, self.ids[rows], self.scaling, chosen.fingerprint)

    def without(self, ids: Any) -> "Pool":
        """All but the examples with these ids. Raises DataError for an id that is not here."""
        unknown = np.setdiff1d(np.atleast_1d(ids), self.ids)
        if len(unknown):
            raise DataError(f"No example has id {unknown[:3].tolist()}.", "Use the ids of this data set.")
        return self.select(~np.isin(self.ids, ids))

    def reals(self) -> Reals:
        rows = [np.flatnonzero(self.y == c) for c in range(self.classes)]
        padded = np.zeros((self.classes, max(len(r) for r in rows)), np.int32)
        for c, r in enumerate(rows):
            padded[c, : len(r)] = r
        return Reals(jnp.asarray(self.x), jnp.asarray(padded), jnp.asarray(self.counts.astype(np.int32)))


def draw(
    key: Array, rows: Int[Array, "c most"], counts: Int[Array, " c"], size: int
) -> tuple[Int[Array, "c b"], Float[Array, "c b"]]:
    """`size` rows of every class without repetition, and their weights: one over the number drawn, zero where the
    class has no more."""
    most = rows.shape[1]
    lots = jax.random.uniform(key, rows.shape)
    lots = jnp.where(jnp.arange(most) < counts[:, None], lots, -1.0)
    best, at = jax.lax.top_k(lots, min(size, most))
    drawn = jnp.minimum(counts, size)[:, None].astype(best.dtype)
    return jnp.take_along_axis(rows, at, 1), jnp.where(best >= 0, 1.0 / drawn, 0.0)


def _layout(x: np.ndarray) -> str:
    if x.ndim == 2:
        return "vectors"
    if x.ndim == 3:
        return "grey"
    if x.ndim != 4:
        raise DataError(f"Examples of shape {list(x.shape[1:])} are no images or vectors.", "Give [n d] or [n h w c].")
    return "channels first" if x.shape[-1] not in (1, 3) and x.shape[1] in (1, 3) else "channels last"


def _channels_last(x: np.ndarray, layout: str) -> np.ndarray:
    if layout == "grey":
        return x[..., None]
    return np.moveaxis(x, 1, -1) if layout == "channels first" else x


def _check(x: np.ndarray, y: np.ndarray, classes: int | None) -> None:
    if not len(y):
        raise DataError("There are no examples to condense.", "Give at least one per class.")
    if x.dtype.kind not in "uif":
        raise DataError(f"Examples of type {x.dtype} are no numbers.", "Give uint8 or float.")
    broken = ~np.isfinite(x.reshape(len(x), -1)).all(1) if x.dtype.kind == "f" else np.zeros(len(x), bool)
    if broken.any():
        raise DataError(
            f"{int(broken.sum())} of {len(x)} examples hold NaN or infinity, the first is row "
            f"{int(np.flatnonzero(broken)[0])}.",
            "Remove or repair them.",
        )
    if y.ndim != 1 or y.dtype.kind not in "ui":
        raise DataError(f"Labels of shape {list(y.shape)} and type {y.dtype} are no classes.", "Give one integer each.")
    top = int(y.max()) + 1 if classes is None else classes
    wrong = (y < 0) | (y >= top)
    if wrong.any():
        raise DataError(
            f"{int(wrong.sum())} labels lie outside 0 to {top - 1}, for instance {int(y[wrong][0])}.",
            "Number the classes from 0, and give `classes` when there are more.",
        )
    empty = np.flatnonzero(np.bincount(y, minlength=top) == 0)
    if len(empty):
        raise DataError(f"Class {int(empty[0])} has no example.", "Number the classes from 0 without gaps.")
