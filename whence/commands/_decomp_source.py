"""What the commands of `decomp` share: activations of a model, dictionaries in folders, and tables of estimates."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tyro

from whence.cache.errors import UsageError
from whence.cache.jobs.progress import say
from whence.options import Columns, Share

from ._shared import EMBEDDED, DataOptions, Loaded, ModelOptions

if TYPE_CHECKING:
    from whence.cache import Examples
    from whence.decomp import Activations, Dictionary, SparseAutoencoder

Folder = tyro.conf.Positional[Path]
SOURCE = "source.json"  # in a dictionary's folder: where its model and data are
PLACE = (
    "model", "data", "length", "document_end", "base", "reference", "beta", "revision", "dtype",
    *(field.name for field in fields(Columns)),
)  # fmt: skip


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

    def load_for(self, folder: Path) -> "Observed":
        """The model and data that the dictionary of a folder was built from, unless others are given.

        Raises UsageError if the model was in a folder that is no more there.
        """
        source = read_source(folder)
        default = {field.name: field.default for field in fields(self)}
        found = {
            n: source[n] for n in PLACE if source.get(n) is not None and getattr(self, n) == default[n] != source[n]
        }
        if not found:
            if self.model in EMBEDDED and not source.get("model"):
                say(f"{folder} does not say which model it is of: the embedded {self.model} is used; --model names it.")
            return self.load()
        given = ", ".join(f"--{name.replace('_', '-')} {value}" for name, value in found.items())
        say(f"{folder} was built with {given}: used here too.")
        path = Path(found.get("model", ""))
        if path.is_absolute() and not path.exists():
            raise UsageError(f"{folder} was built from the model {path}, which is not there.", "Give --model.")
        return replace(self, **found).load()

    def write_source(self, folder: Path, loaded: "Observed", at: str) -> None:
        """Record in the folder of a dictionary where its model and data are. It is no part of the dictionary."""
        from whence.cache.model.names import full_name, other_names

        full, others = full_name(loaded.trained.model, at), other_names(loaded.trained.model)
        own = next((name for name, known in others.items() if known == full and "hook_" not in name), at)
        given = {name: getattr(self, name) for name in PLACE}
        places = {name: _absolute(given[name]) for name in ("model", "data", "base", "reference")}
        context = int(loaded.train.lengths.max())
        facts = {**given, **places, "hook_name": at, "own_hook_name": own, "context_size": context}
        (folder / SOURCE).write_text(json.dumps(facts, indent=1), "utf-8")


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
        named = {site: replace(acts, origin=replace(acts.origin, site=site)) for site, acts in each.items()}
        return {site: acts.without(*skipped) for site, acts in named.items()}

    def split(self, site: str, to: str = "") -> "tuple[Activations, Activations]":
        """(to build from, held out) at one site."""
        return self.activations([site], to)[site].split(self.options.held_out)

    def documents_of(self, held: "Activations") -> "Examples":
        """The training examples that these activations are of."""
        return self.train.select(np.isin(self.train.ids, held.document))


def _absolute(place: str | None) -> str | None:
    return str(Path(place).resolve()) if place is not None and Path(place).exists() else place


def read_source(folder: Path) -> dict[str, Any]:
    """Where the model and data of a dictionary are, as `decomp build` recorded, or as the folder of another tool says;
    nothing for other folders."""
    found = _json(folder / SOURCE)
    if found:
        return found
    theirs = _json(folder / "cfg.json").get("metadata")
    theirs = theirs if isinstance(theirs, dict) else {}
    return theirs.get("source") or {"model": theirs.get("model_name") or None}


def _json(path: Path) -> dict[str, Any]:
    """The object in a file; nothing if there is none."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def open_codec(folder: Path) -> "Dictionary | SparseAutoencoder":
    """The dictionary or autoencoder of a folder of ours, of SAELens or of sparsify. Raises StoreError if it is none."""
    from whence.decomp import load
    from whence.decomp.interop import saelens, sparsify

    if (folder / saelens.WEIGHTS).exists():
        return saelens.load(folder)
    return sparsify.load(folder) if (folder / sparsify.WEIGHTS).exists() else load(folder)


def open_dictionary(folder: Path) -> "Dictionary":
    """One of ours, or a matching-pursuit folder of SAELens. Raises StoreError if it is neither, UsageError for an
    autoencoder or a transcoder."""
    from whence.decomp import Dictionary

    found = open_codec(folder)
    if hasattr(found, "codec"):
        raise UsageError(
            f"{folder} is a transcoder, which computes the activations of another hook point.",
            "`whence decomp evaluate` takes it; the other commands need a dictionary.",
        )
    if not isinstance(found, Dictionary):
        raise UsageError(
            f"{folder} is an autoencoder: its latents have no source in the data.",
            "`whence decomp evaluate` and `probe` take it; the other commands need a dictionary of activations.",
        )
    return found


def at_site(codec: Any, folder: Path, site: str = "") -> Any:
    """The same with its hook point, or `site` if it names none. Raises UsageError if neither does."""
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


def figure_rows(found: Any, **more: Any) -> list[dict[str, Any]]:
    """The same, a row a metric."""
    return [{**more, "metric": name, **values} for name, values in figures(found).items()]


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
