"""Condensing and evaluating as one program, against an eager torch rendering of the published loop.

Both sides have the same network, initial examples, real examples per step, inner steps and training epochs, and run
the published loop: DC class after class, DCC summing the class gradients before they are compared. Each side runs
in its own process, so that its peak memory (MB) is its own. Eager torch is timed on one thread and on all cores, and
its better time counts. `primitives` says why convolutions and class loops are written as they are.
"""

import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .harness import Benchmark, Run
from .peers import peak_bytes
from .timing import best, paired, product_rate, timed

bench = Benchmark(__file__, __doc__, example="--sizes digits-mlp cifar --data cifar.npz")


@dataclass(frozen=True)
class Size:
    """Network by name, images, examples per class, loops."""

    network: str
    side: int
    channels: int
    per_class: int
    inner: int
    epochs: int
    real_batch: int
    loops: int
    train: int = 1500
    networks: int = 10
    passes: int = 300


SIZES = {
    "digits-mlp": Size("mlp-64-64-64", 8, 1, 1, 10, 5, 64, 20),
    "digits-convnet": Size("convnet-2-16", 8, 1, 1, 10, 5, 64, 6),
    "digits-convnet-10": Size("convnet-2-16", 8, 1, 10, 10, 10, 64, 2, passes=50),
    "cifar": Size("convnet-3-32", 32, 3, 1, 10, 5, 64, 1, networks=2, passes=100),
    "cifar-128": Size("convnet-3-128", 32, 3, 1, 2, 5, 64, 1, networks=1, passes=30),
    "published": Size("convnet-3-128", 32, 3, 1, 10, 5, 256, 1, train=5000, networks=1, passes=30),
}


def data_of(size: Size, path: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Real images [n h w c] if a file or scikit-learn has them, else random ones."""
    if size.side == 8:
        from .condense_common import digit_images

        x, y = digit_images()
        return x[: size.train, ..., None], y[: size.train]
    if path is not None:
        with np.load(path) as file:
            chosen = np.random.default_rng(0).permutation(len(file["y_train"]))[: size.train]
            x, y = file["x_train"][chosen].astype(np.float32), file["y_train"][chosen].astype(np.int64)
        return (x - x.mean((0, 1, 2))) / x.std((0, 1, 2)), y
    rng = np.random.default_rng(0)
    y = np.arange(size.train) % 10
    return rng.normal(size=(size.train, size.side, size.side, size.channels)).astype(np.float32), y


def problem(size: Size, method: Any, path: str | None) -> tuple[Any, Any]:
    """The pool and the settings of our side."""
    from whence.unlearn.condense import Pool, Settings, network

    loops = (size.per_class, size.loops, size.inner, size.epochs, size.real_batch)
    return Pool.of(data_of(size, path)), Settings(method, network(size.network), *loops, warm_outer=0)


def ours(size: Size, method: Any, path: str | None) -> dict[str, float]:
    from whence.unlearn.condense import Training, condense, evaluate

    (pool, settings), training = problem(size, method, path), Training(size.passes)
    first, (condensed,) = timed(lambda: condense(pool, settings, quiet=True))
    seconds = best(lambda: condense(pool, settings, quiet=True))
    judging = best(lambda: evaluate([condensed], pool, settings.network, training, size.networks), 2)
    return {"loops": size.loops / seconds, "nets": size.networks / judging, "compile": first - seconds}


def eager(size: Size, method: str, path: str | None) -> tuple[Callable[[], None], Callable[[], None]]:
    """One published outer loop in eager torch, and the training of one network that judges the set."""
    import torch
    import torch.nn.functional as F

    from .torch_condensation import build, matching_step, train

    x, y = data_of(size, path)
    images, labels = torch.tensor(x).permute(0, 3, 1, 2).contiguous(), torch.tensor(y)
    rows = [np.flatnonzero(y == c) for c in range(10)]
    synthetic = torch.cat([images[r[: size.per_class]] for r in rows]).clone().requires_grad_()
    targets = torch.arange(10).repeat_interleave(size.per_class)
    optimiser = torch.optim.SGD([synthetic], 0.1, momentum=0.5)
    rng = np.random.default_rng(0)

    def loop() -> None:
        model = build(size.network, size.channels, size.side)
        for inner in range(size.inner):
            batches = [images[rng.permutation(r)[: size.real_batch]] for r in rows]
            matching_step(model, batches, synthetic, size.per_class, optimiser, contrast=method == "dcc")
            if inner < size.inner - 1:
                train(model, synthetic.detach(), targets, size.epochs, 0.01, 0.0, 0.0)

    def judge() -> None:
        model = build(size.network, size.channels, size.side)
        train(model, synthetic.detach(), targets, size.passes, 0.01, 0.9, 5e-4)
        with torch.no_grad():
            hits = [F.cross_entropy(model(part), part_y) for part, part_y in zip(images.split(256), labels.split(256))]
        assert all(torch.isfinite(h) for h in hits)

    return loop, judge


def theirs(size: Size, method: str, path: str | None) -> dict[str, float]:
    import torch

    loop, judge = eager(size, method, path)
    found = {"loops": 0.0, "nets": 0.0}
    for threads in (1, torch.get_num_threads()):  # small operations are slower on many threads
        torch.set_num_threads(threads)
        found = {"loops": max(found["loops"], 1 / best(loop, 2)), "nets": max(found["nets"], 1 / best(judge, 2))}
    return found


def side(of: Callable[..., dict[str, float]], folder: Path) -> None:
    """One side in this process: what it reached, and its peak memory."""
    job = json.loads((folder / "job.json").read_text())
    found = of(Size(**job["size"]), job["method"], job["data"])
    (folder / "found.json").write_text(json.dumps({**found, "memory": peak_bytes() / 2**20}))


bench.side("ours", lambda folder: side(ours, folder))
bench.side("theirs", lambda folder: side(theirs, folder))


def alone(name: str, **job: Any) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "job.json").write_text(json.dumps(job))
        bench.run_side(name, Path(folder))
        return json.loads((Path(folder) / "found.json").read_text())


@bench.case(quick={"sizes": ("digits-mlp",), "methods": ("dcc",)})
def loops(
    run: Run,
    sizes: tuple[str, ...] = ("digits-mlp", "digits-convnet", "cifar"),
    methods: tuple[str, ...] = ("dc", "dcc"),
    data: str | None = None,
) -> None:
    """Outer loops and trained networks per second, memory.

    Args:
        sizes: also digits-convnet-10, cifar-128 and published.
        methods: dc, dcc.
        data: an .npz with x_train [n 32 32 3] and y_train; random images otherwise.
    """
    table = run.table(
        "case", "method", "loops/s eager|.2f", "loops/s ours|.2f", "ratio|.1f", "networks/s eager|.2f", "ours|.2f",
        "ratio|.1f", "MB eager|.0f", "ours|.0f", "compiling ours, s|.0f",
    )  # fmt: skip
    for name in run.selected(sizes):
        for method in methods:
            a, b = (alone(who, size=asdict(SIZES[name]), method=method, data=data) for who in ("theirs", "ours"))
            pairs = [(a[k], b[k], b[k] / a[k]) for k in ("loops", "nets")]
            table.row(name, method, *pairs[0], *pairs[1], a["memory"], b["memory"], b["compile"])


@bench.case(default=False, quick={"sizes": ("digits-mlp",), "rounds": 1})
def interleaved(
    run: Run, sizes: tuple[str, ...] = ("cifar",), methods: tuple[str, ...] = ("dc", "dcc"), data: str | None = None,
    rounds: int = 5,
) -> None:  # fmt: skip
    """The outer loop's ratio, both sides in turn in one process: for machines that others use too.

    Time of processors, so that waiting for them counts nothing: start it on one core (taskset -c 0).

    Args:
        rounds: of one outer loop of each side.
    """
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    table = run.table("case", "method", "eager, s|.2f", "ours, s|.2f", "ratio: median [lowest, highest]")
    for name in run.selected(sizes):
        for method in methods:
            from whence.unlearn.condense import condense

            size = SIZES[name]
            (pool, settings), (loop, _) = problem(size, method, data), eager(size, method, data)
            sides = {
                "eager": lambda loop=loop, size=size: [loop() for _ in range(size.loops)],
                "ours": lambda pool=pool, settings=settings: condense(pool, settings, quiet=True),
            }
            times = paired(sides, rounds, clock=time.process_time)
            each = [times.median(side) / size.loops for side in ("eager", "ours")]
            table.row(name, method, *each, str(times.ratio("eager", "ours")))


@bench.case(default=False)
def primitives(run: Run) -> None:
    """Class-wise gradients of one 3x3 convolution, first and second order, all classes vectorised or in a loop.

    10 classes of 64 images 8x8, 16 channels; XLA's own derivatives or ours; and the machine's product rate."""
    import jax
    import jax.numpy as jnp

    from whence.unlearn.condense.axes import each
    from whence.unlearn.condense.layers import conv, patches

    x = jax.random.normal(jax.random.key(0), (10, 64, 8, 8, 16))
    weight = jax.random.normal(jax.random.key(1), (144, 16))
    rate = product_rate(1024, ("jax",)) / 1e9
    work = 2 * 640 * 64 * 144 * 16 / 1e9
    run.say(f"product of 1024 x 1024: {rate:.0f} GFLOP/s; one convolution: {work:.2f} GFLOP")
    kinds = {
        "XLA's convolution": lambda x, w: jax.lax.conv_general_dilated(
            x, w.reshape(3, 3, 16, 16), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ),
        "unfolded patches": lambda x, w: patches(x, 3, 1) @ w,
        "convolution, patches for the weights' gradient": lambda x, w: conv(x, w, 3, 1),
    }
    table = run.table("convolution", "classes", "gradient, ms|.1f", "its gradient by the images, ms|.1f")
    for name, f in kinds.items():

        def gradient(x: Any, w: Any, f: Any = f) -> Any:
            return jax.grad(lambda w: jnp.sum(jnp.tanh(f(x, w)) ** 2))(w)

        def second(x: Any, w: Any, g: Any = gradient) -> Any:
            return jax.grad(lambda x: jnp.sum(jnp.sin(g(x, w))))(x)

        for vectorised in (True, False):
            cells = []
            for g in (gradient, second):
                program = jax.jit(each(lambda x, g=g: g(x, weight), vectorised))
                cells.append(1e3 * best(lambda program=program: jax.block_until_ready(program(x))))
            table.row(name, "vectorised" if vectorised else "in a loop", *cells)


if __name__ == "__main__":
    bench.main()
