"""What a request left behind, beside KLoM: how much the forgotten examples still influence, and which atoms of a
dictionary went with them.

Influence is what one more copy of an example would do. A model that has learned an example by heart has little left
to learn from it: its gradient is small. One that never saw it has much. So what remains is compared with a retrained
oracle: `share` is how far a model came from where it was (0) to where the oracle is (1).

Atoms are activations with a place. Dictionaries of the models before, after, and of the oracle are built from the same
text with the same settings; an atom of the forgotten text that the oracle no longer has, and the unlearned model still
has, is a trace (see `decomp.difference`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from whence import attrib, decomp
from whence.cache import TrainedModel
from whence.cache.display import written
from whence.cache.model.checkpoints import Checkpoint
from whence.decomp.diff import summary

from .results import Row

if TYPE_CHECKING:
    import xarray

MODELS = ("before", "after", "oracle")
STATUS = ("removed", "moved", "kept", "added")
BUILDER = decomp.ITDA(size=512, k=8)


@dataclass(frozen=True, eq=False)
class Traces:
    """influence: `remaining_influence`; share: of the way to the oracle, on the mean over queries.
    atoms: `atoms_changed`. klom: the ensemble's row of an evaluation, if given."""

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


def traces(
    trained: TrainedModel,
    forget: np.ndarray,
    after: Checkpoint,
    oracle: Checkpoint,
    *,
    at: str,
    builder: Any = BUILDER,
    method: attrib.Method = attrib.EKFAC(),
    row: Row | None = None,
) -> Traces:
    """Audit an unlearned model against an oracle, a model retrained without the forget set.

    Args:
        trained: the model before, with its training data; influence is taken over its `sites`.
        forget: ids of the forgotten examples.
        after: the unlearned model, or its state_dict.
        oracle: the retrained one, likewise.
        at: the hook point that dictionaries are built at.
        builder: builds them (a decomp builder).
        method: the attribution method.
        row: the ensemble's row of an evaluation, to be shown beside the traces.

    Raises what the fit and the builder raise.
    """
    models = {"before": trained, "after": trained.at(after), "oracle": trained.at(oracle)}
    influence = remaining_influence(models, forget, method)
    return Traces(influence, way_to_oracle(influence), atoms_changed(models, forget, at, builder), row)


def remaining_influence(
    models: Mapping[str, TrainedModel], forget: np.ndarray, method: attrib.Method = attrib.EKFAC()
) -> "xarray.DataArray":
    """What one more pass over all forgotten examples would add to the log-probability of each of them, [model, query],
    nats. Every model's curvature is that on the kept data."""
    import xarray

    found = []
    for trained in models.values():
        forgotten = trained.train.select(trained.train.rows_of(forget))
        kept = trained.replace(train=trained.train.without(forget), quiet=True)
        scores = method.fit(kept).score(forgotten, forgotten)
        found.append(scores.sum("train").values)
    coords = {"model": list(models), "query": forgotten.ids}
    return xarray.DataArray(np.stack(found), dims=("model", "query"), coords=coords, attrs=scores.attrs)


def way_to_oracle(influence: "xarray.DataArray") -> float:
    """(after - before) / (oracle - before) of the mean influence: 0 if nothing was forgotten, 1 as in the oracle,
    above 1 if the model was pushed beyond it; NaN if the oracle is no different."""
    before, after, oracle = (float(influence.sel(model=name).mean()) for name in MODELS)
    return (after - before) / (oracle - before) if oracle != before else float("nan")


def atoms_changed(
    models: Mapping[str, TrainedModel], forget: np.ndarray, at: str, builder: Any = BUILDER
) -> "xarray.Dataset":
    """count, share [group, model, status] of atoms of the forgotten and of the kept text, "after" and "oracle" against
    "before", shares of the atoms before; agreement [group, model]: share of those atoms with the oracle's status."""
    import xarray

    built = {n: builder.build(decomp.observe(trained.replace(quiet=True), at)) for n, trained in models.items()}
    kept = models["before"].train.without(forget)
    gone = models["before"].train.ids[models["before"].train.rows_of(forget)]
    groups = {"forgotten": gone.tolist(), "kept": kept.ids.tolist()}
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
