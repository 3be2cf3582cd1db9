"""A condensed set: what was synthesised, from what, and how; on disk as npz or safetensors with a card beside it."""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from whence.cache import Examples
from whence.cache.display import picture
from whence.cache.errors import CorruptEntry, DataError, NewerFormat, UsageError

from .pool import LAYOUTS, Scaling
from .report import card, figure

FORMAT = 1
SUFFIXES = (".npz", ".safetensors")


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
    init_ids: Int[np.ndarray, " n"]
    about: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.x)

    def __repr__(self) -> str:
        method = self.about.get("method", "other method")
        return f"Condensed({len(self)} examples {list(self.x.shape[1:])} of {self.labels.shape[1]} classes, {method})"

    def _repr_html_(self) -> str:
        return picture(figure(self), "the examples and the training curve") + card(self).html

    @cached_property
    def y(self) -> Int[np.ndarray, " n"]:
        """Class of each example, by its place (learned labels may lean elsewhere)."""
        classes = self.labels.shape[1]
        return np.repeat(np.arange(classes), len(self) // classes)

    @property
    def examples(self) -> Examples:
        """In the data's own units and layout, with negative ids, for use wherever real examples are: as a retain
        set, as a memory. Soft labels are in the column `labels`, when they were learned."""
        columns = {"x": self.scaling.undo(self.x), "y": self.y}
        if self.about.get("settings", {}).get("soft_labels"):
            columns["labels"] = self.labels
        return Examples(columns, -1 - np.arange(len(self), dtype=np.int64))

    def measured(self, **figures: Any) -> "Condensed":
        """The same set with these figures on its card."""
        return replace(self, about={**self.about, "measured": {**self.about.get("measured", {}), **figures}})

    def save(self, path: str | Path) -> Path:
        """Write arrays to `path` (.npz or .safetensors) and the card beside it (.json). Returns the path."""
        path = checked_path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays = {
            "x": self.x,
            "labels": self.labels,
            "mean": np.asarray(self.scaling.mean, np.float64),
            "spread": np.asarray(self.scaling.spread, np.float64),
            "losses": self.losses,
            "init_ids": self.init_ids,
        }
        arrays = {name: np.ascontiguousarray(a) for name, a in arrays.items()}
        if path.suffix == ".npz":
            np.savez_compressed(path, allow_pickle=False, **arrays)
        else:
            from safetensors.numpy import save_file

            save_file(arrays, path)
        card = {"format": FORMAT, "kind": "condensed", "layout": self.scaling.layout, **self.about}
        card_path(path).write_text(json.dumps(card, indent=2, default=_plain) + "\n")
        return path

    @staticmethod
    def load(path: str | Path) -> "Condensed":
        """Read what `save` wrote. Raises DataError if a file is missing, CorruptEntry if one is damaged,
        NewerFormat for a later version's."""
        path = checked_path(path)
        for needed in (path, card_path(path)):
            if not needed.exists():
                raise DataError(f"There is no {needed}.", "Give the .npz or .safetensors file, its card beside it.")
        try:
            card = json.loads(card_path(path).read_text())
            arrays = _read(path)
            if int(card.pop("format")) > FORMAT:
                raise NewerFormat(f"{path} was written by a later version of Whence.", "Update Whence.")
            layout = card.pop("layout")
            card.pop("kind")
            if layout not in LAYOUTS:
                raise ValueError(f"layout {layout!r}")
            scaling = Scaling(arrays["mean"], arrays["spread"], layout)
            if len(arrays["x"]) != len(arrays["labels"]) or not np.isfinite(arrays["x"]).all():
                raise ValueError("the arrays do not fit each other")
            return Condensed(arrays["x"], arrays["labels"], scaling, arrays["losses"], arrays["init_ids"], card)
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
