"""What condensation is claimed to do, measured on two cores: one case per table, minutes each.

Every method gets the same loops, and the rate of each is chosen on a validation split that no table is computed from.
Every table is followed by what it says, computed from its numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from whence.unlearn.condense import Pool, Settings, Training, evaluate
from whence.unlearn.condense import network as network_of
from whence.unlearn.condense.evaluate import Accuracies

from .condense_bridge import Bridge
from .condense_common import PUBLISHED, Sweep, at_which, below, best, digit_images, random_sets, sets_of, split, spread
from .harness import Benchmark, Run
from .timing import timed

bench = Benchmark(__file__, __doc__, example="nuisance --network convnet-2-16 --strengths 0 1 2 --rates 0.1 1")
MANY = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
FEW = {"outer": 2, "sets": 2, "networks": 2, "passes": 5, "rates": (0.1,), "rate_sets": 1}


def settings_of(method: Any, network: str, per_class: int, outer: int, inner=10, epochs=5, batch=64) -> Settings:
    return Settings(method, network_of(network), per_class, outer, inner, epochs, batch, warm_outer=0)


@dataclass(frozen=True)
class Judge:
    """Chooses rates on the validation split; accuracy on the test split, percent."""

    pools: tuple[Pool, Pool, Pool]
    sweep: Sweep
    training: Training
    networks: int

    def rates(self, settings: Settings) -> dict[float, float]:
        return self.sweep.of(settings, *self.pools[:2], self.training)

    def of(self, sets: Any, settings: Settings, part: int = 2, training: Training | None = None) -> Accuracies:
        return evaluate(sets, self.pools[part], settings.network, training or self.training, self.networks)


@bench.case(quick={**FEW, "strengths": (0.0, 1.0), "passes_all": 5})
def nuisance(
    run: Run, network: str = "mlp-64-64-64", strengths: tuple[float, ...] = (0.0, 1.0, 2.0, 4.0), outer: int = 100,
    sets: int = 5, networks: int = 10, passes: int = 300, passes_all: int = 300,
    rates: tuple[float, ...] = MANY, rate_sets: int = 3,
) -> None:  # fmt: skip
    """Random, DC and DCC, one example per class, as a nuisance common to all classes grows; beside them all data.

    Args:
        network: the network, by name.
        strengths: standard deviation of the nuisance, in that of the data.
        outer: outer steps.
        sets: synthetic sets.
        networks: that each set is judged by.
        passes: over a synthetic set.
        passes_all: over all training data.
        rates: tried on the validation split.
        rate_sets: sets at each rate.
    """
    methods = [f"{m} at {r}" for m in ("DC", "DCC") for r in ("its best rate", PUBLISHED)]
    title = f"{network}, one per class, {outer} x 10 matching steps; test accuracy, percent"
    table = run.table("strength|g", "all data|.1f", "random", *methods, title=title)
    tried: list[tuple[Any, ...]] = []
    found: list[dict[str, Accuracies]] = []
    for strength in strengths:
        judge = Judge(split(*digit_images(strength)), Sweep(rates, rate_sets), Training(passes), networks)
        plain, train = settings_of("dc", network, 1, outer), judge.pools[0]
        random = random_sets(train, 1, 3 * sets)
        found.append({"random": judge.of(random, plain)})
        level = judge.of(random, plain, part=1).mean
        all_data = replace(judge, networks=2).of([train], plain, training=Training(passes_all)).mean
        cells: list[Any] = [all_data, found[-1]["random"]]
        for method in ("dc", "dcc"):
            settings = settings_of(method, network, 1, outer)
            accuracy = judge.rates(settings)
            tried.append((strength, method, level, *(value or "diverged" for value in accuracy.values())))
            chosen = best(accuracy)
            at = {lr: judge.of(sets_of(replace(settings, lr=lr), train, sets), settings) for lr in {chosen, PUBLISHED}}
            found[-1] |= {f"{method}, best": at[chosen], f"{method}, published": at[PUBLISHED]}
            cells += [f"{at[chosen]} ({chosen:g})", at[PUBLISHED]]
        table.row(strength, *cells)
    title = "mean validation accuracy: random, and at every rate that was tried"
    table = run.table("strength|g", "method", "random|.1f", *(f"{lr:g}|.1f" for lr in rates), title=title)
    for row in tried:
        table.row(*row)
    run.say("\nintervals that do not overlap:")
    for claim, low, high in (
        ("DC at its best rate is below random", "dc, best", "random"),
        ("DC at the published rate is below random", "dc, published", "random"),
        ("DCC at its best rate is above random", "random", "dcc, best"),
        ("DCC is above DC, each at its best rate", "dc, best", "dcc, best"),
    ):
        hits = [f"{s:g}" for s, one in zip(strengths, found) if below(one[low], one[high])]
        run.say(f"- {claim}: {at_which(hits, 'strength')}.")


@bench.case(quick={"outer": 1, "sets": 1, "networks": 2, "passes": 5, "rates": (0.1,)}, default=False)
def cifar(
    run: Run, data: str = "cifar10_small.npz", per_class: int = 1, size: int = 16, network: str = "convnet-3-16",
    outer: int = 15, inner: int = 10, epochs: int = 5, real_batch: int = 32, sets: int = 3, networks: int = 5,
    passes: int = 300, rates: tuple[float, ...] = (0.1, 0.3, 1.0), rate_sets: int = 1,
) -> None:  # fmt: skip
    """Random, DM, DC and DCC at one budget of matching steps, on a subset of CIFAR-10; needs --data.

    Args:
        data: an .npz with x_train, y_train, x_test and y_test.
        per_class: synthetic images.
        size: images are averaged down to it; 32 keeps them, for four times the work.
        inner: steps on one network.
        epochs: of training it between them.
        real_batch: real images per class and step.
    """
    judge = Judge(image_pools(data, size), Sweep(rates, rate_sets, 3), Training(passes), networks)
    train, plain = judge.pools[0], settings_of("dc", network, per_class, outer)
    title = f"{network}, {size} by {size}, {per_class} per class, {outer} x {inner} steps"
    table = run.table("method", "accuracy, percent", "its rate|g", "seconds, sweep and all|.0f", title=title)
    found = {"random": judge.of(random_sets(train, per_class, 2 * sets), plain)}
    table.row("random", found["random"], None, None)
    for method in ("dm", "dc", "dcc"):
        # DM: a fresh network for every step, none trained
        steps = (outer * inner, 1, 0) if method == "dm" else (outer, inner, epochs)
        settings = settings_of(method, network, per_class, *steps, real_batch)

        def judged(settings: Settings = settings) -> tuple[float, Accuracies]:
            lr = best(judge.rates(settings))
            return lr, judge.of(sets_of(replace(settings, lr=lr), train, sets), settings)

        seconds, (lr, found[method]) = timed(judged)
        table.row(method, found[method], lr, seconds)
    others = ("random", "dm", "dc")
    over = [name for name in others if below(found[name], found["dcc"])]
    under = [name for name in others if below(found["dcc"], found[name])]
    run.say(f"\nDCC is above, with intervals that do not overlap: {at_which(over, 'the side of')}.")
    run.say(f"DCC is below, with intervals that do not overlap: {at_which(under, 'the side of')}.")


def image_pools(path: str, size: int) -> tuple[Pool, Pool, Pool]:
    """To condense, to choose rates on and to report on."""
    with np.load(path) as file:
        x, y, test_x, test_y = (file[name] for name in ("x_train", "y_train", "x_test", "y_test"))
    order = np.random.default_rng(0).permutation(len(x))
    x, test_x = smaller(x[order], size), smaller(test_x, size)
    y, cut = y[order].astype(np.int64), len(x) - 1000
    train = Pool.of((x[:cut], y[:cut]))
    validation = Pool.of((x[cut:], y[cut:]), train.classes, train.scaling)
    return train, validation, Pool.of((test_x, test_y.astype(np.int64)), train.classes, train.scaling)


def smaller(x: np.ndarray, size: int) -> np.ndarray:
    """Images [n h w c] averaged over blocks to `size` by `size`."""
    n, h, w, c = x.shape
    return x.reshape(n, size, h // size, size, w // size, c).mean((2, 4), dtype=np.float32)


TURNS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "digits": lambda x: x,
    "rotated": lambda x: np.ascontiguousarray(np.rot90(x, 1, (1, 2))),
    "inverted": lambda x: -x,
}


def turned(pool: Pool, turn: Callable[[np.ndarray], np.ndarray]) -> Pool:
    x = turn(pool.x)
    return replace(pool, x=x, fingerprint=f"{pool.fingerprint}:{x[:1]!r}")


@bench.case(quick={"outer": 2, "seeds": 2, "passes": 3, "rates": (0.1,)})
def continual(
    run: Run, network: str = "convnet-2-16", per_class: int = 3, outer: int = 30, seeds: int = 5, passes: int = 20,
    rates: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0),
) -> None:  # fmt: skip
    """Digits, then rotated, then inverted: mean accuracy over the tasks so far with memories of one size.

    Args:
        seeds: of networks.
    """
    from whence.unlearn.condense import continual as sequence

    train, validation, test = split(*digit_images())
    tasks = sequence.by_domain({name: (turned(train, f), turned(test, f)) for name, f in TURNS.items()})
    settings = settings_of("dcc", network, per_class, outer)
    lr = best(Sweep(rates).of(settings, train, validation, Training()))
    memories = {
        "none": lambda pool, seed: None,
        "random": sequence.chosen("random", per_class),
        "herding": sequence.chosen("herding", per_class),
        "condensed": sequence.condensed(replace(settings, lr=lr)),
    }
    accuracy = sequence.run(tasks, memories, settings.network, Training(passes), tuple(range(seeds)))
    found = sequence.average_after(accuracy)
    run.say(f"{network}, memory of {per_class} per class and task, {seeds} seeds, DCC's rate {lr:g}")
    title = "mean accuracy over the tasks so far, percent [95 % interval]"
    table = run.table("memory", *(f"after {name}" for name in TURNS), title=title)
    for name in memories:
        table.row(name, *(spread(cell.values) for cell in found.sel(memory=name).T))
    last = {name: found.sel(memory=name).values[:, -1] for name in memories}
    run.say()
    for other in ("herding", "random"):
        gap = spread(last["condensed"] - last[other])
        run.say(f"after the last task, condensed over {other}, seed by seed: {gap} points")


@bench.case(quick={**FEW, "warm": (0, 1)})
def velocity(
    run: Run, network: str = "mlp-64-64-64", strength: float = 1.0, outer: int = 100,
    warm: tuple[int, ...] = (0, 25, 50), sets: int = 5, networks: int = 10, passes: int = 300,
    rates: tuple[float, ...] = Sweep().rates, rate_sets: int = 2,
) -> None:  # fmt: skip
    """Kernel velocity of networks trained on DCC's sets with and without warm-up, and their accuracy; plots it.

    One rate for all, so that only the warm-up differs: the best of the mean over them.

    Args:
        strength: of the nuisance.
        warm: outer steps that are class by class.
    """
    from matplotlib.figure import Figure

    from whence.unlearn.condense import kernel_velocity

    judge = Judge(split(*digit_images(strength)), Sweep(rates, rate_sets), Training(passes), networks)
    train, _, test = judge.pools
    curves, found = {}, {}
    settings = {steps: replace(settings_of("dcc", network, 1, outer), warm_outer=steps) for steps in warm}
    swept = [judge.rates(one) for one in settings.values()]
    lr = best({rate: sum(accuracy[rate] for accuracy in swept) for rate in rates})
    title = f"{network}, nuisance {strength:g}, {outer} outer steps, {sets} sets, rate {lr:g}"
    table = run.table("warm-up", "accuracy", "log10 velocity, first moment", "last moment", title=title)
    for steps, one in settings.items():
        condensed = sets_of(replace(one, lr=lr), train, sets)
        curve = np.stack([kernel_velocity(m, test.x[:200], one.network, seed=s) for s, m in enumerate(condensed)])
        found[steps], logs = judge.of(condensed, one), np.log10(curve)
        curves[f"{steps} of {outer}"] = curve
        table.row(f"{steps} steps", found[steps], spread(logs[:, 0], 2), spread(logs[:, -1], 2))
    run.say()
    for steps in warm[1:]:
        gain = found[steps].mean - found[warm[0]].mean
        run.claim(f"{steps} warm-up steps are within 2 points of {warm[0]}, or better", gain >= -2, f"{gain:+.1f}")
    page = Figure(figsize=(5, 3), layout="constrained")
    axes = page.subplots()
    for name, curve in curves.items():
        mean, deviation = np.log10(curve).mean(0), np.log10(curve).std(0)
        moments = np.arange(1, len(mean) + 1)
        axes.plot(moments, mean, label=name)
        axes.fill_between(moments, mean - deviation, mean + deviation, alpha=0.2)
    axes.set(xlabel="moment of training", ylabel="log10 kernel velocity")
    axes.legend(frameon=False)
    run.out.mkdir(parents=True, exist_ok=True)
    page.savefig(run.out / "velocity.png")


@bench.case(quick={"outer": 2, "sets": 2, "models": 8, "subsets": 64, "rates": (0.1,)})
def bridge(
    run: Run, per_class: int = 9, outer: int = 50, sets: int = 4, models: int = 32, subsets: int = 512,
    rates: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0),
) -> None:  # fmt: skip
    """KLoM of unlearning with a condensed retain set of a quarter of the storage, beside real retained data.

    Args:
        models: that forget.
        subsets: retrained models of the datamodel.
    """
    Bridge(Sweep(rates), per_class, outer, sets, models, subsets).show(run)


if __name__ == "__main__":
    bench.main()
