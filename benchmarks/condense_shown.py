"""What condensation is claimed to do, tried on two cores: one command a table.

    python -m benchmarks.condense_shown nuisance --network mlp-64-64-64      digits under a nuisance all classes share
    python -m benchmarks.condense_shown cifar --data cifar.npz --per-class 1  DCC, DC, DM and random, equal budget
    python -m benchmarks.condense_shown continual                            digits, rotated, inverted
    python -m benchmarks.condense_shown velocity                             kernel velocity with and without warm-up
    python -m benchmarks.condense_shown bridge                               a condensed retain set for DMM

Every method gets the same loops; the rate of each is chosen on a validation split that no table is computed from.
"""

import argparse
import time
from dataclasses import replace

import numpy as np

from unlearn.condense import Accuracies, Diverged, Pool, Settings, Training, condense, evaluate, network
from unlearn.condense.selection import select

RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


def digit_images(strength: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Digits [n 8 8], in units of their standard deviation, in an order of their own; plus `strength` times four
    smooth patterns, the same for all classes, each with a normal coefficient of its own for every image."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order].reshape(-1, 8, 8), y[order]
    rng = np.random.default_rng([seed, 7])
    waves = [np.cos(np.pi * np.arange(8)[:, None] * a / 8 + np.pi * np.arange(8) * b / 8) for a, b in PATTERNS]
    patterns = np.stack([wave / np.sqrt(np.mean(wave**2)) for wave in waves])
    nuisance = np.einsum("nk,khw->nhw", rng.normal(size=(len(x), 4)), patterns)
    return ((x - x.mean()) / x.std() + strength * nuisance).astype(np.float32), y


PATTERNS = ((1, 0), (0, 1), (1, 1), (1, 2))


def split(x: np.ndarray, y: np.ndarray, validation: int = 300, test: int = 500) -> tuple[Pool, Pool, Pool]:
    """Pools to condense, to choose rates on and to report on."""
    cut = len(x) - test - validation
    train = Pool.of((x[:cut], y[:cut]))
    return (
        train,
        Pool.of((x[cut:-test], y[cut:-test]), train.classes, train.scaling),
        Pool.of((x[-test:], y[-test:]), train.classes, train.scaling),
    )


def swept(
    settings: Settings, train: Pool, validation: Pool, test: Pool, training: Training, options: argparse.Namespace
) -> tuple[Accuracies, float]:
    """Test accuracies at the rate that does best on the validation split, and that rate."""
    best, chosen = -1.0, RATES[0]
    for lr in options.rates:
        try:
            made = condense(train, replace(settings, lr=lr), (100,), quiet=True)
        except Diverged:
            continue
        found = evaluate(made, validation, settings.network, training, 3).mean
        if found > best:
            best, chosen = found, lr
    made = condense(train, replace(settings, lr=chosen), tuple(range(options.seeds)), quiet=True)
    return evaluate(made, test, settings.network, training, options.networks), chosen


def random_sets(train: Pool, per_class: int, count: int) -> list[Pool]:
    return [select(train, "random", per_class, seed) for seed in range(count)]


def nuisance(options: argparse.Namespace) -> None:
    """Random, DC and DCC as the nuisance grows."""
    net, training = network(options.network), Training(options.passes)
    print("| network | strength | random | DC | its rate | DCC | its rate |\n|---|---|---|---|---|---|---|")
    for strength in options.strengths:
        train, validation, test = split(*digit_images(strength))
        base = evaluate(random_sets(train, options.per_class, 3 * options.seeds), test, net, training, options.networks)
        cells = [str(base)]
        for method in ("dc", "dcc"):
            settings = Settings(method, net, options.per_class, options.outer, 10, 5, 64, warm_outer=0)
            found, lr = swept(settings, train, validation, test, training, options)
            cells += [str(found), f"{lr:g}"]
        print(f"| {options.network} | {strength:g} | " + " | ".join(cells) + " |", flush=True)


def cifar(options: argparse.Namespace) -> None:
    """DCC, DC, DM and random at one budget of matching steps."""
    with np.load(options.data) as file:
        x, y, test_x, test_y = (file[name] for name in ("x_train", "y_train", "x_test", "y_test"))
    cut = len(x) - 1000
    train = Pool.of((x[:cut], y[:cut].astype(np.int64)))
    validation = Pool.of((x[cut:], y[cut:].astype(np.int64)), train.classes, train.scaling)
    test = Pool.of((test_x, test_y.astype(np.int64)), train.classes, train.scaling)
    net, training = network(options.network), Training(options.passes)
    print(f"{options.network}, {options.per_class} a class, {options.outer} x {options.inner} matching steps")
    print("| method | accuracy | rate | seconds |\n|---|---|---|---|")
    base = evaluate(random_sets(train, options.per_class, options.seeds), test, net, training, options.networks)
    print(f"| random | {base} | | |", flush=True)
    for method in ("dm", "dc", "dcc"):
        sizes = (options.outer, options.inner, options.epochs, options.real_batch)
        if method == "dm":
            sizes = (options.outer * options.inner, 1, 0, options.real_batch)
        settings = Settings(method, net, options.per_class, *sizes, warm_outer=options.warm_outer)
        started = time.perf_counter()
        found, lr = swept(settings, train, validation, test, training, options)
        print(f"| {method} | {found} | {lr:g} | {time.perf_counter() - started:.0f} |", flush=True)


def continual(options: argparse.Namespace) -> None:
    """Digits, then rotated, then inverted: mean accuracy over the tasks so far with each memory."""
    from unlearn.condense.continual import average_after, by_domain, chosen, condensed, run

    x, y = digit_images()
    train, _, test = split(x, y, validation=1)
    turns = {"digits": lambda a: a, "rotated": lambda a: np.rot90(a, 1, (1, 2)), "inverted": lambda a: -a}

    def turned(pool: Pool, turn) -> Pool:
        return replace(
            pool, x=np.ascontiguousarray(turn(pool.x)), fingerprint=f"{pool.fingerprint}:{turn(pool.x[:1])!r}"
        )

    tasks = by_domain({name: (turned(train, turn), turned(test, turn)) for name, turn in turns.items()})
    net = network(options.network)
    settings = Settings("dcc", net, options.per_class, options.outer, 10, 5, 64, lr=options.lr, warm_outer=0)
    memories = {
        "random": chosen("random", options.per_class),
        "herding": chosen("herding", options.per_class),
        "condensed": condensed(settings),
    }
    training = Training(options.passes, lr=0.01)
    found = average_after(run(tasks, memories, net, training, tuple(range(options.seeds))))
    print(f"{options.network}, memory of {options.per_class} a class and task, {options.seeds} seeds")
    print("| memory | " + " | ".join(f"after {name}" for name in turns) + " |\n|---|" + "---|" * len(turns))
    for name in memories:
        cells = found.sel(memory=name)
        print(f"| {name} | " + " | ".join(f"{c.mean().item():.1f} ± {c.std().item():.1f}" for c in cells.T) + " |")


def velocity(options: argparse.Namespace) -> None:
    """Kernel velocity of networks trained on sets condensed with and without the warm-up, and their accuracy."""
    from unlearn.condense import kernel_velocity, plot_velocity

    train, _, test = split(*digit_images(options.strengths[0]))
    net, training = network(options.network), Training(options.passes)
    curves = {}
    print("| warm-up | accuracy | log10 velocity, first | last |\n|---|---|---|---|")
    for warm in (0, options.outer // 4, options.outer // 2):
        settings = Settings("dcc", net, 1, options.outer, 10, 5, 64, options.lr, warm_outer=warm)
        made = condense(train, settings, tuple(range(options.seeds)), quiet=True)
        curve = np.stack([kernel_velocity(m, test.x[:100], net, seed=s) for s, m in enumerate(made)])
        curves[f"{warm} of {options.outer}"] = curve
        logs = np.log10(curve).mean(0)
        found = evaluate(made, test, net, training, options.networks)
        print(f"| {warm} outer steps | {found} | {logs[0]:.2f} | {logs[-1]:.2f} |", flush=True)
    if options.out:
        plot_velocity(curves).figure.savefig(options.out)


def bridge(options: argparse.Namespace) -> None:
    """DMM on digits (as benchmarks.unlearning_digits, smaller): real against condensed retained data."""
    from cache import Classification, Examples
    from cache.bank import Bank
    from cache.retrained import oracle_masks, subset_masks
    from cache.training import SGD, AdamW, Recipe
    from unlearn.datamodels import ridge
    from unlearn.deletion import Deletion
    from unlearn.evaluate import Panel
    from unlearn.loop import run
    from unlearn.methods import DMM, Matching
    from unlearn.metrics import KLoM

    from .unlearning_digits import mlp

    x, y = digit_images()
    points = Examples.of((x[:800].reshape(-1, 64), y[:800].astype(np.int64)))
    train, count = points.select(np.arange(400)), 32
    bank = Bank(mlp, Classification(), train, points, Recipe(40, 50, SGD(0.02, 0.9)))
    models = bank.train_lanes(np.ones((count, 400), bool), 10_000 + np.arange(count))
    datamodel = ridge(bank.run(subset_masks(400, 256, 0.6), quiet=True))
    matching = Matching(steps=80, batch_size=128, optimiser=AdamW(1e-2))
    per_class = options.per_class if options.per_class > 1 else 9
    print("| forget set | retained data | examples | KLoM forget | retain | validation |\n|---|---|---|---|---|---|")
    for seed in range(options.seeds):
        forget = np.sort(np.random.default_rng(seed).choice(train.ids, 20, replace=False))
        oracles = bank.run(oracle_masks(train.ids, forget, 2 * count), 20_000 + np.arange(2 * count), quiet=True)
        kept = train.without(forget)
        settings = Settings("dcc", network("mlp-32"), per_class, options.outer, 10, 5, 64, options.lr, warm_outer=0)
        (made,) = condense(Pool.of(kept), settings, quiet=True)
        real = select(Pool.of(kept), "random", per_class).ids
        for name, retain in {
            "real, all": None,
            "real, random": kept.select(kept.rows_of(real)),
            "condensed": made.examples,
        }.items():
            lanes = 10_000 + np.arange(count)
            deletion = Deletion(models, Classification(), train, forget, bank.recipe, mlp, lanes, retain)
            panel = Panel.of(deletion, oracles, points, KLoM(bins=10))
            row = panel.score(name, panel.margins(run(DMM(datamodel, matching), deletion)))
            cells = " | ".join(f"{row.klom[part].p95:.2f}" for part in ("forget", "retain", "validation"))
            print(f"| random {seed} | {name} | {len(deletion.kept)} | {cells} |", flush=True)
        null = panel.null()
        cells = " | ".join(f"{null.klom[part].p95:.2f}" for part in ("forget", "retain", "validation"))
        print(f"| random {seed} | null: oracles against oracles | | {cells} |", flush=True)


SHOWN = {"nuisance": nuisance, "cifar": cifar, "continual": continual, "velocity": velocity, "bridge": bridge}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=list(SHOWN))
    parser.add_argument("--network", default="convnet-2-16")
    parser.add_argument("--data", help="cifar: an .npz with x_train, y_train, x_test and y_test")
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.0, 1.0, 2.0, 4.0])
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES))
    parser.add_argument("--per-class", type=int, default=1)
    parser.add_argument("--outer", type=int, default=30)
    parser.add_argument("--inner", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--real-batch", type=int, default=64)
    parser.add_argument("--warm-outer", type=int, default=0)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--networks", type=int, default=5)
    parser.add_argument("--passes", type=int, default=300)
    parser.add_argument("--out", help="velocity: where to write the plot")
    options = parser.parse_args()
    SHOWN[options.what](options)


if __name__ == "__main__":
    main()
