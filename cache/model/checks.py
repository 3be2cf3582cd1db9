"""What is checked before a trained model is first used: on a few of its own examples of different lengths.

1. Batching changes nothing: the objective of each example alone equals its objective in a padded batch.
2. Gradients belong to their examples: for random weights w, sum_b w_b G_b of the captured gradients equals autograd's
   gradient of sum_b w_b L_b, at every covered parameter.
3. The model is the same: a stored verdict keeps the objectives of its examples, which are computed again when it is
   read for a model.

Tolerances follow the model's type (tolerances.py); rows that belong to other examples differ by the size of a gradient.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ..errors import ModelError
from ..jobs.progress import say
from ..store.entry import Entry
from ..store.keys import key_of
from .borrowing import borrowed
from .capture import Batch, Captured, Objective, batch_row, capture, graph_from_the_first_layer
from .forward import forward_of
from .layer_names import layer_at
from .sites import Site, Sites, parameters_of
from .stateless import named_parameters, widened
from .tolerances import Tolerance, tolerance_of

if TYPE_CHECKING:
    from .trained import ModelPass

PROBES = 4
SEED = 20260101  # of the examples' weights


def probe_rows(lengths: Int64[np.ndarray, " n"], positions: int | None = None) -> Int64[np.ndarray, " k"]:
    """Rows of up to four examples from the shortest to the longest; shorter ones if the batch of them would have more
    than `positions` positions. A single example is taken twice: its weights differ."""
    order = np.argsort(lengths, kind="stable")
    rows = np.unique(np.linspace(0, len(order) - 1, min(PROBES, len(order))).round().astype(np.int64))
    if positions is not None and len(rows) > 2:
        fitting = [len(order) - 1 - np.argmax(lengths[order[::-1]] * PROBES <= positions)]
        if lengths[order[-1]] * PROBES > positions and lengths[order[0]] * PROBES <= positions:
            rows = np.unique(np.linspace(0, fitting[0], PROBES).round().astype(np.int64))
        elif lengths[order[-1]] * PROBES > positions:
            rows = rows[:2]
    chosen = order[rows]
    return np.repeat(chosen, 2) if len(chosen) == 1 else chosen


def checked(run: "ModelPass") -> str:
    """Check the model of a pass on its examples, unless it was: once per model, data, task, sites and objective.

    Raises ModelError, with site, likely cause and cure, if a check fails, or if a stored verdict is of other losses.
    """
    trained = run.trained
    known = _known_as(run)
    if known in trained.verdicts:
        return trained.verdicts[known][0]
    inputs = {name: value for name, value in run.inputs().items() if name != "seed"}
    rows = probe_rows(run.examples.lengths, run.positions)
    store = trained.store
    if store is not None and store.has("checks", inputs):
        entry = store.open("checks", inputs)
        if run.objective != "sampled":  # in one batch, which was found to change nothing
            _same_model(run, entry, _together(run, rows))
        return trained.verdicts.setdefault(known, (entry.about["says"], trained.model))[0]
    alone = (
        None if run.objective == "sampled" else np.concatenate([_together(run, rows[[n]]) for n in range(len(rows))])
    )
    tolerance = _check(run, rows, alone)
    says = _says(run)
    if store is not None:
        kept = np.zeros(0) if alone is None else alone
        about = {"says": says, "ids": run.examples.ids[rows].tolist(), "tolerance": list(tolerance[:2])}
        store.put("checks", inputs, {"alone": kept}, about=about)
    trained.verdicts[known] = says, trained.model
    if not trained.quiet:
        say(says)
    return says


def _known_as(run: "ModelPass") -> str:
    """What a verdict is known by in this process: the model as an object and what its forward does. Its weights do not
    count, which a hash of every tensor at every pass would cost: what is checked does not depend on their values."""
    trained = run.trained
    about = {
        "forward": forward_of(trained.model), "data": run.examples.fingerprint, "task": trained.task.settings,
        "sites": run.sites.settings, "objective": run.objective,
    }  # fmt: skip
    return f"{id(trained.model)} {key_of('checks', about)}"


def _says(run: "ModelPass") -> str:
    what = {"loss": "the data's labels", "sampled": "sampled labels", "measurement": "the measurement"}[run.objective]
    own = named_parameters(run.trained.model)
    covered = run.sites.parameters
    trained = sum(own[name].requires_grad for name in covered if name in own)
    return (
        f"checked with {what}: batching changes nothing, gradients are autograd's at {len(run.sites)} sites "
        f"({trained} of {len(covered)} parameters are trained)"
    )


def _check(run: "ModelPass", rows: np.ndarray, alone: np.ndarray | None) -> Tolerance:
    """Raise ModelError unless the checks pass; the tolerance that they pass within."""
    trained = run.trained
    batch = trained.batch(run.examples, rows)
    for attempt in range(3):  # a label that is sampled at a boundary may change with the last bit: another seed then
        objective = replace(run, seed=run.seed + attempt).of
        seen = capture(trained.model, run.sites, batch, objective)
        weights = torch.as_tensor(np.random.default_rng(SEED).uniform(0.5, 2.0, len(rows)))
        weights[1::2] *= -1
        values, wanted = _autograd(trained.model, run.sites, batch, objective, weights)
        types = {
            seen.value.dtype,
            *(g.dtype for g in seen.grads.values()),
        }  # autocast computes in its own
        tolerance = tolerance_of(trained.dtype, *types)
        if _close(_numbers(values), _numbers(seen.value), tolerance).all():
            break
    else:
        raise ModelError(
            f"The {_name(run)} changes from one forward pass to the next: {_numbers(values).tolist()}, then "
            f"{_numbers(seen.value).tolist()}.",
            "Look for dropout that stays on in evaluation mode (functional dropout without training=self.training), "
            "sampling or noise in the forward pass, or a layer that is replaced when hooks are on it.",
        )
    if alone is not None:
        _check_alone(run, rows, batch, alone, _numbers(seen.value), tolerance)
    _check_gradients(run, seen, weights, wanted, tolerance)
    return tolerance


def _together(run: "ModelPass", rows: Int64[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
    """The objective of these examples in one batch."""
    trained = run.trained
    with borrowed(trained.model), torch.no_grad():
        return _numbers(run.of(trained.model, trained.batch(run.examples, rows)))


def _check_alone(
    run: "ModelPass", rows: np.ndarray, batch: Batch, alone: np.ndarray, value: np.ndarray, tolerance: Tolerance
) -> None:
    bad = np.flatnonzero(~_close(value, alone, tolerance))
    if not len(bad):
        return
    at = int(bad[0])
    trained = run.trained
    with borrowed(trained.model), torch.no_grad():
        padded = _numbers(run.of(trained.model, batch_row(batch, at)))
    if not _close(padded, alone[at : at + 1], tolerance)[0]:
        cause = "The model depends on padding: the attention mask does not reach it, or it averages over all positions."
        cure = "Let its forward take attention_mask, write a Task that passes it, or give examples of one length."
    else:
        cause = "The examples of a batch change each other: batch statistics in evaluation mode, or a layer over them."
        cure = "Use the running statistics (track_running_stats=True), or group or layer normalisation."
    raise ModelError(
        f"The {_name(run)} of example {run.examples.ids[rows[at]]} is {alone[at]:.6g} alone and {value[at]:.6g} in a "
        f"padded batch. {cause}",
        cure,
    )


def _check_gradients(
    run: "ModelPass", seen: Captured, weights: Tensor, wanted: dict[str, Tensor], tolerance: Tolerance
) -> None:
    found, scales = {}, {}
    for site in run.sites:
        a, g = (widened(t) for t in (seen.inputs[site.name], seen.grads[site.name]))
        w = weights.to(g)
        found[site.name] = torch.einsum("bso,bsi->oi", g * w[:, None, None], a)
        scales[site.name] = float((w.abs() * g.flatten(1).norm(dim=1) * a.flatten(1).norm(dim=1)).sum())
    matrices = parameters_of(run.trained.model, run.sites, found)
    bad: dict[str, float] = {}
    for name, matrix in matrices.items():
        users = [site for site in run.sites if name in dict(site.parameters).values()]
        truth = widened(wanted[name]).to(matrix)
        for site, own, true in _by_site(users, matrix.reshape(truth.shape), truth):
            scale = max(float(true.norm()), 0.1 * scales[site.name])
            error = float((own - true).norm())
            if error > tolerance.relative * scale:
                bad[site.name] = max(bad.get(site.name, 0.0), error / max(float(true.norm()), 1e-30))
    if bad:
        raise _wrong_gradients(run, bad)


def _by_site(users: Sequence[Site], found: Tensor, wanted: Tensor) -> list[tuple[Site, Tensor, Tensor]]:
    """A parameter's gradient, site by site: each group of a layer has its share of the first axis."""
    if len(users) == 1 and users[0].groups == 1:
        return [(users[0], found, wanted)]
    parts = zip(found.chunk(users[0].groups), wanted.chunk(users[0].groups))
    return [(site, *both) for number, both in enumerate(parts) for site in users if site.group == number]


def _wrong_gradients(run: "ModelPass", bad: dict[str, float]) -> ModelError:
    by_frequency = [name for name in bad if _scales_by_frequency(run, name)]
    names = by_frequency or list(bad)
    which = f"{len(names)} sites ({', '.join(names)})" if len(names) > 1 else names[0]
    cure = f"leave {'them' if len(names) > 1 else 'it'} out: sites=find_sites(model, exclude={names!r})"
    if by_frequency:
        return ModelError(
            f"At {which}, scale_grad_by_freq divides a token's gradient by how often a batch has it, so an example "
            "has no gradient of its own.",
            f"Set scale_grad_by_freq = False on the table, or {cure}.",
        )
    return ModelError(
        f"At {which}, the gradients of single examples do not add up to autograd's: they differ by up to "
        f"{max(bad.values()):.0%} (objective: {_name(run)}). The layer's rows are assigned to the wrong examples (an "
        "order of rows that its shapes do not show, such as positions before examples on one axis), or its weight is "
        "also used outside the layer.",
        f"Let the batch be the layer's first axis, or {cure}.",
    )


def _scales_by_frequency(run: "ModelPass", name: str) -> bool:
    modules = next(site.modules for site in run.sites if site.name == name)
    return any(getattr(layer_at(run.trained.model, each)[0], "scale_grad_by_freq", False) for each in modules)


def _autograd(
    model: nn.Module, sites: Sites, batch: Batch, objective: Objective, weights: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """The objective [b], and autograd's gradient of its weighted sum at every covered parameter."""
    own = named_parameters(model)
    covered = sites.parameters
    with borrowed(model), _without_grads(model), torch.enable_grad(), graph_from_the_first_layer(model):
        for name in covered:
            own[name].requires_grad_(True)
        value = objective(model, batch)
        if value.requires_grad:
            torch.autograd.backward((value * weights.to(value)).sum())
        grads = {name: own[name].grad for name in covered}
    return value.detach(), {n: torch.zeros_like(own[n]) if g is None else g.detach() for n, g in grads.items()}


@contextmanager
def _without_grads(model: nn.Module) -> Iterator[None]:
    """No parameter has a gradient inside; each has its own again afterwards."""
    own = [(parameter, parameter.grad) for parameter in nn.Module.parameters(model)]
    try:
        for parameter, _ in own:
            parameter.grad = None
        yield
    finally:
        for parameter, grad in own:
            parameter.grad = grad


def _same_model(run: "ModelPass", entry: Entry, found: np.ndarray) -> None:
    stored, known = entry.read("alone"), entry.about.get("tolerance")  # none is with the verdicts of an older version
    tolerance = tolerance_of(run.trained.dtype) if known is None else Tolerance(*known)
    if stored.shape != found.shape or _close(found, stored, tolerance).all():
        return
    raise ModelError(
        f"This model gives {_name(run)} {found.round(5).tolist()} for the examples that it was checked on; the entry "
        f"{entry.key[:12]} was computed with {stored.round(5).tolist()}.",
        "The weights are the same and the forward pass is not: restore the code or the settings that it was computed "
        "with, or use another store.",
    )


def _name(run: "ModelPass") -> str:
    return {"loss": "loss", "sampled": "loss of sampled labels", "measurement": "measurement"}[run.objective]


def _close(found: np.ndarray, wanted: np.ndarray, tolerance: Tolerance) -> np.ndarray:
    """Whether values agree; what is not finite is another error's matter."""
    apart = np.abs(found - wanted) <= tolerance.absolute + tolerance.relative * np.abs(wanted)
    return apart | ~np.isfinite(found) | ~np.isfinite(wanted)


def _numbers(value: Tensor) -> Float[np.ndarray, "..."]:
    return value.detach().double().cpu().numpy()
