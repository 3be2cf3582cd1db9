"""What the commands of `decomp` share: where activations come from, and how figures are shown."""

import json as json_module
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from whence.cache.errors import UsageError

if TYPE_CHECKING:
    from whence.cache import Store, TrainedModel
    from whence.decomp import Activations, Dictionary, SparseAutoencoder

Folder = tyro.conf.Positional[Path]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What models read, and where activations are kept."""

    data: str = "language-reference"
    """language-reference, biographies, a .txt, .jsonl or .parquet file, or a hub name."""
    skip_positions: tuple[int, ...] = ()
    """Positions left out, 0 where texts begin with a beginning-of-sequence token."""
    skip_tokens: tuple[int, ...] = ()
    """Token ids left out, such as padding."""
    store: str | None = None
    """The cache: a folder or URL; $WHENCE_CACHE or your cache folder by default."""
    cluster: str = "inline"
    """Where activations are computed: inline, local:2, dask:ADDRESS or slurm:FILE."""
    held_out: float = 0.1
    """Share of the documents kept for judging, the same ones every time."""
    quiet: bool = False
    """No progress bars."""

    def with_model(self, name: str) -> "Loaded":
        from whence.cache import Store
        from whence.inputs import load_data, load_model

        store = Store(self.store)
        model, vocabulary = load_model(name, store, quiet=self.quiet)
        corpus = load_data(self.data, vocabulary)
        return Loaded(self, store, model, corpus)


@dataclass(frozen=True, kw_only=True)
class Source(Reading):
    """Where activations come from."""

    model: str = "demo"
    """demo, biographies, a hub name, or a folder with a model."""

    def load(self) -> "Loaded":
        return self.with_model(self.model)


@dataclass(frozen=True)
class Loaded:
    """A model, its data, and the cache."""

    source: Reading
    store: "Store"
    model: Any
    corpus: Any

    def activations(self, sites: Sequence[str]) -> "dict[str, Activations]":
        """All rows of every site, less what is skipped."""
        from whence.decomp import observe

        return {site: self.kept(acts) for site, acts in observe(self.trained, list(sites)).items()}

    @property
    def trained(self) -> "TrainedModel":
        from whence.cache import LanguageModelling, TrainedModel

        return TrainedModel(
            self.model, self.corpus.train, LanguageModelling(), store=self.store, cluster=self.source.cluster,
            quiet=self.source.quiet,
        )  # fmt: skip

    def kept(self, acts: "Activations") -> "Activations":
        return acts.without(self.source.skip_positions, self.source.skip_tokens)

    def split(self, site: str) -> "tuple[Activations, Activations]":
        """(to build from, held out) at one site."""
        return self.activations([site])[site].split(self.source.held_out)

    def decode(self, ids: Sequence[int]) -> str:
        return self.corpus.vocabulary.decode(ids)

    def held_out_examples(self, held: "Activations") -> Any:
        import numpy as np

        rows = held.document if held.rows is None else held.document[held.rows]
        return self.corpus.train.select(np.isin(self.corpus.train.ids, np.unique(rows)))


def open_codec(folder: Path) -> "Dictionary | SparseAutoencoder":
    """A folder of ours, of SAELens or of sparsify. Raises StoreError where there is none of them."""
    from whence.decomp import load
    from whence.decomp.interop import saelens, sparsify

    if (folder / saelens.WEIGHTS).exists():
        return saelens.load(folder)
    return sparsify.load(folder) if (folder / sparsify.WEIGHTS).exists() else load(folder)


def open_dictionary(folder: Path) -> "Dictionary":
    """One of ours, or a matching-pursuit folder of SAELens. Raises StoreError where there is neither, UsageError for
    an autoencoder."""
    from whence.decomp import Dictionary

    found = open_codec(folder)
    if not isinstance(found, Dictionary):
        raise UsageError(
            f"{folder} is an autoencoder: its latents come from no place in the data.",
            "`whence decomp evaluate` judges it; the other commands need a dictionary of activations.",
        )
    return found


def at_site(codec: Any, folder: Path, site: str = "") -> Any:
    """The same, sure to name its hook point. Raises UsageError where neither it nor `site` does."""
    from dataclasses import replace

    if not codec.origin.site and not site:
        raise UsageError(f"{folder} does not say which activations it is for.", "Name their hook point with --at.")
    return codec if codec.origin.site else replace(codec, origin=replace(codec.origin, site=site))


def show(found: Any, json: bool, **more: Any) -> None:
    """A dataset of estimates as a table, or everything as JSON."""
    rows = {
        str(name): {part: _number(found[part].sel(metric=name)) for part in ("value", "low", "high")}
        for name in found.metric.values
    }
    if json:
        print(json_module.dumps({**more, **rows, **found.attrs}, indent=1))
        return
    for name, row in rows.items():
        interval = "" if row["low"] is None else f"   [{row['low']:.4f}, {row['high']:.4f}]"
        print(f"{name:24} {row['value']:10.4f}{interval}")
    print("  ".join(f"{name}={value}" for name, value in {**more, **found.attrs}.items()))


def _number(value: Any) -> float | None:
    return float(value) if float(value) == float(value) else None
