"""A condensed set: what was synthesised, from what, and how; its pictures, its page, and its files (npz or
safetensors, with a card beside)."""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int, Shaped

from whence.cache import Examples
from whence.cache.display import Shown, axes_or_new, facts, page, picture, table, write_page
from whence.cache.errors import CorruptEntry, DataError, NewerFormat, UsageError

from .networks import Network
from .pool import LAYOUTS, Pool, Scaling
from .provenance import contributions
from .training import Training

if TYPE_CHECKING:
    import xarray
    from matplotlib.axes import Axes

FORMAT = 1
SUFFIXES = (".npz", ".safetensors")
MOST_COLUMNS = 10
FORMERLY = {"channels last": "nhwc", "channels first": "nchw"}  # layouts in cards of earlier versions


@dataclass(frozen=True, eq=False)
class Condensed:
    """k synthetic examples per class, in class order.

    x: scaled, [n h w channels] or [n d]; labels: [n c] distributions; y: their classes. scaling: back to the data's own
    units. losses: matching loss of every outer step. init_ids: ids of the examples it started from, -1 for none.
    about: the card: method, settings, fingerprint of the data, seed, and what was measured (see `measured`).
    """

    x: Float[np.ndarray, "n ..."]
    labels: Float[np.ndarray, "n c"]
    scaling: Scaling
    losses: Float[np.ndarray, " outer"]
    init_ids: Shaped[np.ndarray, " n"]
    about: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        method = self.about.get("method", "other method")
        return f"Condensed({len(self)} examples {list(self.x.shape[1:])} of {self.labels.shape[1]} classes, {method})"

    def _repr_html_(self) -> str:
        return self._picture() + self._card().html

    @cached_property
    def y(self) -> Int[np.ndarray, " n"]:
        """Class of each example, by its place (learned labels may lean elsewhere)."""
        classes = self.labels.shape[1]
        return np.repeat(np.arange(classes), len(self) // classes)

    @property
    def ids(self) -> Int[np.ndarray, " n"]:
        """Of the synthetic examples: -1, -2, ..."""
        return -1 - np.arange(len(self), dtype=np.int64)

    @property
    def examples(self) -> Examples:
        """In the data's own units and layout, with negative ids, for use wherever real examples are: as a retain
        set, as a memory. Soft labels are in the column `labels`, when they were learned."""
        columns = {"x": self.scaling.undo(self.x), "y": self.y}
        if self.about.get("settings", {}).get("soft_labels"):
            columns["labels"] = self.labels
        return Examples(columns, self.ids)

    def measured(self, **figures: Any) -> "Condensed":
        """The same set with these figures on its card."""
        return replace(self, about={**self.about, "measured": {**self.about.get("measured", {}), **figures}})

    def contributions(
        self,
        pool: Pool,
        network: Network,
        *,
        contrast: bool = True,
        networks: int = 8,
        training: Training | None = None,
        seed: int = 0,
    ) -> "xarray.DataArray":
        """Contribution of every real example to the alignment of every synthetic one, [synthetic, real] by ids, in
        units of the sum of cosines over outputs; all of them add up to that sum.

        Args:
            pool: the real examples.
            network: what gradients are taken of.
            contrast: as DCC compares (all classes in one gradient), else as DC (within the class; other pairs are 0).
            networks: initialisations to average over.
            training: of the networks on the synthetic set before gradients are taken (10 epochs at 0.01).
            seed: of the networks.
        """
        import xarray as xr

        given = (self.x, self.labels, self.y)
        return xr.DataArray(
            contributions(given, pool, network, contrast=contrast, networks=networks, training=training, seed=seed),
            dims=("synthetic", "real"),
            coords={
                "synthetic": self.ids, "real": pool.ids,
                "synthetic_class": ("synthetic", self.y), "real_class": ("real", pool.y),
            },
            name="contribution",
            attrs={"unit": "cosines of output gradients", "contrast": int(contrast), "networks": networks},
        )  # fmt: skip

    def grid(self, columns: int = MOST_COLUMNS) -> np.ndarray:
        """Images side by side, one row per class, values 0 to 1, [height width 3]: values three standard deviations
        from the data's mean or farther are black or white. Vectors become a row of one image, one line per example."""
        x = np.clip(self.x / 6 + 0.5, 0, 1)
        if x.ndim == 2:
            return np.repeat(x[..., None], 3, -1)
        x = x.reshape(self.labels.shape[1], -1, *x.shape[1:])[:, :columns]
        x = np.pad(x, ((0, 0), (0, 0), (0, 1), (0, 1), (0, 0)), constant_values=1.0)
        rows, count, h, w, channels = x.shape
        tiled = x.transpose(0, 2, 1, 3, 4).reshape(rows * h, count * w, channels)
        return np.repeat(tiled, 3, -1) if channels == 1 else tiled[..., :3] if channels >= 3 else tiled[..., [0, 0, 0]]

    def plot_examples(self, ax: "Axes | None" = None) -> "Axes":
        """The examples as a picture (`grid`). Returns the axes."""
        axes = axes_or_new(ax, 4.0, 4.0)
        axes.imshow(self.grid(), interpolation="nearest", aspect="auto" if self.x.ndim == 2 else "equal")
        axes.set(xticks=[], yticks=[], title=f"{len(self)} examples, one row per class")
        return axes

    def plot_losses(self, ax: "Axes | None" = None) -> "Axes":
        """Matching loss (sum over classes and layers of 1 - cosine, no unit) of every outer step. Returns the axes."""
        axes = axes_or_new(ax)
        axes.plot(np.arange(1, len(self.losses) + 1), self.losses, linewidth=1)
        axes.set(xlabel="outer step", ylabel="matching loss", title=str(self.about.get("method", "")))
        return axes

    def report(self, path: str | Path, title: str = "A condensed set") -> Path:
        """Write one HTML page: the examples and the training curve, the card, and a table of the examples' ids.
        Returns its path. Raises ResourceError if it cannot be written."""
        started = [str(i) if i != -1 else "none" for i in self.init_ids.tolist()]
        rows = list(zip(map(str, self.ids), self.y.tolist(), started))
        examples = table(("id", "class", "started from the example with id"), rows)
        parts = (self._picture(), "<h2>Card</h2>", self._card(), "<h2>Examples</h2>", examples)
        return write_page(page(title, *parts), path)

    def _picture(self) -> str:
        from matplotlib.figure import Figure

        whole: Figure = Figure(figsize=(8, 4), layout="constrained")
        left, right = whole.subplots(1, 2)
        self.plot_examples(left)
        self.plot_losses(right)
        return picture(whole, "the examples and the training curve")

    def _card(self) -> Shown:
        """What the set is, how it was computed, and what was measured."""
        pairs = [(name, value) for name, value in self.about.items() if name != "settings"]
        pairs += list(dict(self.about.get("settings", {})).items())
        return facts(repr(self), [(str(name), _text(value)) for name, value in pairs])

    def save(self, path: str | Path) -> Path:
        """Write arrays to `path` (.npz or .safetensors) and the card beside it (.json). Returns the path."""
        path = checked_path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays = {"x": self.x, "labels": self.labels, "losses": self.losses}
        arrays |= {name: np.asarray(getattr(self.scaling, name), np.float64) for name in ("mean", "spread")}
        card = {"format": FORMAT, "kind": "condensed", "layout": self.scaling.layout, **self.about}
        if self.init_ids.dtype.kind in "iu":
            arrays["init_ids"] = self.init_ids
        else:  # text, which safetensors cannot store
            card["init_ids"] = self.init_ids.tolist()
        arrays = {name: np.ascontiguousarray(a) for name, a in arrays.items()}
        if path.suffix == ".npz":
            np.savez_compressed(path, allow_pickle=False, **arrays)
        else:
            from safetensors.numpy import save_file

            save_file(arrays, path)
        card_path(path).write_text(json.dumps(card, indent=2, default=_plain) + "\n")
        return path

    @staticmethod
    def load(path: str | Path) -> "Condensed":
        """Read what `save` wrote. Raises DataError if a file is missing, CorruptEntry if one is damaged,
        NewerFormat for a later version's."""
        path = checked_path(path)
        for needed in (path, card_path(path)):
            if not needed.exists():
                raise DataError(
                    f"There is no file {needed}.", "Give the .npz or .safetensors file, its card beside it."
                )
        try:
            card = json.loads(card_path(path).read_text())
            arrays = _read(path)
            if int(card.pop("format")) > FORMAT:
                raise NewerFormat(f"{path} was written by a later version of Whence.", "Update Whence.")
            layout = card.pop("layout")
            card.pop("kind")
            layout = FORMERLY.get(layout, layout)
            if layout not in LAYOUTS:
                raise ValueError(f"layout {layout!r}")
            scaling = Scaling(arrays["mean"], arrays["spread"], layout)
            if len(arrays["x"]) != len(arrays["labels"]) or not np.isfinite(arrays["x"]).all():
                raise ValueError("the arrays do not fit each other")
            init_ids = np.asarray(card.pop("init_ids")) if "init_ids" in card else arrays["init_ids"]
            return Condensed(arrays["x"], arrays["labels"], scaling, arrays["losses"], init_ids, card)
        except NewerFormat:
            raise
        except Exception as error:
            raise CorruptEntry(f"{path} or its card cannot be read: {error}.", "Condense again.") from error


def card_path(path: Path) -> Path:
    return path.with_suffix(".json")


def _read(path: Path) -> dict[str, np.ndarray]:
    if path.suffix == ".npz":
        with np.load(io.BytesIO(path.read_bytes())) as file:
            return dict(file)
    from safetensors.numpy import load_file

    return load_file(path)


def checked_path(path: str | Path) -> Path:
    """The path of a condensed set. Raises UsageError if its ending names no format."""
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{path.name!r} has no ending that names its format.", f"End it in {' or '.join(SUFFIXES)}.")
    return path


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _text(value: Any) -> str:
    return json.dumps(value, default=str) if isinstance(value, (dict, list, tuple)) else str(value)
