"""EK-FAC on a GPU beside kronfluence 1.0.1: fit, pairwise scores and self-influence at the shape of GPT-2 small.

Each side is a process of its own, in float32 and in TF32. Times are inside the process: the first call counts its
compilation, the second does not. The model has random weights, and each side samples labels of its own; the correlation
of scores says whether both compute the same. Peak memory is what torch and JAX allocated on the GPU.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from .harness import Benchmark, Run
from .timing import best
from .transformer import Side, Size, bound, correlation, outcomes

bench = Benchmark(__file__, __doc__, example="--layers 2 --train 64")
PRODUCTS = ("float32", "tf32")


def twice(side: Side, name: str, work: Callable[[], Any]) -> Any:
    """With compilation, then without."""
    side.time(f"{name}, first", work)
    return side.time(name, work)


def whence_side(folder: Path) -> None:
    from whence import attrib

    side, found = Side(folder), {}
    trained, queries = bound(side.model, side.size, device=side.device)
    for products in PRODUCTS:
        method = attrib.EKFAC(products=products, redraw=False)  # type: ignore[arg-type]
        factors = twice(side, f"fit, {products}", lambda method=method: method.fit(trained))

        def score(factors: Any = factors, products: str = products) -> Any:
            return factors.score(queries, precision=products, rank=None)

        found[f"scores, {products}"] = twice(side, f"pairwise, {products}", score).values
        found[f"self-influence, {products}"] = twice(side, f"self, {products}", factors.self_influence).values
    side.finish("whence", **found)


def kronfluence_side(folder: Path) -> None:
    side, found = Side(folder), {}
    peer, train, queries = side.kronfluence()
    for products in PRODUCTS:
        torch.backends.cuda.matmul.allow_tf32 = products == "tf32"
        twice(side, f"fit, {products}", lambda: peer.fit(train))
        found[f"scores, {products}"] = twice(side, f"pairwise, {products}", lambda: peer.pairwise(queries, train))
        found[f"self-influence, {products}"] = twice(side, f"self, {products}", lambda: peer.self_scores(train))
    side.finish("kronfluence", **found)


bench.side("whence", whence_side)
bench.side("kronfluence", kronfluence_side)


@bench.case(quick={"layers": 1, "width": 96, "length": 32, "vocabulary": 128, "train": 32, "queries": 4})
def gpt2(
    run: Run, layers: int = 12, width: int = 768, length: int = 512, vocabulary: int = 50257, train: int = 256,
    queries: int = 32, device: Literal["cuda", "cpu"] = "cuda",
    sides: tuple[Literal["whence", "kronfluence"], ...] = ("whence", "kronfluence"),
) -> None:  # fmt: skip
    """Seconds of both sides, their ratio, agreement and memory.

    Args:
        layers: blocks; the two layers of each block's MLP are attributed to.
        width: of the model, in twelve heads.
        length: tokens of a sequence.
        vocabulary: tokens.
        train: training sequences.
        queries: queries.
        device: cpu only to try the script.
        sides: which ones run.
    """
    if device == "cuda" and not torch.cuda.is_available():
        run.say("torch sees no CUDA device: nothing is measured. --device cpu --quick tries the script.")
        return
    size = Size(width, layers, 12, length, vocabulary, train, queries)
    torch.manual_seed(0)
    found = outcomes(bench, size, size.model(), sides, device=device)
    ratio = len(found) == 2
    table = run.table("job", *(f"{name}, s|.2f" for name in found), *["ratio|.2f"] * ratio, title=f"{device}: {size}")
    for name in next(iter(found.values())).seconds:
        seconds = [outcome.seconds[name] for outcome in found.values()]
        ratios = [found["kronfluence"].seconds[name] / found["whence"].seconds[name]] if ratio else []
        table.row(name, *seconds, *ratios)
    run.say("\npeak memory: " + ", ".join(f"{name} {outcome.peak / 1e9:.2f} GB" for name, outcome in found.items()))
    run.say(f"JAX's devices: {', '.join(outcome.jax for outcome in found.values() if outcome.jax)}")
    for name, ours in found["whence"].arrays.items() if ratio else ():
        run.say(f"correlation of {name}: {correlation(ours, found['kronfluence'].arrays[name]):.4f}")


PURSUITS = ((1024, 8192, 256, 32), (4096, 16384, 768, 32), (8192, 32768, 1024, 32))


@bench.case(quick={"shapes": ((64, 128, 32, 4),), "device": "cpu"})
def pursuit(
    run: Run, shapes: tuple[tuple[int, int, int, int], ...] = PURSUITS, device: Literal["cuda", "cpu"] = "cuda"
) -> None:
    """Matching pursuit with the Gram matrix against the published loop in torch.

    Args:
        shapes: (signals, atoms, width, steps) of every row.
        device: cpu only to try the script.
    """
    import jax

    from whence.decomp import kernels

    from .decomposition import published_loop, signals, unexplained_share

    def encoded(k: int, x: Any, basis: Any) -> Any:
        return jax.block_until_ready(kernels.encode(kernels.matching_pursuit(k), x, basis, chunk=len(x)))

    def finished_loop(x: torch.Tensor, atoms: torch.Tensor, k: int) -> None:
        published_loop(x, atoms, k)[0, 0].item()  # waits for the device

    table = run.table("B, N, d, k", "ours, ms|.1f", "published, ms|.1f", "ratio|.1f", "published in TF32, ms|.1f",
                      "ratio|.1f", "unexplained, ours|.4f", "published|.4f", title="Matching pursuit")  # fmt: skip
    for b, n, d, k in shapes:
        x, atoms = signals(b, n, d)
        xs, basis = jax.numpy.asarray(x), kernels.basis_of(jax.numpy.asarray(atoms), gram=True)
        code = encoded(k, xs, basis)
        ours = best(partial(encoded, k, xs, basis), rounds=5)
        xt, at = torch.as_tensor(x, device=device), torch.as_tensor(atoms, device=device)
        seconds = []
        for tf32 in (False, True):
            torch.backends.cuda.matmul.allow_tf32 = tf32
            seconds.append(best(partial(finished_loop, xt, at, k), rounds=5))
        torch.backends.cuda.matmul.allow_tf32 = False
        theirs = (published_loop(xt, at, k) @ at).cpu().numpy()
        errors = (unexplained_share(x, np.asarray(kernels.decode(code, basis.atoms))), unexplained_share(x, theirs))
        full, tf = seconds
        table.row(f"{b}, {n}, {d}, {k}", 1e3 * ours, 1e3 * full, full / ours, 1e3 * tf, tf / ours, *errors)


@bench.case(quick={"models": 4, "alone": 1, "device": "cpu"})
def bank(run: Run, models: int = 64, alone: int = 2, device: Literal["cuda", "cpu"] = "cuda") -> None:
    """A bank of small models against the same training one by one in eager torch.

    Args:
        models: of the bank.
        alone: models that are trained one by one; their time is scaled.
        device: cpu only to try the script.
    """
    from dataclasses import replace

    from whence.cache import subset_masks

    from .bank import MODELS, bank_of, compare

    table = run.table("model", "copies", "one by one, s|.1f", "bank, s|.2f", "ratio", "largest difference|.0e",
                      title="Bank of small models")  # fmt: skip
    for name, build in MODELS.items():
        models_there = replace(bank_of(build), device=device)
        models_there.run(subset_masks(400, models, 0.5), quiet=True)
        found = compare(build, models_there, models, alone, rounds=1)
        table.row(name, models, found.alone, found.bank, str(found.ratio), found.off)


if __name__ == "__main__":
    bench.main()
