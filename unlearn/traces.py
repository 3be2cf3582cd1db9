"""What a deletion left behind, beside KLoM: how much the forgotten examples still have to say, and which atoms of a
dictionary went with them.

Influence asks what one more copy of an example would do. A model that has learned an example by heart has little left
to learn from it: its gradient is small. One that never saw it has much. So what remains is read against a retrained
oracle: `share` is how far a model came from where it was (0) to where the oracle is (1).

Atoms are activations with a place. Dictionaries of the models before, after, and of the oracle are built from the same
text with the same settings; an atom of the forgotten text that the oracle no longer has, and the unlearned model still
has, is a trace (see `decomp.difference`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from whence import attrib, decomp
from whence.cache import Examples, Store, Task, find_sites
from whence.cache.display import written
from whence.decomp.diff import summary

from .evaluate import Panel
from .loop import Unlearned
from .results import Row

if TYPE_CHECKING:
    import xarray

MODELS = ("before", "after", "oracle")
QUIET = attrib.FitOptions(quiet=True)
BUILDER = decomp.ITDA(size=512, k=8)


@dataclass(frozen=True, eq=False)
class Traces:
    """influence: `remaining_influence`; share: of the way to the oracle, on the mean over queries.
    atoms: `atoms_changed`. klom: the deletion's row, where a panel was given."""

    influence: "xarray.DataArray"
    share: float
    atoms: "xarray.Dataset"
    klom: Row | None = None

    def __str__(self) -> str:
        lines = [
            "influence of the forgotten examples on their own log-probability, mean, nats: "
            + ", ".join(f"{m} {float(v):+.3e}" for m, v in zip(MODELS, self.influence.mean("query").values)),
            f"{100 * self.share:.0f} % of the way from the trained model to the oracle",
            "",
            "| atoms of | model | removed | moved | kept | added | as in the oracle |\n|---|---|---|---|---|---|---|",
        ]
        for group in self.atoms["group"].values:
            for model in self.atoms["model"].values:
                here = self.atoms.sel(group=group, model=model)
                cells = " | ".join(f"{100 * float(here['share'].sel(status=s)):.0f} %" for s in STATUS)
                lines.append(f"| {group} | {model} | {cells} | {100 * float(here['agreement']):.0f} % |")
        if self.klom is not None:
            parts = ", ".join(f"{name} {s.p95:.2f}" for name, s in self.klom.klom.items())
            lines += ["", f"KLoM p95, nats: {parts}; compute {100 * self.klom.ratio:.1f} % of retraining"]
        return "\n".join(lines)

    def __repr__(self) -> str:
        groups = ", ".join(map(str, self.atoms["group"].values))
        return f"Traces({100 * self.share:.0f} % of the way to the oracle; atoms of {groups})"

    def _repr_html_(self) -> str:
        return written(str(self)).html


STATUS = ("removed", "moved", "kept", "added")


def traces(
    unlearned: Unlearned,
    oracle: nn.Module,
    *,
    at: str,
    sites: str = "*",
    builder: Any = BUILDER,
    method: attrib.Method = attrib.EKFAC(),
    lane: int = 0,
    panel: Panel | None = None,
    store: Store | None = None,
) -> Traces:
    """Audit one of the unlearned models against an oracle, a model retrained without the forget set.

    at: the hook point that dictionaries are built at, by `builder` (a decomp builder). sites: whose curvature and
    gradients influence is taken over. panel: adds the ensemble's KLoM. Raises as the fit and the builder do.
    """
    deletion = unlearned.deletion
    models = dict(zip(MODELS, (deletion.models.module(lane), unlearned.module(lane), oracle)))
    kept = deletion.train.select(deletion.left)
    influence = remaining_influence(models, deletion.task, kept, deletion.forgotten, sites, method, store)
    row = None if panel is None else panel.score(unlearned.method, panel.margins(unlearned), about=unlearned)
    atoms = atoms_changed(models, deletion.train, deletion.forget, at, builder, store)
    return Traces(influence, way_to_oracle(influence), atoms, row)


def remaining_influence(
    models: Mapping[str, nn.Module],
    task: Task,
    kept: Examples,
    forgotten: Examples,
    sites: str = "*",
    method: attrib.Method = attrib.EKFAC(),
    store: Store | None = None,
) -> "xarray.DataArray":
    """What one more pass over all forgotten examples would add to the log-probability of each of them, [model, query],
    nats. Every model's curvature is that on the kept data."""
    import xarray

    found = []
    for model in models.values():
        where = find_sites(model, sites, quiet=True)
        factors = method.fit(model, task, kept, sites=where, store=store, options=QUIET)
        scores = attrib.score(factors, model, task, forgotten, forgotten, store=store, options=QUIET)
        found.append(scores.sum("train").values)
    coords = {"model": list(models), "query": forgotten.ids}
    return xarray.DataArray(np.stack(found), dims=("model", "query"), coords=coords, attrs=scores.attrs)


def way_to_oracle(influence: "xarray.DataArray") -> float:
    """(after - before) / (oracle - before) of the mean influence: 0 where nothing was forgotten, 1 as in the oracle,
    above 1 where the model was pushed beyond it; NaN where the oracle is no different."""
    before, after, oracle = (float(influence.sel(model=name).mean()) for name in MODELS)
    return (after - before) / (oracle - before) if oracle != before else float("nan")


def atoms_changed(
    models: Mapping[str, nn.Module],
    examples: Examples,
    forget: np.ndarray,
    at: str,
    builder: Any = BUILDER,
    store: Store | None = None,
) -> "xarray.Dataset":
    """count, share [group, model, status] of atoms of the forgotten and of the kept text, "after" and "oracle" against
    "before", shares of the atoms before; agreement [group, model]: share of those atoms with the oracle's status."""
    import xarray

    built = {name: builder.build(decomp.observe(model, examples, [at], store)[at]) for name, model in models.items()}
    groups = {"forgotten": forget.tolist(), "kept": examples.without(forget).ids.tolist()}
    changes = {name: decomp.difference(built["before"], built[name]) for name in ("after", "oracle")}
    counted = xarray.concat([summary(c, groups) for c in changes.values()], dim="model", join="exact")
    agreement = np.array([[_agreement(changes[m], changes["oracle"], ids) for m in changes] for ids in groups.values()])
    return counted.assign_coords(model=list(changes)).assign(agreement=(("group", "model"), agreement))


def _agreement(one: "xarray.Dataset", other: "xarray.Dataset", ids: list[int]) -> float:
    """Share of the atoms of these documents that were there before and have the same status in both."""
    first, second = _status(one, ids), _status(other, ids)
    return float(np.mean([second[place] == status for place, status in first.items()])) if first else float("nan")


def _status(change: "xarray.Dataset", ids: list[int]) -> dict[tuple[int, int], str]:
    here = np.isin(change.document.values, ids) & (change.status.values != "added")
    places = np.stack([change.document.values, change.position.values], 1)[here]
    return {(int(d), int(p)): str(s) for (d, p), s in zip(places, change.status.values[here])}
