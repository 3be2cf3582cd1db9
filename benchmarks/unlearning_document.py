"""Documents forgotten by a language model without a single retraining.

A transformer of two layers reads part of the Python language reference. An EK-FAC influence datamodel predicts how
every logit changes when a document is left out; DMM fine-tunes to a share of that prediction. Layers, damping and share
are chosen on pilot documents, whose retrained models exist. Three other documents are then forgotten, and judged
against an ensemble of retrained models that did not read them: loss on the document and on retained text, per-token
KLoM with its null row, and curves of attack.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from whence.cache import Examples, LanguageModelling, Store, TrainedModel
from whence.cache.jobs.progress import say
from whence.cache.retrain.bank import Bank
from whence.cache.retrain.recipe import AdamW, Recipe, Schedule
from whence.cache.retrain.replicas import Replicas
from whence.cache.retrain.retrained import Retrained, oracle_masks
from whence.problems.small_transformer import SmallTransformer
from whence.unlearn import audit, forget_sets
from whence.unlearn.datamodels import Influence
from whence.unlearn.evaluate import OracleSplit, evaluate
from whence.unlearn.loop import Unlearned
from whence.unlearn.loop import run as forget_by
from whence.unlearn.methods import DMM, NPO, GradDiff, Matching, UnlearningMethod
from whence.unlearn.metrics import KLoM
from whence.unlearn.request import UnlearningRequest
from whence.unlearn.results import NO_OP, NULL, Evaluation

from .harness import Run

LENGTH, VOCABULARY, WIDTH = 64, 512, 64
PILOT_MODELS = 2
PILOTS = ("subscriptions", "id-classes", "class")
DOCUMENTS = ("exceptions", "dict", "integers")
OTHERS = ("numeric-types", "calls", "sequence-types", "operator-summary", "strings")
RECIPE = Recipe(10, 16, AdamW(3e-3, (0.9, 0.98), weight_decay=0.1), Schedule("cosine", 0.1, 0.05), clip=1.0)
PROBE, BINS = 32, 3  # retained and held-out pieces that are judged; bins of KLoM
STEPS, BATCH = 8, 12
OFF, DRIFT = 0.25, 0.03  # what is allowed: of the gap on the document, and nats on retained text
TASK = LanguageModelling()


@dataclass(frozen=True, eq=False)
class Library:
    """Text in parts, the bank, and the models that read all of `train`."""

    train: Examples
    retained: Examples
    validation: Examples
    bank: Bank
    models: Replicas
    store: Store

    def oracles(self, forget: np.ndarray, count: int, first_seed: int) -> Retrained:
        masks = oracle_masks(self.train.ids, forget, count)
        say(f"{count} models that did not read {len(forget)} pieces")
        return self.bank.run(masks, first_seed + np.arange(count), self.store, quiet=True)

    def points_for(self, forget: np.ndarray) -> Examples:
        """What a request is judged on: what it forgets, retained and held-out text."""
        wanted = np.r_[forget, self.retained.ids, self.validation.ids]
        return self.bank.points.select(np.isin(self.bank.points.ids, wanted))

    def influence(self, sites: str, damping: float) -> Callable[[TrainedModel], Influence]:
        """From a model to its own datamodel; its factors are fitted once and come from the store afterwards."""
        from whence import attrib

        def own(trained: TrainedModel) -> Influence:
            stored = trained.replace(store=self.store, quiet=True)
            return Influence(attrib.EKFAC().fit(stored, sites=SITES[sites]).with_damping(damping))

        return own

    def bound(self, models: Replicas) -> list[TrainedModel]:
        return [TrainedModel(models.module(e), self.train, TASK, quiet=True) for e in range(len(models))]


def library(store: Store, models: int) -> Library:
    from whence.corpora import language_reference

    everything = language_reference(LENGTH, VOCABULARY).train
    topics = {*PILOTS, *DOCUMENTS, *OTHERS}
    chosen = everything.select(np.array([t in topics for t in everything.about["topic"]]))
    others = np.flatnonzero([t in OTHERS for t in chosen.about["topic"]])
    held_out = np.random.default_rng(0).permutation(others)[:PROBE]
    stays = np.ones(len(chosen), bool)
    stays[held_out] = False
    train, validation = chosen.select(stays), chosen.select(~stays)
    kept = np.flatnonzero([t in OTHERS for t in train.about["topic"]])
    retained = train.select(np.sort(np.random.default_rng(1).permutation(kept)[:PROBE]))
    read = np.isin(chosen.about["topic"], DOCUMENTS) | np.isin(chosen.ids, np.r_[retained.ids, validation.ids])
    points = chosen.select(read)
    bank = Bank(lambda seed: SmallTransformer(VOCABULARY, WIDTH, LENGTH), TASK, train, points, RECIPE,
                keep=("margins", "weights"))  # fmt: skip
    say(f"{len(train)} pieces of text to read, {len(validation)} held out; training {models} models")
    everyone = bank.run(np.ones((models, len(train)), bool), np.arange(models), store, quiet=True)
    return Library(train, retained, validation, bank, bank.replicas(everyone), store)


# --- forgetting, at a setting chosen on the pilots ------------------------------------------------------------


class Setting(NamedTuple):
    """Layers whose prediction is used, damping of their curvature in mean eigenvalues, share of the prediction."""

    sites: str
    damping: float
    scale: float


SITES = {"blocks": ["blocks*"], "blocks and head": ["blocks*", "head"]}
SHARES = ((0.1, 0.35), (0.1, 0.42), (0.03, 0.25), (0.03, 0.3), (0.01, 0.16), (0.01, 0.2))
GRID = tuple(Setting(sites, *share) for sites in SITES for share in SHARES)


def dmm(on: Library, setting: Setting, steps: int = STEPS) -> DMM:
    matching = Matching(steps, BATCH, 1, 1, optimiser=AdamW(3e-4))
    return DMM(on.influence(setting.sites, setting.damping), matching, setting.scale, ahead=1.0)


def losses(on: Library, models: Replicas, *parts: Examples) -> list[float]:
    """Nats per token, mean over the models."""
    return [float(audit.loss_per_token(on.bound(models), part).mean()) for part in parts]


def agreement(on: Library, setting: Setting, request: UnlearningRequest, oracles: Replicas, part: Examples) -> float:
    """Correlation, over tokens and vocabulary, of the predicted change of the logits with the oracles' (means over
    models, each position's own mean taken off)."""
    own = [on.influence(setting.sites, setting.damping)(request.trained(e)) for e in range(len(request.models))]
    predicted = np.mean([datamodel.predict_delta(request.forget, part) for datamodel in own], 0)
    before, after = (
        replicas.outputs(TASK, part, ("logits",))["logits"].mean(0) for replicas in (request.models, oracles)
    )
    counted = TASK.positions(part.batch(np.arange(len(part)))).numpy().astype(bool)
    changes = [change[:, : counted.shape[1]][counted] for change in (predicted, after - before)]
    return float(np.corrcoef(*[(change - change.mean(-1, keepdims=True)).ravel() for change in changes])[0, 1])


def calibrated(run: Run, on: Library) -> Setting:
    """The setting whose outcome on the pilots is nearest to that of retraining: the smallest mean over pilots of
    (distance to the oracles' loss on the document, in allowed shares of the gap)² + (distance to the oracles' loss
    on retained text, in allowed nats)². Oracles of a pilot share the models' seeds."""
    errors = dict.fromkeys(GRID, 0.0)
    off: dict[Setting, list[str]] = {setting: [] for setting in GRID}
    for title in PILOTS:
        forget = forget_sets.document(on.train, title, "topic")
        request = UnlearningRequest(on.models.select(range(PILOT_MODELS)), TASK, on.train, forget, RECIPE)
        parts = (request.forgotten, on.retained)
        trained = losses(on, request.models, *parts)
        oracle = losses(on, on.bank.replicas(on.oracles(forget, PILOT_MODELS, 0)), *parts)
        for setting in GRID:
            after = losses(on, forget_by(dmm(on, setting), request).models, *parts)
            gaps, drift = (after[0] - oracle[0]) / (oracle[0] - trained[0]), after[1] - oracle[1]
            errors[setting] += ((gaps / OFF) ** 2 + (drift / DRIFT) ** 2) / len(PILOTS)
            off[setting].append(f"{gaps:+.2f} / {drift:+.3f}")
    title = f"off the oracles of the pilots: gaps on the document / nats on retained text ({PILOT_MODELS} models)"
    grid = run.table("sites", "damping", "scale", *PILOTS, "error|.2f", title=title)
    for setting, error in errors.items():
        grid.row(*setting, *off[setting], error)
    return min(errors, key=lambda setting: errors[setting])


def evaluations(run: Run, models: int, documents: int) -> list[Evaluation]:
    """One per document; prints losses, attacks and claims."""
    on = library(run.store, models)
    say("choosing layers, damping and scale on pilot documents")
    setting = calibrated(run, on)
    run.say(f"\nchosen: {setting.sites}, damping {setting.damping}, scale {setting.scale}")
    found, rows, claims = [], [], {}
    for title in DOCUMENTS[:documents]:
        forget = forget_sets.document(on.train, title, "topic")
        request = UnlearningRequest(on.models, TASK, on.train, forget, RECIPE, on.bank.build)
        bank = on.oracles(forget, 2 * models, 1000)
        oracles = on.bank.replicas(bank)
        unlearned = forget_by(dmm(on, setting), request)
        parts = (request.forgotten, on.retained, on.validation)
        trained, oracle, after = (losses(on, replicas, *parts) for replicas in (on.models, oracles, unlearned.models))
        gaps, drift = (after[0] - oracle[0]) / (oracle[0] - trained[0]), after[1] - oracle[1]
        known = [agreement(on, setting, request, oracles, part) for part in parts]
        rows.append(
            (title, len(forget), *(_numbers(v, " / ") for v in (trained, oracle, after)), gaps, drift,
             100 * unlearned.ratio, _numbers(known, " / ", 2))
        )  # fmt: skip
        claims[f"{title}: forget loss within a quarter of the gap"] = abs(gaps) <= OFF
        claims[f"{title}: retained loss within {DRIFT} nats of the oracles'"] = abs(drift) <= DRIFT
        claims[f"{title}: at most 5 % of a retraining's passes"] = unlearned.ratio <= 0.05
        split = OracleSplit.of(request, bank, on.points_for(forget), KLoM(bins=BINS))
        methods: list[UnlearningMethod | Unlearned] = [unlearned, GradDiff(steps=STEPS), NPO(steps=STEPS)]
        found.append(evaluate(split, methods, title=f"document {title!r}"))
        mean = {row.method: row.klom["forget"].mean for row in found[-1].rows}
        nearer = mean[unlearned.method] < (mean[NULL] + mean[NO_OP]) / 2
        claims[f"{title}: mean KLoM nearer to the null row than to the no-op baseline"] = nearer
        attacks(run, on, title, request, {"trained": on.models, "oracles": oracles, "DMM": unlearned.models})
    summary = run.table(
        "document", "pieces", "trained", "oracles", "DMM", "off the oracles, gaps|+.2f", "retained, nats|+.3f",
        "passes, %|.1f", "predicted with true change of logits, r",
        title="nats per token, forgotten / retained / held out",
    )  # fmt: skip
    for row in rows:
        summary.row(*row)
    for one in found:
        run.say(f"\n{one.title}, per token, {one.models} models per side, {one.bins} bins\n\n{one}")
    run.say()
    for claim, held in claims.items():
        run.claim(claim, held)
    return found


def attacks(run: Run, on: Library, title: str, request: UnlearningRequest, groups: dict[str, Replicas]) -> None:
    """Curves of the document's loss under relearning and rounding, and what greedy continuation gives away."""
    text = request.forgotten
    shown, unshown = text.select(np.arange(0, len(text), 2)), text.select(np.arange(1, len(text), 2))
    curves = run.table(
        "models", "0, 2, 5 and 10 steps of relearning", "8, 5, 4 and 3 bits", "tokens extracted|.3f",
        title=f"{title}: loss per token on the unshown half while the other half is relearned; under rounding",
    )  # fmt: skip
    for name, replicas in groups.items():
        models = on.bound(replicas)
        again = audit.relearning_curve(models, shown, unshown, steps=10).mean(1)
        bits = audit.quantisation_curve(models, text, (8, 5, 4, 3)).mean(1)
        extracted = audit.extraction(models, text).mean()
        curves.row(name, _numbers([again[k] for k in (0, 2, 5, 10)]), _numbers(bits), extracted)


def _numbers(values: Sequence[float] | np.ndarray, between: str = ", ", digits: int = 3) -> str:
    return between.join(f"{v:.{digits}f}" for v in values)
