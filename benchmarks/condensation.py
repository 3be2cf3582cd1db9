"""Condensing and evaluating as one program, against an eager torch rendering of the published loop.

    python -m benchmarks.condensation [--case digits-mlp digits-convnet cifar] [--data cifar.npz]
    python -m benchmarks.condensation --primitives      why convolutions and class loops are written as they are

Both sides have the same network, initial examples, real examples a step, inner steps and training epochs, and do
the published loop: DC class after class, DCC summing the class gradients before they are compared. Each side runs
in its own process, so that the memory beside its times is its own (the peak of the process, in MB). Eager torch is
timed on one thread and on all cores, and its better time counts.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Case:
    """One size: network by name, images, examples a class, loops."""

    network: str
    size: int
    channels: int
    per_class: int
    inner: int
    epochs: int
    real_batch: int
    loops: int
    train: int = 1500
    networks: int = 10
    passes: int = 300


CASES = {
    "digits-mlp": Case("mlp-64-64-64", 8, 1, 1, 10, 5, 64, 20),
    "digits-convnet": Case("convnet-2-16", 8, 1, 1, 10, 5, 64, 6),
    "digits-convnet-10": Case("convnet-2-16", 8, 1, 10, 10, 10, 64, 2, passes=50),
    "cifar": Case("convnet-3-32", 32, 3, 1, 10, 5, 64, 1, networks=2, passes=100),
    "published": Case("convnet-3-128", 32, 3, 1, 10, 5, 256, 1, train=5000, networks=1, passes=30),
}


def data_of(case: Case, path: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Real images where a file or scikit-learn has them, [n h w c]."""
    if case.size == 8:
        from sklearn.datasets import load_digits

        x, y = load_digits(return_X_y=True)
        return ((x.reshape(-1, 8, 8, 1) - x.mean()) / x.std()).astype(np.float32)[: case.train], y[: case.train]
    if path is not None:
        with np.load(path) as file:
            drawn = np.random.default_rng(0).permutation(len(file["y_train"]))[: case.train]
            x, y = file["x_train"][drawn].astype(np.float32), file["y_train"][drawn].astype(np.int64)
        return (x - x.mean((0, 1, 2))) / x.std((0, 1, 2)), y
    rng = np.random.default_rng(0)
    y = np.arange(case.train) % 10
    return rng.normal(size=(case.train, case.size, case.size, case.channels)).astype(np.float32), y


def ours(case: Case, method: str, path: str | None) -> dict[str, float]:
    from whence.unlearn.condense import Pool, Settings, Training, condense, evaluate, network

    pool = Pool.of(data_of(case, path))
    net, sizes = network(case.network), (case.per_class, case.loops, case.inner, case.epochs, case.real_batch)
    settings = Settings(method, net, *sizes, warm_outer=0)
    started = time.perf_counter()
    (made,) = condense(pool, settings, quiet=True)
    first = time.perf_counter() - started
    loops = best_of(lambda: condense(pool, settings, quiet=True))
    training = Training(case.passes)
    evaluate([made], pool, settings.network, training, case.networks)
    nets = best_of(lambda: evaluate([made], pool, settings.network, training, case.networks), 2)
    return {"loops": case.loops / loops, "nets": case.networks / nets, "compile": first - loops}


def theirs(case: Case, method: str, path: str | None) -> dict[str, float]:
    import torch
    import torch.nn.functional as F

    from benchmarks.torch_condensation import build, matching_step, train

    x, y = data_of(case, path)
    images, labels = torch.tensor(x).permute(0, 3, 1, 2).contiguous(), torch.tensor(y)
    rows = [np.flatnonzero(y == c) for c in range(10)]
    made = torch.cat([images[r[: case.per_class]] for r in rows]).clone().requires_grad_()
    targets = torch.arange(10).repeat_interleave(case.per_class)
    optimiser = torch.optim.SGD([made], 0.1, momentum=0.5)
    rng = np.random.default_rng(0)

    def loop() -> None:
        model = build(case.network, case.channels, case.size)
        for inner in range(case.inner):
            drawn = [images[rng.permutation(r)[: case.real_batch]] for r in rows]
            matching_step(model, drawn, made, case.per_class, optimiser, contrast=method == "dcc")
            if inner < case.inner - 1:
                train(model, made.detach(), targets, case.epochs, 0.01, 0.0, 0.0)

    def judge() -> None:
        model = build(case.network, case.channels, case.size)
        train(model, made.detach(), targets, case.passes, 0.01, 0.9, 5e-4)
        with torch.no_grad():
            hits = [F.cross_entropy(model(part), part_y) for part, part_y in zip(images.split(256), labels.split(256))]
        assert all(torch.isfinite(h) for h in hits)

    found = {"loops": 0.0, "nets": 0.0}
    for threads in (1, torch.get_num_threads()):  # small operations are slower on many threads
        torch.set_num_threads(threads)
        found = {"loops": max(found["loops"], 1 / best_of(loop, 2)), "nets": max(found["nets"], 1 / best_of(judge, 2))}
    return found


def best_of(run: Any, times: int = 3) -> float:
    """Seconds of the fastest run: other processes only ever add."""
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def alone(side: str, name: str, method: str, options: argparse.Namespace) -> dict[str, float]:
    """Run one side in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.condensation", "--side", side, "--case", name, "--method", method]
    command += ["--data", options.data] if options.data else []
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(out.strip().splitlines()[-1])


def primitives() -> None:
    """Class-wise gradients of one 3x3 convolution (10 classes of 64 images 8x8, 16 channels), first and second order:
    XLA's own derivatives or ours, all classes vectorised or in a loop; and the machine's product rate."""
    import jax
    import jax.numpy as jnp

    from whence.unlearn.condense.axes import each
    from whence.unlearn.condense.layers import conv, patches

    x = jax.random.normal(jax.random.key(0), (10, 64, 8, 8, 16))
    weight = jax.random.normal(jax.random.key(1), (144, 16))
    square = jnp.ones((1024, 1024))
    product = jax.jit(jnp.matmul)
    rate = 2 * 1024**3 / best_of(lambda: product(square, square).block_until_ready(), 5) / 1e9
    work = 2 * 640 * 64 * 144 * 16 / 1e9
    print(f"product of 1024 x 1024: {rate:.0f} GFLOP/s; one convolution: {work:.2f} GFLOP")
    kinds = {
        "XLA's convolution": lambda x, w: jax.lax.conv_general_dilated(
            x, w.reshape(3, 3, 16, 16), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ),
        "unfolded patches": lambda x, w: patches(x, 3, 1) @ w,
        "convolution, patches for the weights' gradient": lambda x, w: conv(x, w, 3, 1),
    }
    print("| convolution | classes | gradient, ms | its gradient by the images, ms |\n|---|---|---|---|")
    for name, f in kinds.items():

        def gradient(x: Any, w: Any, f: Any = f) -> Any:
            return jax.grad(lambda w: jnp.sum(jnp.tanh(f(x, w)) ** 2))(w)

        def second(x: Any, w: Any, g: Any = gradient) -> Any:
            return jax.grad(lambda x: jnp.sum(jnp.sin(g(x, w))))(x)

        for vectorised in (True, False):
            cells = []
            for g in (gradient, second):
                run = jax.jit(each(lambda x, g=g: g(x, weight), vectorised))
                jax.block_until_ready(run(x))
                cells.append(1e3 * best_of(lambda run=run: jax.block_until_ready(run(x)), 3))
            how = "vectorised" if vectorised else "in a loop"
            print(f"| {name} | {how} | {cells[0]:.1f} | {cells[1]:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", choices=list(CASES), default=["digits-mlp", "digits-convnet", "cifar"])
    parser.add_argument("--method", nargs="+", default=["dc", "dcc"])
    parser.add_argument("--data", help="an .npz with x_train [n 32 32 3] and y_train; random images otherwise")
    parser.add_argument("--primitives", action="store_true")
    parser.add_argument("--side", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.primitives:
        return primitives()
    if options.side:
        run = ours if options.side == "ours" else theirs
        found = run(CASES[options.case[0]], options.method[0], options.data)
        found["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(found))
        return None
    print(
        "| case | method | loops/s eager | loops/s ours | ratio | networks/s eager | ours | ratio | MB eager | ours "
        "| compiling ours, s |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|", flush=True)
    for name in options.case:
        for method in options.method:
            a, b = (alone(side, name, method, options) for side in ("theirs", "ours"))
            print(
                f"| {name} | {method} | {a['loops']:.2f} | {b['loops']:.2f} | {b['loops'] / a['loops']:.1f} "
                f"| {a['nets']:.2f} | {b['nets']:.2f} | {b['nets'] / a['nets']:.1f} "
                f"| {a['memory']:.0f} | {b['memory']:.0f} | {b['compile']:.0f} |",
                flush=True,
            )
    return None


if __name__ == "__main__":
    main()
