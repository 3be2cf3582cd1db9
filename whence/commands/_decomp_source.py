"""What the commands of `decomp` share: activations of a model, dictionaries in folders, and tables of estimates."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tyro

from whence.cache.errors import UsageError
from whence.options import Share

from ._shared import DataOptions, Loaded, ModelOptions

if TYPE_CHECKING:
    from whence.cache import Examples
    from whence.decomp import Activations, Dictionary, SparseAutoencoder

Folder = tyro.conf.Positional[Path]


@dataclass(frozen=True, kw_only=True)
class ActivationOptions(DataOptions):
    """What models read, and which of their activations are used."""

    skip_positions: tuple[int, ...] = ()
    """Positions left out, such as 0 if texts begin with a beginning-of-sequence token."""
    skip_tokens: tuple[int, ...] = ()
    """Token ids left out, such as padding."""
    held_out: Share = 0.1
    """Share of the documents that evaluation uses; the same ones every time."""

    def observed(self, name: str) -> "Observed":
        loaded = self.load_named(name)
        return Observed(loaded.trained, loaded.corpus, self)


@dataclass(frozen=True, kw_only=True)
class Source(ActivationOptions, ModelOptions):
    """The activations of one model."""

    def load(self) -> "Observed":
        return self.observed(self.model)


@dataclass(frozen=True, eq=False)
class Observed(Loaded):
    """A model, its data, and the activations that the options choose."""

    options: ActivationOptions

    def activations(self, sites: Sequence[str], to: str = "") -> "dict[str, Activations]":
        """All rows of every site, less what is skipped; paired with those of the hook point `to` if there is one."""
        from whence.decomp import observe

        skipped = self.options.skip_positions, self.options.skip_tokens
        found = observe(self.trained, list(dict.fromkeys([*sites, *([to] if to else [])])))
        each = {site: found[site].paired(found[to]) if to else found[site] for site in sites}
        return {site: acts.without(*skipped) for site, acts in each.items()}

    def split(self, site: str, to: str = "") -> "tuple[Activations, Activations]":
        """(to build from, held out) at one site."""
        return self.activations([site], to)[site].split(self.options.held_out)

    def decode(self, ids: Sequence[int]) -> str:
        assert self.corpus.vocabulary is not None  # a corpus of text
        return self.corpus.vocabulary.decode(ids)

    def documents_of(self, held: "Activations") -> "Examples":
        """The training examples that these activations are of."""
        rows = held.document if held.rows is None else held.document[held.rows]
        return self.train.select(np.isin(self.train.ids, np.unique(rows)))


def open_codec(folder: Path) -> "Dictionary | SparseAutoencoder":
    """The dictionary or autoencoder of a folder of ours, of SAELens or of sparsify. Raises StoreError if it is none."""
    from whence.decomp import load
    from whence.decomp.interop import saelens, sparsify

    if (folder / saelens.WEIGHTS).exists():
        return saelens.load(folder)
    return sparsify.load(folder) if (folder / sparsify.WEIGHTS).exists() else load(folder)


def open_dictionary(folder: Path) -> "Dictionary":
    """One of ours, or a matching-pursuit folder of SAELens. Raises StoreError if it is neither, UsageError for an
    autoencoder."""
    from whence.decomp import Dictionary

    found = open_codec(folder)
    if not isinstance(found, Dictionary):
        raise UsageError(
            f"{folder} is an autoencoder: its latents have no source in the data.",
            "`whence decomp evaluate` and `probe` take it; the other commands need a dictionary of activations.",
        )
    return found


def at_site(codec: Any, folder: Path, site: str = "") -> Any:
    """The same with its hook point, or `site` if it names none. Raises UsageError if neither does."""
    from dataclasses import replace

    if not codec.origin.site and not site:
        raise UsageError(f"{folder} does not name its hook point.", "Give the hook point with --at.")
    if codec.origin.site:
        return codec
    if hasattr(codec, "codec"):  # of a transcoder
        return replace(codec, codec=at_site(codec.codec, folder, site))
    return replace(codec, origin=replace(codec.origin, site=site))


def figures(found: Any) -> dict[str, dict[str, float | None]]:
    """metric -> value, low and high of a dataset of estimates; None if there is no interval."""
    return {
        str(name): {part: _number(found[part].sel(metric=name)) for part in ("value", "low", "high")}
        for name in found.metric.values
    }


def table_text(found: Any) -> str:
    """A dataset of estimates as text: a line per metric, then the attributes."""
    lines = []
    for name, row in figures(found).items():
        interval = "" if row["low"] is None else f"   [{row['low']:.4f}, {row['high']:.4f}]"
        value = float("nan") if row["value"] is None else row["value"]
        lines.append(f"{name:24} {value:10.4f}{interval}")
    return "\n".join([*lines, "  ".join(f"{name}={value}" for name, value in found.attrs.items())])


def _number(value: Any) -> float | None:
    return float(value) if float(value) == float(value) else None
