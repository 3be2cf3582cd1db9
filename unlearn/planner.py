"""Before a request is run: what each way of doing it will cost and leave, and which one to take.

Predicted KLoM. A datamodel predicts how far the margins of the forgotten examples will move when they are left out;
over the models' own spread that is a shift in standard deviations. If margins are about normal, KLoM at a shift is
known by simulation (`expected_klom`), the noise of so many models and bins included. What a method leaves of the
shift is learned on pilot requests, whose oracles exist: its factor is the share of the predicted shift at which the
simulation gives the mean KLoM that was measured there (so the datamodel's own error, and a spread that is off, are in
it; the mean, since p95 of a few points is the worst of them). Retraining has factor 0.

Compute, in example passes per model (a forward and a backward of one example):
no-op 0 · Newton |F| · DMM steps x batch, a forward pass of every matched point, and the datamodel's prediction ·
retraining epochs x kept examples. What is computed once and serves every request (curvature, a datamodel's
trainings) is stated beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from whence.cache import DataError, UsageError

from .datamodels.base import Datamodel, prediction_passes
from .evaluate import OracleSplit
from .loop import Unlearned, margins_of_logits, run
from .methods import DMM, Newton, UnlearningMethod
from .metrics import KLoM
from .request import UnlearningRequest
from .results import NO_OP
from .tables import row_of

RETRAIN = "retrain"
DRAWS, MOST = 60, 64.0  # simulated copies of the points; largest factor that is looked for


class Candidate(NamedTuple):
    """A way to delete. method: None for the no-op and for retraining, which need no pilot. passes: example passes per
    model. once: what was spent before, serving every request, as text."""

    name: str
    method: UnlearningMethod | None
    passes: float
    once: str


class Expected(NamedTuple):
    """KLoM over points, nats."""

    mean: float
    p95: float


class Option(NamedTuple):
    """A candidate with its predicted KLoM on the forget set, nats: mean, and p95 (low and high: over the pilots'
    factors); and its compute over retraining."""

    candidate: Candidate
    mean: float
    klom: float
    low: float
    high: float
    ratio: float


@dataclass(frozen=True)
class DeletionPlan:
    """options, cheapest first. floor: p95 of KLoM that noise alone gives. shift: predicted shift of the forgotten
    examples' margins, root mean square, in standard deviations of the models."""

    options: tuple[Option, ...]
    chosen: str
    why: str
    floor: float
    shift: float

    def __getitem__(self, name: str) -> Option:
        return row_of({option.candidate.name: option for option in self.options}, name)

    def __str__(self) -> str:
        lines = ["| way | predicted KLoM p95, nats | mean | example passes per model | of retraining | once, before |"]
        lines.append("|---|---|---|---|---|---|")
        for option in self.options:
            way = option.candidate
            span = f"{option.klom:.2f}" + (f" ({option.low:.2f}-{option.high:.2f})" if option.high > option.low else "")
            span += f" | {option.mean:.2f}"
            lines.append(f"| {way.name} | {span} | {way.passes:,.0f} | {100 * option.ratio:.1f} % | {way.once} |")
        return "\n".join([*lines, "", f"Recommended: {self.chosen}. {self.why}"])


def candidates(
    request: UnlearningRequest, *, newton: Newton | None = None, dmm: DMM | None = None
) -> tuple[Candidate, ...]:
    """No-op, retraining, and the methods given, with their costs by the formulas above."""
    forgotten, kept = len(request.forget), len(request.kept)
    found = [Candidate(NO_OP, None, 0.0, "")]
    if newton is not None:
        found.append(Candidate(newton.display_name, newton, float(forgotten), "curvature of every model"))
    if dmm is not None:
        queried = prediction_passes(dmm.datamodel, forgotten, dmm.matching.points(forgotten, kept))
        passes = dmm.matching.passes(forgotten, kept) + queried
        cost = dmm.datamodel.cost if isinstance(dmm.datamodel, Datamodel) else None
        spent = {} if cost is None else {"trainings": cost.trainings, "passes": cost.passes}
        once = ", ".join(f"{n:,.0f} {what}" for what, n in spent.items() if n) or "a datamodel for every model"
        found.append(Candidate(dmm.display_name, dmm, passes, once))
    retrain = Candidate(RETRAIN, None, float(request.retraining), "")
    return (*found, retrain)


def predicted_shift(request: UnlearningRequest, datamodel: Datamodel) -> Float[np.ndarray, " f"]:
    """How far the datamodel says that the margins of the forgotten examples move, in standard deviations over the
    models. Raises DataError for fewer than two models."""
    if len(request.models) < 2:
        raise DataError("One model has no spread to measure a shift by.", "Plan for an ensemble.")
    points = request.forgotten
    logits = request.models.outputs(request.task, points, ("logits",))["logits"]
    delta = datamodel.predict_delta(request.forget, points)
    before, after = (
        margins_of_logits(request.task, values, points) for values in (logits, (logits + delta).astype(np.float32))
    )
    counted = np.isfinite(before[0])
    spread = before[:, counted].std(0, ddof=1)
    return np.abs((after - before)[:, counted].mean(0)) / np.maximum(spread, 1e-6)


def expected_klom(shift: Float[np.ndarray, " p"], models: int, metric: KLoM, seed: int = 0) -> Expected:
    """KLoM between `models` normal margins and as many shifted by `shift` standard deviations, averaged over simulated
    copies of these points."""
    generator = np.random.default_rng(seed)
    many = np.tile(shift, DRAWS)
    p, q = generator.normal(size=(2, models, len(many))).astype(np.float32)
    found = metric((p + many).astype(np.float32), q).reshape(DRAWS, len(shift))
    return Expected(float(found.mean()), float(np.percentile(found, 95, axis=1).mean()))


def remaining_share(measured: float, shift: Float[np.ndarray, " p"], models: int, metric: KLoM) -> float:
    """The factor of the shift at which the simulation gives the measured mean KLoM, by bisection; 0 if that is no
    more than noise, about MOST if no shift explains it."""
    if measured <= expected_klom(0 * shift, models, metric).mean:
        return 0.0
    low, high = 0.0, MOST
    for _ in range(16):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if expected_klom(middle * shift, models, metric).mean < measured else (low, middle)
    return 0.5 * (low + high)


def pilot_factors(
    splits: Sequence[OracleSplit], ways: Sequence[Candidate], datamodel: Datamodel
) -> dict[str, tuple[float, ...]]:
    """candidate -> its factor on every pilot request: each method is run there and compared with the pilot's oracles.
    Raises UsageError without a pilot."""
    if not splits:
        raise UsageError("There is no pilot request to learn from.", "Give an oracle split of one.")
    factors: dict[str, list[float]] = {way.name: [] for way in ways}
    for split in splits:
        shift = predicted_shift(split.request, datamodel)
        for way in ways:
            factors[way.name].append(0.0 if way.name == RETRAIN else _factor(split, way, shift))
    return {name: tuple(values) for name, values in factors.items()}


def _factor(split: OracleSplit, way: Candidate, shift: np.ndarray) -> float:
    done: Unlearned | None = None if way.method is None else run(way.method, split.request)
    row = split.no_op() if done is None else split.score(way.name, split.margins(done), about=done)
    return remaining_share(row.klom["forget"].mean, shift, split.models, split.metric)


def plan_deletion(
    request: UnlearningRequest,
    ways: Sequence[Candidate],
    factors: dict[str, tuple[float, ...]],
    datamodel: Datamodel,
    *,
    metric: KLoM = KLoM(),
    slack: float = 1.0,
) -> DeletionPlan:
    """Predict every candidate, and recommend the cheapest whose KLoM, at its worst pilot, is within `slack` nats of
    noise. Raises UsageError for a candidate without a factor."""
    unknown = [way.name for way in ways if way.name not in factors]
    if unknown:
        raise UsageError(f"No pilot shows what {unknown[0]} leaves.", "Measure it with pilot_factors.")
    shift, models = predicted_shift(request, datamodel), len(request.models)
    floor = expected_klom(0 * shift, models, metric).p95
    options = []
    for way in sorted(ways, key=lambda way: way.passes):
        found = [expected_klom(factor * shift, models, metric) for factor in factors[way.name]]
        mean, p95 = np.mean([f.mean for f in found]), [f.p95 for f in found]
        ratio = way.passes / float(request.retraining)
        options.append(Option(way, float(mean), float(np.mean(p95)), min(p95), max(p95), ratio))
    chosen = next((o for o in options if o.high <= floor + slack), options[-1])
    size = float(np.sqrt(np.mean(shift**2)))
    return DeletionPlan(tuple(options), chosen.candidate.name, _why(options, chosen, floor, slack), floor, size)


def _why(options: Sequence[Option], chosen: Option, floor: float, slack: float) -> str:
    near = f"within {slack:g} nats of what noise alone gives ({floor:.2f})"
    if chosen.high > floor + slack:
        return f"Nothing is predicted to come {near}; this is the nearest to a fresh model."
    text = f"At worst {chosen.high:.2f} nats are predicted, {near}"
    cheaper = [o for o in options if o.candidate.passes < chosen.candidate.passes]
    if cheaper:
        text += "; " + ", ".join(f"{o.candidate.name} would leave {o.high:.2f}" for o in cheaper)
    if 0 < chosen.ratio < 1:
        text += f"; retraining would cost {1 / chosen.ratio:.1f} times as much"
    return text + "."
