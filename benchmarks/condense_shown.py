"""What condensation is claimed to do, tried on two cores: one command a table, minutes each.

    python -m benchmarks.condense_shown nuisance                                digits under a nuisance of all classes
    python -m benchmarks.condense_shown nuisance --network convnet-2-16 --strengths 0 1 2 --outer 40 --sets 3 \
        --networks 5 --passes-all 60 --sweep.rates 0.1 1 --sweep.sets 1
    python -m benchmarks.condense_shown cifar --data cifar.npz                  DCC, DC, DM and random, equal budget
    python -m benchmarks.condense_shown cifar --data cifar.npz --per-class 10 --outer 2 --passes 100
    python -m benchmarks.condense_shown continual                               digits, rotated, inverted
    python -m benchmarks.condense_shown velocity --out velocity.png             the kernel's drift, by warm-up
    python -m benchmarks.condense_shown bridge                                  a condensed retain set for unlearning
    python -m benchmarks.condense_shown                                         all that need no file

Every method gets the same loops, and the rate of each is chosen on a validation split that no table is computed from.
Every table ends with what it says, computed from its numbers.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import tyro

from whence.unlearn.condense import Accuracies, Pool, Settings, Training, evaluate, network

from .condense_bridge import Bridge
from .condense_common import (
    PUBLISHED,
    Sweep,
    below,
    best,
    digit_images,
    random_sets,
    row,
    sets_of,
    split,
    spread,
    table,
    where,
)


@dataclass(frozen=True)
class Nuisance:
    """Random, DC and DCC, one example a class, as a nuisance that says nothing of the class grows; beside them all
    training data, which says what the network can learn under it at all."""

    network: str = "mlp-64-64-64"
    strengths: tuple[float, ...] = (0.0, 1.0, 2.0, 4.0)
    """Standard deviation of the nuisance, in that of the data."""
    outer: int = 100
    sets: int = 5
    networks: int = 10
    passes: int = 300
    passes_all: int = 300
    """Over all training data."""
    sweep: Sweep = field(default_factory=lambda: Sweep((0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0), sets=3))

    def run(self) -> None:
        net, training = network(self.network), Training(self.passes)
        print(f"{self.network}, one a class, {self.outer} x 10 matching steps; test accuracy, percent")
        methods = [f"{m} at {r}" for m in ("DC", "DCC") for r in ("its best rate", PUBLISHED)]
        table("strength", "all data", "random", *methods)
        swept: dict[tuple[str, str], list[str]] = {}
        found: list[dict[str, Accuracies]] = []
        for strength in self.strengths:
            train, validation, test = split(*digit_images(strength))
            drawn = random_sets(train, 1, 3 * self.sets)
            found.append({"random": evaluate(drawn, test, net, training, self.networks)})
            level = evaluate(drawn, validation, net, training, self.networks).mean
            whole = evaluate([train], test, net, Training(self.passes_all), 2)
            cells = [f"{whole.mean:.1f}", str(found[-1]["random"])]
            for method in ("dc", "dcc"):
                settings = Settings(method, net, 1, self.outer, 10, 5, 64, warm_outer=0)
                rates = self.sweep.of(settings, train, validation, training)
                tried = [f"{value:.1f}" if value else "diverged" for value in rates.values()]
                swept[f"{strength:g}", method] = [f"{level:.1f}", *tried]
                chosen = best(rates)
                made = {lr: sets_of(replace(settings, lr=lr), train, self.sets) for lr in {chosen, PUBLISHED}}
                at = {lr: evaluate(sets, test, net, training, self.networks) for lr, sets in made.items()}
                found[-1] |= {f"{method}, best": at[chosen], f"{method}, published": at[PUBLISHED]}
                cells += [f"{at[chosen]} ({chosen:g})", str(at[PUBLISHED])]
            row(f"{strength:g}", *cells)
        print("\nmean validation accuracy: random, and at every rate that was tried")
        table("strength", "method", "random", *(f"{lr:g}" for lr in self.sweep.rates))
        for names, cells in swept.items():
            row(*names, *cells)
        print("\nintervals that do not meet:")
        self.say("DC at its best rate is below random", found, "dc, best", "random")
        self.say("DC at the published rate is below random", found, "dc, published", "random")
        self.say("DCC at its best rate is above random", found, "random", "dcc, best")
        self.say("DCC is above DC, each at its best rate", found, "dc, best", "dcc, best")

    def say(self, claim: str, found: list[dict[str, Accuracies]], low: str, high: str) -> None:
        hits = [f"{s:g}" for s, one in zip(self.strengths, found) if below(one[low], one[high])]
        print(f"  {claim}: {where(hits, 'strength')}.")


@dataclass(frozen=True)
class Cifar:
    """Random, DM, DC and DCC at one budget of matching steps, on a subset of CIFAR-10."""

    data: str
    """An .npz with x_train, y_train, x_test and y_test."""
    per_class: int = 1
    size: int = 16
    """Images are averaged down to this; 32 leaves them as they are, for four times the work."""
    network: str = "convnet-3-16"
    outer: int = 15
    inner: int = 10
    epochs: int = 5
    real_batch: int = 32
    sets: int = 3
    networks: int = 5
    passes: int = 300
    sweep: Sweep = field(default_factory=lambda: Sweep((0.1, 0.3, 1.0), networks=3))

    def run(self) -> None:
        train, validation, test = self.pools()
        net, training = network(self.network), Training(self.passes)
        print(
            f"{self.network}, {self.size} by {self.size}, {self.per_class} a class, {self.outer} x {self.inner} steps"
        )
        table("method", "accuracy, percent", "its rate", "seconds, sweep and all")
        found = {
            "random": evaluate(random_sets(train, self.per_class, 2 * self.sets), test, net, training, self.networks)
        }
        row("random", found["random"], "", "")
        for method in ("dm", "dc", "dcc"):
            sizes = (self.outer, self.inner, self.epochs, self.real_batch)
            if method == "dm":  # a fresh network for every step, none trained
                sizes = (self.outer * self.inner, 1, 0, self.real_batch)
            settings, started = Settings(method, net, self.per_class, *sizes, warm_outer=0), time.perf_counter()
            lr = best(self.sweep.of(settings, train, validation, training))
            made = sets_of(replace(settings, lr=lr), train, self.sets)
            found[method] = evaluate(made, test, net, training, self.networks)
            row(method, found[method], f"{lr:g}", f"{time.perf_counter() - started:.0f}")
        others = [name for name in ("random", "dm", "dc") if below(found[name], found["dcc"])]
        print(f"\nDCC is above, with intervals that do not meet: {where(others, 'the side of')}.")
        over = [name for name in ("random", "dm", "dc") if below(found["dcc"], found[name])]
        print(f"DCC is below, with intervals that do not meet: {where(over, 'the side of')}.")

    def pools(self) -> tuple[Pool, Pool, Pool]:
        with np.load(self.data) as file:
            x, y, test_x, test_y = (file[name] for name in ("x_train", "y_train", "x_test", "y_test"))
        order = np.random.default_rng(0).permutation(len(x))
        x, test_x = smaller(x[order], self.size), smaller(test_x, self.size)
        y, cut = y[order].astype(np.int64), len(x) - 1000
        train = Pool.of((x[:cut], y[:cut]))
        return (
            train,
            Pool.of((x[cut:], y[cut:]), train.classes, train.scaling),
            Pool.of((test_x, test_y.astype(np.int64)), train.classes, train.scaling),
        )


def smaller(x: np.ndarray, size: int) -> np.ndarray:
    """Images [n h w c] averaged over blocks to `size` by `size`."""
    n, h, w, c = x.shape
    return x.reshape(n, size, h // size, size, w // size, c).mean((2, 4), dtype=np.float32)


TURNS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "digits": lambda x: x,
    "rotated": lambda x: np.ascontiguousarray(np.rot90(x, 1, (1, 2))),
    "inverted": lambda x: -x,
}


@dataclass(frozen=True)
class Continual:
    """Digits, then rotated, then inverted: mean accuracy over the tasks so far with memories of one size."""

    network: str = "convnet-2-16"
    per_class: int = 3
    """Of the memory, for each task."""
    outer: int = 30
    seeds: int = 5
    passes: int = 20
    """Over a task's data and the memory."""
    sweep: Sweep = Sweep((0.03, 0.1, 0.3, 1.0))

    def run(self) -> None:
        from whence.unlearn.condense.continual import average_after, by_domain, chosen, condensed, run

        train, validation, test = split(*digit_images())
        tasks = by_domain({name: (turned(train, turn), turned(test, turn)) for name, turn in TURNS.items()})
        net = network(self.network)
        settings = Settings("dcc", net, self.per_class, self.outer, 10, 5, 64, warm_outer=0)
        lr = best(self.sweep.of(settings, train, validation, Training()))
        memories = {
            "none": lambda pool, seed: (pool.x[:0], pool.y[:0]),
            "random": chosen("random", self.per_class),
            "herding": chosen("herding", self.per_class),
            "condensed": condensed(replace(settings, lr=lr)),
        }
        training = Training(self.passes)
        found = average_after(run(tasks, memories, net, training, tuple(range(self.seeds))))
        print(f"{self.network}, memory of {self.per_class} a class and task, {self.seeds} seeds, DCC's rate {lr:g}")
        print("mean accuracy over the tasks so far, percent [95 % interval]")
        table("memory", *(f"after {name}" for name in TURNS))
        for name in memories:
            row(name, *(spread(cell.values) for cell in found.sel(memory=name).T))
        last = {name: found.sel(memory=name).values[:, -1] for name in memories}
        for other in ("herding", "random"):
            gap = last["condensed"] - last[other]
            print(f"after the last task, condensed over {other}, seed by seed: {spread(gap)} points")


def turned(pool: Pool, turn: Callable[[np.ndarray], np.ndarray]) -> Pool:
    x = turn(pool.x)
    return replace(pool, x=x, fingerprint=f"{pool.fingerprint}:{x[:1]!r}")


@dataclass(frozen=True)
class Velocity:
    """Kernel velocity of networks trained on DCC's sets with and without warm-up, and their accuracy."""

    network: str = "mlp-64-64-64"
    strength: float = 1.0
    outer: int = 100
    warm: tuple[int, ...] = (0, 25, 50)
    """Outer steps that are class by class."""
    sets: int = 5
    networks: int = 10
    passes: int = 300
    out: str | None = None
    """Where to write the plot."""
    sweep: Sweep = Sweep(sets=2)
    """One rate for all, so that only the warm-up differs: the best of the mean over them."""

    def run(self) -> None:
        from matplotlib.figure import Figure

        from whence.unlearn.condense import kernel_velocity, plot_velocity

        train, validation, test = split(*digit_images(self.strength))
        net, training, curves, found = network(self.network), Training(self.passes), {}, {}
        plain = Settings("dcc", net, 1, self.outer, 10, 5, 64)
        settings = {warm: replace(plain, warm_outer=warm) for warm in self.warm}
        swept = [self.sweep.of(one, train, validation, training) for one in settings.values()]
        lr = best({rate: sum(rates[rate] for rates in swept) for rate in self.sweep.rates})
        print(f"{self.network}, nuisance {self.strength:g}, {self.outer} outer steps, {self.sets} sets, rate {lr:g}")
        table("warm-up", "accuracy", "log10 velocity, first moment", "last moment")
        for warm, one in settings.items():
            made = sets_of(replace(one, lr=lr), train, self.sets)
            curve = np.stack([kernel_velocity(m, test.x[:200], net, seed=s) for s, m in enumerate(made)])
            found[warm], logs = evaluate(made, test, net, training, self.networks), np.log10(curve)
            curves[f"{warm} of {self.outer}"] = curve
            row(f"{warm} steps", found[warm], spread(logs[:, 0], 2), spread(logs[:, -1], 2))
        gains = {warm: found[warm].mean - found[0].mean for warm in self.warm if warm and 0 in found}
        print(
            "\nwarm-up is within 2 points of none, or better: "
            + ", ".join(f"{warm} steps {'yes' if gain >= -2 else 'no'} ({gain:+.1f})" for warm, gain in gains.items())
        )
        if self.out:
            page = Figure(figsize=(5, 3), layout="constrained")
            plot_velocity(curves, page.subplots())
            page.savefig(self.out)


TABLES: dict[str, Callable[..., Nuisance | Cifar | Continual | Velocity | Bridge]] = {
    "nuisance": Nuisance,
    "cifar": Cifar,
    "continual": Continual,
    "velocity": Velocity,
    "bridge": Bridge,
}


def main() -> None:
    if len(sys.argv) == 1:
        for one in (Nuisance(), Continual(), Velocity(), Bridge()):
            print(f"\n{type(one).__doc__}\n", flush=True)
            one.run()
        return
    tyro.extras.subcommand_cli_from_dict(TABLES, description=__doc__).run()


if __name__ == "__main__":
    main()
