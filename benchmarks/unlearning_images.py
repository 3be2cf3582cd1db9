"""Unlearning images that a network has learned by heart: every method against retrained oracles.

A residual network without normalisation reaches 100 % of its training images (whence/problems/images.py), so a no-op
leaves margins that no oracle has. Forget sets are random, of a principal direction of the datamodel, or half of a
class.

The selection rule, declared before anything is scored: for each kind of forget set, every method's settings are those
with the smallest p95 on a pilot forget set among settings whose p95 on retained and held-out images stays within 1 of
the no-op baseline, and with which no model diverges. Pilots and reported sets share no image. Every method has twenty
settings: optimisers and rates, batches of 64 or of 16 images (few steps, or four times as many), the whole budget or a
third of it (DMM: more or fewer copies of the forget set among the retained images). Every setting costs at most about a
sixth of a retraining.

Controls: the null row (oracles against other oracles) and the no-op; "average shift", which moves every forgotten image
by the mean of what the datamodel predicts for the set (is it enough to know how far?); "no such mask", the datamodel
fitted without masks that leave out three quarters of the set or more; the datamodel by ridge in place of the lasso;
the LDS of both; and oracle matching twice, with oracles of other seeds and with oracles of the models' own seeds, to
which retained images have less far to go.

`--full` is the size for a GPU, with a second network that has batch normalisation, trained one model at a time.
Everything that is trained is in the store: a run that was stopped goes on from there.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch

from whence.attrib import EKFAC
from whence.cache import Examples
from whence.cache.retrain.recipe import SGD, AdamW, Optimiser
from whence.cache.retrain.retrained import Retrained, subset_masks
from whence.decomp import ITDA
from whence.problems.images import images_problem, unlearning_bank
from whence.unlearn import forget_sets
from whence.unlearn.datamodels import Regression, lasso, ridge
from whence.unlearn.datamodels.base import Cost
from whence.unlearn.evaluate import Selected, evaluate, sweep
from whence.unlearn.loop import run as forget_with
from whence.unlearn.methods import (
    DMM,
    DescentAscent,
    DMDirect,
    FineTune,
    Matching,
    NegGradPlus,
    OracleMatching,
    SalUn,
    Scrub,
    UnlearningMethod,
)
from whence.unlearn.metrics import KLoM
from whence.unlearn.results import NO_OP, NULL, Evaluation
from whence.unlearn.traces import traces

from .forgetting import Forgetting
from .harness import Benchmark, Run
from .unlearning import page, show

bench = Benchmark(__file__, __doc__, example="--data cifar10.npz --classes 2")

KINDS = ("random", "principal", "class half")
BLIND, DENSE, AVERAGE = "DM-Direct, no such mask", "DM-Direct, ridge", "DM-Direct, average shift"
OWN = "oracle matching, own seeds"
OPTIMISERS: tuple[Optimiser, ...] = (AdamW(3e-4), AdamW(1e-3), SGD(0.005, 0.9), SGD(0.015, 0.9), AdamW(3e-3))
BATCHES = (64, 16)
BUDGET = 0.16  # of a retraining's passes, for every setting
PENALTY = 0.2  # of the lasso, as a share of the smallest that leaves no weight; chosen on a pilot


@dataclass(frozen=True)
class Size:
    """train, held: images. models: that forget, and oracles of each half. subsets: retrainings of the datamodel.
    forget: images of a random or principal forget set. The rest is `images_problem`'s."""

    train: int = 600
    held: int = 400
    models: int = 24
    subsets: int = 384
    forget: int = 20
    side: int = 16
    width: int = 16
    blocks: int = 2
    grid: int = 4
    epochs: int = 30


CPU, GPU = Size(), Size(1000, 1000, 100, 4096, 40, 32, 64, 4, 8, 40)


@dataclass(frozen=True)
class Scale:
    """What every case is run on.

    Args:
        data: an .npz with x_train, y_train, x_test, y_test (bytes); made images without it.
        classes: 2 (cats and dogs of CIFAR-10) or more; one table for each.
        full: the size for a GPU, and batch normalisation beside.
        models: that forget; oracles of a set are twice as many.
        subsets: retrainings that the datamodel is fitted to.
        train: images to learn.
        epochs: of training.
    """

    data: str | None = None
    classes: tuple[int, ...] = (2, 10)
    full: bool = False
    models: int | None = None
    subsets: int | None = None
    train: int | None = None
    epochs: int | None = None

    @property
    def size(self) -> Size:
        given = {name: getattr(self, name) for name in ("models", "subsets", "train", "epochs")}
        return replace(GPU if self.full else CPU, **{n: value for n, value in given.items() if value is not None})


@dataclass(frozen=True, eq=False)
class Setting:
    """Models that forget, the retrainings on subsets, and two datamodels fitted to them: by the lasso, for DMM, and by
    ridge, for principal directions and beside it."""

    models: Forgetting
    subsets: Retrained
    datamodel: Regression
    dense: Regression
    size: Size

    @property
    def train(self) -> Examples:
        return self.models.bank.train

    def forget_set(self, kind: str, number: int | None) -> np.ndarray:
        """A reported forget set by number, or the pilot (None)."""
        train, pilot = self.train, number is None
        if kind == "class half":  # pilot: of the first class; reported: the halves of the second
            members = np.random.default_rng(0).permutation(train.ids[np.asarray(train.columns["y"]) == (not pilot)])
            return np.sort(np.array_split(members, 2)[number or 0])
        order = np.random.default_rng(1).permutation(len(train))
        half = train.select(np.sort(order[: len(order) // 2] if pilot else order[len(order) // 2 :]))
        if kind == "random":
            return forget_sets.random_set(half, self.size.forget, number or 0)
        return forget_sets.principal(self.dense, self.size.forget, number or 0, among=half.ids)

    def not_seeing(self, forget: np.ndarray) -> Regression:
        """The datamodel without the masks that leave out three quarters of this forget set or more."""
        gone = ~self.subsets.masks[:, np.isin(self.subsets.train_ids, forget)]
        other = gone.mean(1) < 0.75
        return self.datamodel if other.all() else lasso(self.subsets.select(other), [PENALTY])


def setting(run: Run, data: str | None, classes: int, size: Size, batch_norm: bool = False) -> Setting:
    device = "cuda" if torch.cuda.is_available() else None
    how = {name: getattr(size, name) for name in ("side", "width", "blocks", "grid", "epochs")}
    problem = images_problem(classes, size.train, size.held, data, **how, batch_norm=batch_norm, device=device)
    bank = unlearning_bank(problem)
    subsets = bank.run(masks(bank.train, size.subsets), store=run.store, quiet=True)
    return Setting(
        Forgetting(bank, size.models, run.store, KLoM()), subsets, lasso(subsets, [PENALTY]), ridge(subsets), size
    )


def masks(train: Examples, count: int) -> np.ndarray:
    """Random subsets: 60 % of everything, and as many that have 30 to 100 % of each class."""
    generator, y = np.random.default_rng(0), np.asarray(train.columns["y"])
    kept = generator.uniform(0.3, 1.0, (count - count // 2, y.max() + 1))
    by_class = generator.random((len(kept), len(train))) < kept[:, y]
    return np.concatenate([subset_masks(len(train), count // 2, 0.6), by_class])


@dataclass(frozen=True, eq=False)
class AverageShift:
    """A datamodel's prediction with everything taken out but its mean size: every forgotten image's logits move alike,
    by the mean over the forget set for its own class and for the others."""

    datamodel: Regression
    train: Examples

    @property
    def cost(self) -> Cost:
        return self.datamodel.cost

    def predict_delta(self, forget: np.ndarray, points: Examples) -> np.ndarray:
        own = self.train.select(self.train.rows_of(forget))
        predicted = self.datamodel.predict_delta(forget, own)
        right = np.asarray(own.columns["y"])[:, None] == np.arange(predicted.shape[1])
        labelled = np.asarray(points.columns["y"])[:, None] == np.arange(predicted.shape[1])
        moved = np.where(labelled, predicted[right].mean(), predicted[~right].mean())
        return np.where(np.isin(points.ids, forget)[:, None], moved, 0.0).astype(np.float32)


def candidates(on: Setting) -> dict[str, list[UnlearningMethod]]:
    """The grid of every method: optimisers, batches, and how many of the budget's steps or epochs."""
    passes, forgotten = BUDGET * on.size.epochs * on.size.train, on.size.forget

    def dmm(o: Optimiser, batch: int, share: float) -> UnlearningMethod:
        own = forgotten + min(on.size.train, 20 * forgotten)  # whose outputs are computed first
        return DMM(on.datamodel, Matching(int((passes - own / 3) / batch), batch, 3 if share < 1 else 6, optimiser=o))

    def both(kind: Callable[..., UnlearningMethod], *own: float) -> Callable[..., UnlearningMethod]:
        def make(o: Optimiser, batch: int, share: float) -> UnlearningMethod:
            few = max(1, min(batch // 4, forgotten))
            return kind(*own, max(1, int(share * passes / batch)), few, batch - few, optimiser=o)

        return make

    def scrub(o: Optimiser, batch: int, share: float) -> UnlearningMethod:
        epochs = max(1, round(share * BUDGET * on.size.epochs / 1.5))
        return Scrub(epochs, max(1, epochs // 2), forget_batch=max(1, batch // 4), retain_batch=batch, optimiser=o)

    def tuned(o: Optimiser, batch: int, share: float) -> UnlearningMethod:
        return FineTune(share * BUDGET * on.size.epochs, batch, o)

    makers: dict[str, Callable[..., UnlearningMethod]] = {
        "DMM": dmm, "descent-ascent": both(DescentAscent), "NegGrad+": both(NegGradPlus, 0.95), "SCRUB": scrub,
        "SalUn": both(SalUn, 0.5), "fine-tune": tuned,
    }  # fmt: skip
    settings = list(product(OPTIMISERS, BATCHES, (1 / 3, 1.0)))
    return {name: [make(*setting) for setting in settings] for name, make in makers.items()}


def chosen(run: Run, on: Setting, kind: str) -> dict[str, Selected]:
    """What the rule chooses on the pilot of this kind."""
    split, _ = on.models.split(on.forget_set(kind, None))
    found = {name: sweep(split, grid) for name, grid in candidates(on).items()}
    table = run.table("method", "chosen on the pilot", "admissible", "forget p95 there|.2f", "retain p95 there|.2f",
                      title=f"Settings, {kind}")  # fmt: skip
    for name, choice in found.items():
        method = gentlest(choice)
        row = choice.rows[choice.candidates.index(method)]
        mark = "" if choice.method else " (nothing is admissible; moves the retained least)"
        count = f"{sum(choice.admissible)} of {len(choice.candidates)}"
        table.row(name, _varied(method) + mark, count, row.klom["forget"].p95, row.klom["retain"].p95)
    return found


def gentlest(choice: Selected) -> UnlearningMethod:
    """What was chosen; if nothing was admissible, the setting that moves retained images least, of those with which no
    model diverged (if there are any: a diverged model makes every distance small)."""
    if choice.method:
        return choice.method
    moved = [(bool(row.stopped or any(klom.doubt for klom in row.klom.values())), row.klom["retain"].p95)
             for row in choice.rows]  # fmt: skip
    return choice.candidates[moved.index(min(moved))]


def _varied(method: UnlearningMethod) -> str:
    """The settings that grids vary, as text."""
    source = method.matching if isinstance(method, DMM) else method
    names = ("steps", "epochs", "batch_size", "retain_batch", "forget_multiplier")
    values = {name: getattr(source, name, None) for name in names}
    shown = [f"{name.replace('_', ' ')} {value:g}" for name, value in values.items() if value is not None]
    optimiser = source.optimiser  # type: ignore[union-attr]
    return ", ".join([*shown, f"{type(optimiser).__name__} {optimiser.lr:g}"])


def evaluations(run: Run, on: Setting, kinds: tuple[str, ...], sets: int) -> Iterator[Evaluation]:
    """One per reported forget set."""
    for kind in kinds:
        selected = chosen(run, on, kind)
        for number in range(sets):
            split, oracles = on.models.split(on.forget_set(kind, number))
            dmm, *others = [choice.on(split.request) or gentlest(choice) for choice in selected.values()]
            assert isinstance(dmm, DMM)
            other = oracles.select(np.arange(len(oracles)) >= on.models.count)  # not the reference
            own = on.models.own_oracles(split.request.forget)
            run.say("\n" + distances(on, split.request.forget, own, other))
            given = [
                DMDirect(on.datamodel),
                DMDirect(on.not_seeing(split.request.forget), label=BLIND),
                DMDirect(on.dense, label=DENSE),
                DMDirect(AverageShift(on.datamodel, on.train), label=AVERAGE),
                OracleMatching(other, dmm.matching),
                OracleMatching(own, dmm.matching, label=OWN),
            ]
            yield evaluate(split, [dmm, *given, *others], title=f"{kind}, set {number}")


def distances(on: Setting, forget: np.ndarray, own: Retrained, other: Retrained) -> str:
    """How far logits have to go to the targets of matching: root mean squares over models, images and classes."""
    train = on.train
    before = on.models.models.outputs(on.models.bank.task, train, ("logits",))["logits"]
    changes = {"datamodel": on.datamodel.predict_delta(forget, train)[None]}
    changes |= {name: one["logits"][:, one.at_points(train.ids)] - before for name, one in
                (("oracles of own seeds", own), ("of other seeds", other))}  # fmt: skip
    gone = np.isin(train.ids, forget)
    size = {name: [float(np.sqrt(np.square(change[:, at]).mean())) for at in (gone, ~gone)]
            for name, change in changes.items()}  # fmt: skip
    told = "; ".join(f"{name}, {forgotten:.2f} and {kept:.2f}" for name, (forgotten, kept) in size.items())
    return f"change of forgotten and of retained logits, nats (root mean square): {told}"


def gradient_methods(evaluation: Evaluation) -> list[tuple[float, str]]:
    """(forget p95, name) of the methods without a target, the best first."""
    names = ("descent-ascent", "NegGrad+", "SCRUB", "SalUn", "fine-tune")
    return sorted((row.klom["forget"].p95, row.method) for row in evaluation.rows if row.method in names)


def verdicts(evaluation: Evaluation) -> dict[str, bool]:
    """The paper's headline on one forget set, and whether this recipe can show it."""
    f = {row.method: row.klom["forget"].p95 for row in evaluation.rows}
    null, no_op = f["oracles (null)"], f["no-op"]
    return {
        "a no-op's p95 is at least three times the null row's": no_op >= 3 * null,
        "DMM is nearer to the null row than to a no-op": f["DMM"] - null < 0.5 * (no_op - null),
        "DMM is below half of the best method without a target": f["DMM"] < 0.5 * gradient_methods(evaluation)[0][0],
        "DMM takes at most a sixth of a retraining": evaluation["DMM"].ratio <= 1 / 6,
    }


def memorised(run: Run, on: Setting) -> None:
    """What the recipe did: accuracy and margins of the models that forget."""
    points, models, n = on.models.bank.points, on.models.models, len(on.train)
    out = models.outputs(on.models.bank.task, points, ("logits", "margins"))
    right = out["logits"].argmax(-1) == np.asarray(points.columns["y"])
    low, spread = np.percentile(out["margins"][:, :n], 5), out["margins"].std(0)
    run.say(
        f"{len(on.train)} images to learn, {len(points) - n} held out; {len(models)} models; accuracy "
        f"{right[:, :n].mean():.4f} on the first, {right[:, n:].mean():.3f} on the second; margins, nats: "
        f"{out['margins'][:, :n].mean():.1f} (5th percentile {low:.1f}, sd over models {spread[:n].mean():.1f}) and "
        f"{out['margins'][:, n:].mean():.1f} (sd {spread[n:].mean():.1f})"
    )
    run.say(f"datamodel of {len(on.subsets)} retrainings: lasso, LDS {on.datamodel.lds}; ridge, {on.dense.lds}")


SUMMARY = ("forget set", "null", "no-op", "DMM", "its retained", "of retraining", "DM-Direct", "ridge", "no such mask",
           "average shift", "oracle matching", "its retained", "own seeds", "its retained",
           "best without a target", "its retained")  # fmt: skip


def judged(run: Run, on: Setting, name: str, kinds: tuple[str, ...], sets: int) -> list[Evaluation]:
    """Everything about one network: the tables, their claims, and a summary."""
    run.say(f"\n## {name}\n")
    memorised(run, on)
    found = []
    for one in evaluations(run, on, kinds, sets):
        show(run, one, verdicts(one))
        found.append(replace(one, title=f"{name}: {one.title}"))
    table = run.table(*SUMMARY, title=f"KLoM on the forget set, 95th percentile / mean, {name}; beside it the 95th "
                      "percentile on retained images")  # fmt: skip
    for one in found:
        best = gradient_methods(one)[0][1]

        def shown(method: str, one: Evaluation = one) -> str:
            return f"{one[method].klom['forget'].p95:.2f} / {one[method].klom['forget'].mean:.2f}"

        def retained(method: str, one: Evaluation = one) -> str:
            return f"{one[method].klom['retain'].p95:.2f}"

        table.row(
            one.title.partition(": ")[2], shown(NULL), shown(NO_OP), shown("DMM"), retained("DMM"),
            f"{100 * one['DMM'].ratio:.1f} %", *map(shown, ("DM-Direct", DENSE, BLIND, AVERAGE, "oracle matching")),
            retained("oracle matching"), shown(OWN), retained(OWN), f"{shown(best)} ({best})", retained(best),
        )  # fmt: skip
    return found


QUICK = {"classes": (2,), "models": 8, "subsets": 48, "train": 60, "epochs": 4}


@bench.case(quick={**QUICK, "sets": 1})
def methods(run: Run, scale: Scale = Scale(), kinds: tuple[str, ...] = KINDS, sets: int = 2) -> None:
    """Every method on every kind of forget set.

    Args:
        kinds: of forget sets.
        sets: reported forget sets of each kind, at most 2.
    """
    found: list[Evaluation] = []
    for number in scale.classes:
        for batch_norm in (False, True) if scale.full else (False,):
            name = f"{number} classes" + (", batch normalisation" if batch_norm else "")
            found += judged(run, setting(run, scale.data, number, scale.size, batch_norm), name, kinds, sets)
    page(run, found, "images", "Images learned by heart")


@bench.case(quick={**QUICK, "sets": 1})
def planner(run: Run, scale: Scale = Scale(), sets: int = 2) -> None:
    """Predicted KLoM against measured KLoM, on the forget sets of `methods`."""
    from .unlearning_planner import calibration

    for number in scale.classes:
        on = setting(run, scale.data, number, scale.size)
        run.say(f"\n## {number} classes: the planner\n")
        pilots = {kind: on.forget_set(kind, None) for kind in KINDS}
        reported = {f"{kind}, set {k}": on.forget_set(kind, k) for kind in KINDS for k in range(sets)}
        dmm = candidates(on)["DMM"][-1]
        assert isinstance(dmm, DMM)
        calibration(run, on.models, on.datamodel, dmm, pilots, reported)


@bench.case(quick={**QUICK, "audited": 1})
def audit(run: Run, scale: Scale = Scale(), audited: int = 4) -> None:
    """What influence and atoms tell beside KLoM: traces that methods leave, against an oracle's.

    Args:
        audited: models of the ensemble that are compared, each with an oracle of its own.
    """
    for number in scale.classes:
        audited_sets(run, setting(run, scale.data, number, scale.size), f"{number} classes", audited)


def audited_sets(run: Run, on: Setting, name: str, audited: int) -> None:
    """For the first random set and half of a class: KLoM, the way to the oracle, and atoms as in the oracle, of methods
    at the settings that the rule chooses."""
    selected = {kind: chosen(run, on, kind) for kind in ("random", "class half")}
    table = run.table(
        "forget set", "method", "KLoM p95|.2f", "influence, way to the oracle", "forgotten atoms as in the oracle",
        "kept atoms as in the oracle", title=f"Traces, {name}: mean of {audited} models (smallest to largest)",
    )  # fmt: skip
    for kind, choice in selected.items():
        ways: dict[str, UnlearningMethod] = {"no-op": DescentAscent(0, label="no-op")}
        ways |= {name: gentlest(choice[name]) for name in ("DMM", "descent-ascent", "SalUn", "fine-tune")}
        forget = on.forget_set(kind, 0)
        split, _ = on.models.split(forget)
        oracles = on.models.oracle_models(forget, audited)
        for way, method in ways.items():
            done = forget_with(method, split.request)
            row = split.score(way, split.margins(done), about=done)
            found = [
                traces(split.request.trained(e, quiet=True), forget, done.module(e), oracles.module(e), at="features",
                       builder=ITDA(size=64, k=4), method=EKFAC())
                for e in range(audited)
            ]  # fmt: skip
            share = np.array([one.share for one in found])
            atoms = [
                np.mean([float(one.atoms["agreement"].sel(group=g, model="after")) for one in found])
                for g in ("forgotten", "kept")
            ]
            shown = [f"{100 * value:.0f} %" for value in atoms]
            spread = f"{100 * share.mean():.0f} % ({100 * share.min():.0f} to {100 * share.max():.0f})"
            table.row(kind, way, row.klom["forget"].p95, spread, *shown)


if __name__ == "__main__":
    bench.main()
