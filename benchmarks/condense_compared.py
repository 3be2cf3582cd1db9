"""Condensed sets beside chosen real examples at equal size, and DCC beside DC where classes look alike.

Every method's rate is chosen on a validation split that no table is computed from. The defaults take minutes on two
cores; the published size is `--size 32 --network convnet-3-128 --outer 1000 --real-batch 256 --sets 5 --networks 20`.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from whence.unlearn.condense import Condensed, Pool, Settings, Training, accuracy_curve, condense, select
from whence.unlearn.condense import network as network_of
from whence.unlearn.condense.condensing import Diverged
from whence.unlearn.condense.difficulty import difficulty
from whence.unlearn.condense.evaluate import Accuracies, evaluate
from whence.unlearn.condense.methods.trajectory import AST, MTT
from whence.unlearn.condense.pretrained import pretrained, train_on, with_teacher
from whence.unlearn.condense.robust import robust_scores

from .condense_common import at_which, below, random_sets
from .condense_shown import image_pools
from .harness import Benchmark, Run
from .timing import timed

bench = Benchmark(__file__, __doc__, example="fine --data cifar.npz --group animals --per-class 10")
# of CIFAR-10: classes that share most of what they show
GROUPS = {"animals": (3, 4, 5, 7), "vehicles": (0, 1, 8, 9), "all": tuple(range(10))}
TINY: dict[str, Any] = {
    "outer": 1, "sets": 1, "networks": 2, "passes": 3, "rates": (0.1,), "real_batch": 8, "network": "convnet-2-4"
}  # fmt: skip


def of_classes(pool: Pool, classes: tuple[int, ...]) -> Pool:
    """The examples of these classes, numbered anew."""
    kept = pool.select(np.isin(pool.y, classes))
    y = np.searchsorted(classes, kept.y)
    return replace(kept, y=y, classes=len(classes), fingerprint=f"{kept.fingerprint}:{classes}")


@dataclass(frozen=True)
class Sizes:
    """What is condensed, for how long, and how it is judged.

    Args:
        data: an .npz with x_train, y_train, x_test and y_test of CIFAR-10.
        group: animals (cat, deer, dog, horse), vehicles (aeroplane, car, ship, truck) or all.
        size: images are averaged down to it; 32 keeps them.
        network: that is matched, and that judges.
        outer: fresh networks.
        inner: matching steps with each.
        real_batch: real images per class and step.
        sets: synthetic sets of each method.
        networks: that each set is judged by.
        passes: over a set, of the training that judges it.
        rates: tried on the validation split.
    """

    data: str = "cifar10_small.npz"
    group: str = "animals"
    size: int = 16
    network: str = "convnet-3-16"
    outer: int = 20
    inner: int = 10
    real_batch: int = 32
    sets: int = 4
    networks: int = 5
    passes: int = 300
    rates: tuple[float, ...] = (0.3, 1.0, 3.0)

    def settings(self, per_class: int) -> Settings:
        """Of gradient matching, at as many synthetic images per class."""
        network, epochs = network_of(self.network), 10 if per_class > 1 else 5
        return Settings("dc", network, per_class, self.outer, self.inner, epochs, self.real_batch, warm_outer=0)

    def contest(self, store: Any = None) -> "Contest":
        pools = [of_classes(pool, GROUPS[self.group]) for pool in image_pools(self.data, self.size)]
        return Contest(*pools, Training(self.passes), self.networks, self.sets, self.rates, store)

    def __str__(self) -> str:
        return f"{self.group}, {self.network}, {self.size} by {self.size}"


@dataclass(frozen=True)
class Contest:
    """Pools to condense, to choose rates on and to report on; how sets are judged."""

    train: Pool
    validation: Pool
    test: Pool
    training: Training
    networks: int
    sets: int
    rates: tuple[float, ...]
    store: Any = None  # keeps experts

    def condensed(self, settings: Settings, training: Training | None = None) -> tuple[float, list[Condensed]]:
        """The best rate on the validation data, and sets condensed with it."""
        tried = {}
        for lr in self.rates:
            try:
                found = condense(self.train, replace(settings, lr=lr), (0,), self.store, quiet=True)
                tried[lr] = self.judged(found, settings, training, self.validation, 3).mean
            except Diverged:
                tried[lr] = 0.0
        lr = max(tried, key=lambda rate: tried[rate])
        best = replace(settings, lr=lr)
        return lr, list(condense(self.train, best, tuple(range(self.sets)), self.store, quiet=True))

    def judged(
        self, sets: Any, settings: Settings, training: Training | None = None, on: Pool | None = None, networks: int = 0
    ) -> Accuracies:
        network = settings.network
        return evaluate(sets, on or self.test, network, training or self.training, networks or self.networks)


@bench.case(quick={**TINY, "per_class": (1,)}, default=False)
def fine(run: Run, sizes: Sizes = Sizes(), per_class: tuple[int, ...] = (1, 10)) -> None:
    """DC and DCC on classes that look alike, at equal steps; needs --data.

    Args:
        per_class: synthetic images per class.
    """
    match = sizes.contest()
    title = f"{sizes}, {sizes.outer} x {sizes.inner} steps, {sizes.sets} sets; test accuracy, percent"
    table = run.table("per class", "random", "DC", "its rate|g", "DCC", "its rate|g", title=title)
    for count in per_class:
        plain = sizes.settings(count)
        random = match.judged(random_sets(match.train, count, 2 * sizes.sets), plain)
        cells: list[Any] = []
        found = {}
        for method in ("dc", "dcc"):
            lr, made = match.condensed(replace(plain, method=method))
            found[method] = match.judged(made, plain)
            cells += [found[method], lr]
        table.row(count, random, *cells)
        gap = found["dcc"].mean - found["dc"].mean
        apart = below(found["dc"], found["dcc"]) or below(found["dcc"], found["dc"])
        run.claim(f"DCC is above DC at {count} per class ({sizes.group})", gap > 0 if apart else None,
                  f"{gap:+.1f} points")  # fmt: skip


@bench.case(quick={**TINY, "each": 1, "experts": 1, "epochs": 4, "passes_all": 1}, default=False)
def selected(
    run: Run,
    sizes: Sizes = Sizes(group="all", outer=8, sets=2, passes=150, rates=(0.3, 1.0)),
    each: int = 10,
    experts: int = 4,
    epochs: int = 12,
    passes_all: int = 20,
) -> None:
    """Chosen and condensed examples at equal size and equal passes; needs --data.

    Args:
        each: examples per class.
        passes_all: over all data, of teachers and of the comparison with all.
        experts: of trajectory matching.
        epochs: of their training.
    """
    match, plain = sizes.contest(run.store), sizes.settings(each)
    train, net, full = match.train, plain.network, Training(passes_all, 0.01)
    title = f"{sizes}, {each} per class, {sizes.passes} passes"
    table = run.table("what", "test accuracy, percent", "its rate|g", "LRS|.1f", "ARS|.1f", "seconds|.0f", title=title)
    found: dict[str, Accuracies] = {}
    teacher = train_on(train, net, full)
    influence = self_taught_influence(match, net, full)
    scores = {
        "grand": difficulty(train, net, "grand", training=Training(2), networks=1),
        "el2n": difficulty(train, net, "el2n", training=Training(2)),
        "influence": influence,
    }
    random = random_sets(train, each, 2 * sizes.sets)
    sources: dict[str, Any] = {"random": random}
    for rule in ("herding", "k-centre", "submodular", "grand", "el2n", "influence"):
        sources[rule] = [select(train, rule, each, scores=scores.get(rule))]
    sources["random, labelled by a teacher"] = [with_teacher(one, net, teacher) for one in random]
    sources["herding, labelled by a teacher"] = [with_teacher(sources["herding"][0], net, teacher)]
    for name in run.selected([*sources, "RS2", "dm", "dc", "dcc", "mtt", "ast", "lgm"]):
        if name in sources:
            seconds, found[name] = timed(lambda name=name: match.judged(sources[name], plain))
            table.row(name, found[name], None, None, None, seconds)
            continue
        if name == "RS2":  # a new random subset at every step
            seconds, curve = timed(
                lambda: accuracy_curve(train, match.test, net, match.training, per_class=each, networks=sizes.networks)
            )
            found[name] = Accuracies(curve.accuracy[:, -1][None])
            table.row(name, found[name], None, None, None, seconds)
            continue
        seconds, (lr, judged, scored) = timed(
            lambda name=name: condensed_row(match, plain, name, experts, epochs, full)
        )
        found[name] = judged
        table.row(name, judged, lr, *scored, seconds)
    names = [name for name in ("dm", "dc", "dcc", "mtt", "ast", "lgm") if name in found]
    for name in names:
        over = [other for other in found if other not in names and below(found[other], found[name])]
        run.say(f"\n{name} is above, with intervals that do not overlap: {at_which(over, 'the side of')}.")


def condensed_row(
    match: Contest, plain: Settings, name: str, experts: int, epochs: int, full: Training
) -> tuple[float, Accuracies, tuple[float, float]]:
    """The rate, accuracy, and DD-Ranking's scores of a method's sets. Trajectory matching is judged at the rate that it
    learned, and linear gradient matching on whole networks, as all others."""
    settings, training, steps = replace(plain, method=name), match.training, plain.outer * plain.inner_steps
    if name in ("mtt", "ast"):
        kind = MTT if name == "mtt" else AST
        span = {"experts": experts, "epochs": epochs, "latest": epochs // 2, "span": 2, "steps": 10}
        rate = 0.01 if name == "mtt" else 0.005
        method: Any = kind(rate=rate, momentum=0.9, student_rate=0.03, **span)
        settings = replace(settings, method=method, outer=steps, augment=())
        match = replace(match, rates=tuple(10 * rate for rate in match.rates))
    if name in ("dm", "lgm"):
        settings = replace(settings, outer=steps, inner=1, augment=())
    if name == "lgm":
        settings = replace(settings, network=pretrained(plain.network, match.train, full))
    lr, made = match.condensed(settings, training)
    if "student_rate" in made[0].about:
        training = replace(training, lr=float(np.clip(made[0].about["student_rate"], 0.003, 0.1)))
    found = match.judged(made, plain, training)
    robust = robust_scores(made[0], match.train, match.test, plain.network, training, networks=3, full=full)
    return lr, found, (robust.lrs, robust.ars)


def self_taught_influence(match: Contest, net: Any, full: Training) -> Any:
    """Influence of every example on the validation examples of its class: gradients of the classifier's weights of a
    network trained on all data, whitened by their own second moments (a linear head's exact Gauss-Newton block)."""
    import jax
    import xarray as xr

    params = train_on(match.train, net, full)

    def gradients(pool: Pool) -> tuple[np.ndarray, np.ndarray]:
        run = jax.jit(lambda x: (net.features(params, x), jax.nn.softmax(net(params, x))))
        parts = [run(pool.x[at : at + 500]) for at in range(0, len(pool), 500)]
        features, p = (np.concatenate([np.asarray(part[k]) for part in parts]) for k in (0, 1))
        return features, pool.labels - p

    (f, e), (fq, eq) = gradients(match.train), gradients(match.validation)
    a, s = f.T @ f / len(f), e.T @ e / len(e)
    a += 0.1 * np.trace(a) / len(a) * np.eye(len(a))
    s += 0.1 * np.trace(s) / len(s) * np.eye(len(s))
    scores = (fq @ np.linalg.solve(a, f.T)) * (eq @ np.linalg.solve(s, e.T))
    same = match.validation.y[:, None] == match.train.y
    return xr.DataArray(scores * same, dims=("query", "train"), coords={"train": match.train.ids})


if __name__ == "__main__":
    bench.main()
