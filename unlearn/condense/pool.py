"""The real examples that a set is condensed from: scaled, on the device, sampled by class.

Every class has a row of example numbers, padded to the largest class; a draw is of fixed size, without
repetition, and examples that a small class does not have weigh zero.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from whence.cache import Entry, Examples
from whence.cache.errors import DataError, UsageError
from whence.cache.jobs.progress import say


class Reals(NamedTuple):
    """What the compiled program sees: examples, for every class its rows (padded with zeros) and their count, and what
    the method prepared (the parameters of experts)."""

    x: Float[Array, "n ..."]
    rows: Int[Array, "c most"]
    counts: Int[Array, " c"]
    prepared: Any = None


LAYOUTS = ("vectors", "grey", "nhwc", "nchw")
AXES = {"vectors": 2, "grey": 3, "nhwc": 4, "nchw": 4}


class Scaling(NamedTuple):
    """From the data's own units and layout to (x - mean) / spread with channels last, and back.

    mean, spread: over the last axis (channels of images, features of vectors). layout: one of `LAYOUTS`.
    """

    mean: np.ndarray
    spread: np.ndarray
    layout: str

    @staticmethod
    def of(x: np.ndarray, layout: str | None = None) -> "Scaling":
        """The scaling after which every channel or feature has mean 0 and spread 1; constant ones keep their values.
        Raises DataError for what is neither vectors nor images, and for images whose layout is unclear."""
        layout = _layout(x, layout)
        x = _channels_last(x, layout)
        axes = tuple(range(x.ndim - 1))
        mean, spread = x.mean(axes, dtype=np.float64), x.std(axes, dtype=np.float64)
        return Scaling(mean, np.where(spread > 1e-6 * max(float(spread.max()), 1e-30), spread, 1.0), layout)

    def apply(self, x: np.ndarray) -> Float[np.ndarray, "n ..."]:
        if x.ndim != AXES[self.layout] or _channels_last(x, self.layout).shape[-1] != np.size(self.mean):
            raise DataError(
                f"Examples of shape {list(x.shape[1:])} where {self.layout} of {np.size(self.mean)} channels or "
                "features are expected.",
                "Give all data the same layout.",
            )
        return ((_channels_last(x, self.layout) - self.mean) / self.spread).astype(np.float32)

    def undo(self, x: Float[np.ndarray, "n ..."]) -> np.ndarray:
        x = (x * self.spread + self.mean).astype(np.float32)
        if self.layout == "grey":
            return x[..., 0]
        return np.ascontiguousarray(np.moveaxis(x, -1, 1)) if self.layout == "nchw" else x


@dataclass(frozen=True, eq=False)
class Pool:
    """Labelled examples ready to condense.

    x: scaled, [n h w channels] or [n d] float32; y: class numbers; classes: how many; ids: of the examples; removed:
    ids of examples that were left out (`without`).

    >>> pool = Pool.of((np.random.default_rng(0).normal(size=(30, 5)), np.arange(30) % 3))
    >>> pool.x.shape, pool.classes
    ((30, 5), 3)
    """

    x: Float[np.ndarray, "n ..."]
    y: Int[np.ndarray, " n"]
    classes: int
    ids: Shaped[np.ndarray, " n"]
    scaling: Scaling
    fingerprint: str
    removed: tuple[Any, ...] = ()

    @staticmethod
    def of(
        data: Any, classes: int | None = None, scaling: Scaling | None = None, *, layout: str | None = None
    ) -> "Pool":
        """From Examples with columns x and y, or (x, y) arrays.

        Args:
            data: x is [n d] vectors, [n h w] grey images, or [n h w channels] or [n channels h w] images, of numbers;
                y is one class number per example.
            classes: how many there are. If it is given, a class may lack examples (in test data, for instance).
            scaling: of another pool (test data take that of the training data); their own unless given.
            layout: "nhwc" or "nchw", where the channels are. If it is not given, the axis that is 1 or 3 long is
                taken, and a line says so.

        Raises DataError for NaN, for labels that are no class or outside 0..classes-1, for a class without examples
        if `classes` is not given, and for images in which both or neither of the axes can be the channels.
        """
        examples = Examples.of(data)
        for name in ("x", "y"):
            if not isinstance(examples.columns.get(name), np.ndarray):
                raise DataError(f"Condensation needs a column {name!r} with one row an example.", "Give x and y.")
        x = _numbers(np.asarray(examples.columns["x"]), examples.ids)
        y = _class_numbers(np.asarray(examples.columns["y"]), examples.ids, classes)
        if scaling is None:
            scaling = Scaling.of(x, layout)
            if layout is None and x.ndim > 2:
                say(f"Images of shape {list(x.shape)} are taken as {scaling.layout}.")
        elif layout not in (None, scaling.layout):
            raise DataError(f"Layout {layout!r} with a scaling for {scaling.layout}.", "Give the data in that layout.")
        classes = int(y.max()) + 1 if classes is None else classes
        return Pool(scaling.apply(x), y, classes, examples.ids, scaling, examples.fingerprint)

    @staticmethod
    def of_activations(entry: Entry, y: Any, *, array: str | None = None, classes: int | None = None) -> "Pool":
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
        """The examples at these row numbers (or at which a mask is true), in the same scaling. Raises DataError if
        none is left."""
        return self._of(self._examples.select(rows))

    def without(self, ids: Any) -> "Pool":
        """All but the examples with these ids. Raises DataError for an id that is not here."""
        kept = self._of(self._examples.without(ids))
        return replace(kept, removed=(*self.removed, *self.ids[~np.isin(self.ids, kept.ids)].tolist()))

    @property
    def _examples(self) -> Examples:
        return Examples({"x": self.x, "y": self.y}, self.ids)

    def _of(self, kept: Examples) -> "Pool":
        if not len(kept):
            raise DataError("No example is left.", "Keep at least one.")
        x, y = (np.asarray(kept.columns[name]) for name in "xy")
        return replace(self, x=x, y=y, ids=kept.ids, fingerprint=kept.fingerprint)

    def check(self, per_class: int) -> None:
        """Raises DataError if a class has fewer examples than this."""
        few = int(self.counts.argmin())
        if self.counts[few] < per_class:
            raise DataError(
                f"{per_class} examples per class are wanted, and class {few} has {self.counts[few]}.",
                "Use fewer, or leave that class out.",
            )

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


def _layout(x: np.ndarray, layout: str | None) -> str:
    """Which layout the examples are in. Where both or neither of the axes can be the channels, it must be given."""
    if layout not in (None, "nhwc", "nchw"):
        raise UsageError(f"{layout!r} is no layout.", 'Use layout="nhwc" or "nchw".')
    if x.ndim in (2, 3) and layout is None:
        return "vectors" if x.ndim == 2 else "grey"
    if x.ndim != 4:
        raise DataError(
            f"Examples of shape {list(x.shape[1:])} are no images or vectors"
            + (f" in layout {layout}." if layout else "."),
            "Give [n d], [n h w], [n h w c] or [n c h w]; a layout only for the last two.",
        )
    first, last = (x.shape[axis] in (1, 3) for axis in (1, 3))
    if layout is None and first == last:
        raise DataError(
            f"Images of shape {list(x.shape)} may have their channels in the second or in the last axis.",
            'Give layout="nchw" (channels second) or layout="nhwc" (channels last).',
        )
    return layout or ("nchw" if first else "nhwc")


def _channels_last(x: np.ndarray, layout: str) -> np.ndarray:
    if layout == "grey":
        return x[..., None]
    return np.moveaxis(x, 1, -1) if layout == "nchw" else x


def _numbers(x: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The examples. Raises DataError if there are none, if they are no numbers, or if some are not finite."""
    if not x.size:
        raise DataError(f"Data of shape {list(x.shape)} have no examples to condense.", "Give at least one per class.")
    if x.dtype.kind not in "uifb":
        raise DataError(f"Examples of type {x.dtype} are no numbers.", "Give uint8 or float.")
    broken = ~np.isfinite(x).reshape(len(x), -1).all(1)
    if broken.any():
        raise DataError(
            f"{int(broken.sum())} of {len(x)} examples have NaN or infinity, for instance those with ids "
            f"{ids[broken][:3].tolist()}.",
            "Remove or repair them.",
        )
    return x


def _class_numbers(y: np.ndarray, ids: np.ndarray, classes: int | None) -> Int[np.ndarray, " n"]:
    """The labels as int64. Raises DataError for labels that are not 0 to `classes` - 1, or have gaps if it is None."""
    if y.ndim != 1 or y.dtype.kind not in "uib":
        cure = "Use y.argmax(1) of one-hot rows, y[:, 0] of a column, y.astype(int) of whole numbers in floats."
        raise DataError(f"Labels of shape {list(y.shape)} and type {y.dtype} are no classes.", cure)
    found = np.unique(y)
    wrong = y < 0 if classes is None else (y < 0) | (y >= classes)
    if wrong.any():
        where = "below 0" if classes is None else f"outside 0 to {classes - 1}"
        raise DataError(
            f"{int(wrong.sum())} labels lie {where}, for instance {y[wrong][:3].tolist()} of the examples with ids "
            f"{ids[wrong][:3].tolist()}.",
            "Number the classes from 0, and give `classes` when there are more.",
        )
    gaps = np.flatnonzero(found != np.arange(len(found)))
    if classes is None and len(gaps):
        raise DataError(
            f"Class {int(gaps[0])} has no example, and the largest label is {found[-1]}.",
            "Number the classes from 0 without gaps, or give `classes`, as for test data that lack one.",
        )
    return y.astype(np.int64)
