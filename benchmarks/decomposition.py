"""Pursuit and dictionary building beside what people would use instead: same arrays, one run, error beside time.

    python -m benchmarks.decomposition encode            # three shapes; a few minutes on two cores
    python -m benchmarks.decomposition encode --quick    # the first shape
    python -m benchmarks.decomposition build             # to equal error
    python -m benchmarks.decomposition claims            # the paper's headline claims, four seeds
    python -m benchmarks.decomposition claims --store FOLDER   # trained models are kept there, or in your cache

The others: `published`, the loop of the paper in torch, written from its description (dense codes, one product with
all atoms a step); `SAELens-style`, the same with non-negative selection and the checks that SAELens makes at every
step; `orthogonal_mp_gram` of scikit-learn, timed on a few signals and scaled, as it copies the Gram matrix for each.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch

from whence.decomp import ITDA, Activations, kernels
from whence.decomp.kernels import Basis, Code, Pursuit

SHAPES = ((1024, 8192, 256, 32), (2048, 16384, 768, 32), (1024, 32768, 1024, 32))
SKLEARN_SIGNALS = 4
FILLING = (0.3, 0.45)  # thresholds of `build`


class Row(NamedTuple):
    """name; seconds for all signals; error: Σ‖r‖²/Σ‖x‖²; note."""

    name: str
    seconds: float
    error: float
    note: str = ""


@dataclass(frozen=True)
class Machine:
    """What this machine reaches: bytes a second copying far more than its caches, operations a second multiplying."""

    bandwidth: float
    products: float

    @staticmethod
    def measured() -> "Machine":
        source = np.ones(64 << 20, np.float32)
        target = np.empty_like(source)
        copy = best(lambda: np.copyto(target, source))
        a = jnp.ones((2048, 2048))
        multiply = jax.jit(lambda a: a @ a)
        product = best(lambda: multiply(a).block_until_ready())
        return Machine(2 * source.nbytes / copy, 2 * 2048**3 / product)


def best(work: Callable[[], Any], times: int = 3, enough: float = 4.0) -> float:
    """Seconds of the fastest of `times` runs, after one that warms up (and compiles). Where that one took longer than
    `enough`, its own time."""
    first = once(work)[0]
    return first if first > enough else min(once(work)[0] for _ in range(times))


def once(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    made = work()
    return time.perf_counter() - began, made


# -- the others


def published_loop(x: torch.Tensor, atoms: torch.Tensor, k: int) -> torch.Tensor:
    """Signed matching pursuit, dense codes [b a]."""
    residual, codes = x.clone(), torch.zeros(len(x), len(atoms))
    rows = torch.arange(len(x))
    for _ in range(k):
        correlation = residual @ atoms.T
        chosen = correlation.abs().argmax(dim=1)
        value = correlation[rows, chosen]
        codes[rows, chosen] += value
        residual = residual - value[:, None] * atoms[chosen]
    return codes


def saelens_style(x: torch.Tensor, atoms: torch.Tensor, k: int) -> torch.Tensor:
    """Non-negative matching pursuit as SAELens does it by default: a row is done when a step leaves its support as it
    was, or its residual's norm falls below 0.01; both are looked at after every step. Dense codes."""
    residual, codes = x.clone(), torch.zeros(len(x), len(atoms))
    rows, done = torch.arange(len(x)), torch.zeros(len(x), dtype=torch.bool)
    support = codes != 0
    for _ in range(k):
        chosen = torch.relu(residual @ atoms.T).argmax(dim=1)
        value = torch.relu((residual * atoms[chosen]).sum(dim=1)) * ~done
        codes[rows, chosen] += value
        residual = residual - value[:, None] * atoms[chosen]
        used = codes != 0
        done = done | (used == support).all(dim=1) | (residual.norm(dim=1) < 0.01)
        support = used
        if done.all():
            break
    return codes


def sklearn_omp(x: np.ndarray, atoms: np.ndarray, gram: np.ndarray, k: int) -> np.ndarray:
    from sklearn.linear_model import orthogonal_mp_gram

    return orthogonal_mp_gram(gram, atoms @ x.T, n_nonzero_coefs=k).T


# -- encode


def signals(b: int, n: int, d: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Signals of sixteen atoms each, and noise."""
    rng = np.random.default_rng(seed)
    atoms = rng.standard_normal((n, d)).astype(np.float32)
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    x = 0.3 * rng.standard_normal((b, d)).astype(np.float32)
    for _ in range(16):
        x += rng.standard_normal((b, 1)).astype(np.float32) * atoms[rng.integers(0, n, b)]
    return x, atoms


def left(x: np.ndarray, made: np.ndarray) -> float:
    return float(np.sum((x - made) ** 2, dtype=np.float64) / np.sum(x**2, dtype=np.float64))


def encode_rows(b: int, n: int, d: int, k: int, machine: Machine) -> Iterator[Row]:
    """Every implementation on the same signals."""
    x, atoms = signals(b, n, d)
    xt, at = torch.from_numpy(x), torch.from_numpy(atoms)
    slow = b * n * d * k > 2e11
    for name, run in (("published loop (torch)", published_loop), ("SAELens-style (torch)", saelens_style)):
        seconds, codes = once(partial(run, xt, at, k))
        if not slow:
            seconds = min(seconds, once(partial(run, xt, at, k))[0])
        rate = 2 * b * n * d * k / seconds / machine.products
        yield Row(name, seconds, left(x, (codes @ at).numpy()), f"{rate:.0%} of the product rate")
        del codes
    yield from ours(x, atoms, k, machine)
    if n <= 16384:
        few = x[:SKLEARN_SIGNALS]
        gram = atoms @ atoms.T
        seconds, codes = once(lambda: sklearn_omp(few, atoms, gram, k))
        yield Row(
            "orthogonal_mp_gram (scikit-learn)",
            seconds / len(few) * b,
            left(few, codes @ atoms),
            f"{len(few)} signals, scaled",
        )


def ours(x: np.ndarray, atoms: np.ndarray, k: int, machine: Machine) -> Iterator[Row]:
    b, (n, d) = len(x), atoms.shape
    xs, ds = jnp.asarray(x), jnp.asarray(atoms)
    plain = kernels.basis_of(ds, gram=False)

    def row(name: str, pursuit: Pursuit, basis: Basis, note: Callable[[float], str]) -> Row:
        def run() -> Code:
            return jax.block_until_ready(kernels.encode(pursuit, xs, basis))

        seconds = best(run)
        return Row(name, seconds, left(x, np.asarray(kernels.decode(run(), ds))), note(seconds))

    def products(seconds: float) -> str:
        return f"{2 * b * n * d * k / seconds / machine.products:.0%} of the product rate"

    yield row("ours: matching, residual form", kernels.matching_pursuit(k), plain, products)

    def made(dtype: Any) -> Basis:
        return jax.block_until_ready(kernels.basis_of(ds, True, dtype))

    for dtype, size in ((jnp.float32, 4), (jnp.bfloat16, 2)):
        seconds, basis = once(partial(made, dtype))

        def traffic(spent: float, size: int = size, once: float = seconds) -> str:
            share = b * n * k * size / spent / machine.bandwidth
            return f"{share:.0%} of the copy bandwidth for Gram rows; Gram once {once:.1f} s"

        name = "float32" if size == 4 else "bfloat16"
        yield row(f"ours: matching, Gram {name}", kernels.matching_pursuit(k), basis, traffic)
        if size == 4:
            yield row("ours: non-negative, Gram float32", kernels.nonnegative_matching_pursuit(k), basis, traffic)
            yield row("ours: matching + refit, Gram float32", kernels.refitted_matching_pursuit(k), basis, traffic)
            if n <= 16384:
                yield row("ours: orthogonal, Gram float32", kernels.orthogonal_matching_pursuit(k), basis, lambda s: "")
        del basis
    if n <= 8192:
        yield row("ours: orthogonal, residual form", kernels.orthogonal_matching_pursuit(k), plain, products)


def encode(shapes: tuple[tuple[int, int, int, int], ...], machine: Machine) -> None:
    for b, n, d, k in shapes:
        print(f"\nB={b} N={n} d={d} k={k}", flush=True)
        print(f"{'':38s} {'seconds':>9s} {'vs published':>13s} {'left of ‖x‖²':>13s}")
        published = None
        for row in encode_rows(b, n, d, k, machine):
            published = row.seconds if published is None else published
            ratio = f"{published / row.seconds:.2f}x"
            print(f"{row.name:38s} {row.seconds:9.3f} {ratio:>13s} {row.error:13.4f}  {row.note}", flush=True)


# -- build


def published_build(
    x: torch.Tensor, size: int, k: int, unexplained: float, batch: int, seeds: int
) -> tuple[torch.Tensor, int]:
    """The published construction on a stream: seeds, then encode a batch and append every row that fails; crop.
    Atoms, and rows read.

    Rows fail by 2 − 2 cos of the unit row and its unit reconstruction, at the cosine where a projection would leave
    the share `unexplained`.
    """
    unit = x / x.norm(dim=1, keepdim=True)
    atoms, limit = unit[:seeds], 2 - 2 * (1 - unexplained) ** 0.5
    for start in range(0, len(x), batch):
        part = x[start : start + batch]
        made = published_loop(part, atoms, k) @ atoms
        made = made / made.norm(dim=1, keepdim=True)
        error = (unit[start : start + batch] - made).pow(2).sum(dim=1)
        atoms = torch.cat([atoms, unit[start : start + batch][error > limit]])
        if len(atoms) >= size:
            return atoms[:size], start + len(part)
    return atoms, len(x)


def structured(t: int, d: int, parts: int = 6000, seed: int = 0) -> np.ndarray:
    """Activations of a few of many directions each, some far more frequent than others."""
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((parts, d)).astype(np.float32)
    weight = 1 / np.arange(1, parts + 1) ** 0.8
    x = 0.5 * rng.standard_normal((t, d)).astype(np.float32)
    for _ in range(6):
        chosen = rng.choice(parts, t, p=weight / weight.sum())
        x += np.abs(rng.standard_normal((t, 1))).astype(np.float32) * directions[chosen]
    return x


def build(t: int = 65536, d: int = 256, size: int = 4096, k: int = 16, seeds: int = 256) -> None:
    """At a threshold that fills the dictionary from the stream's first activations, and at one so high that the stream
    is read to its end, as in the paper (there 1.3 million activations make 4,096 to 65,536 atoms)."""
    x = structured(t + 4096, d)
    stream, held = x[:t], x[t:]
    print(f"\n{t} activations of width {d}, at most {size} atoms, k={k}", flush=True)
    print(f"{'threshold':>9s} {'':32s} {'seconds':>9s} {'faster':>8s} {'read':>7s} {'atoms':>7s} {'FVU held out':>13s}")
    for unexplained in FILLING:
        first = 0.0
        for row in builds(stream, held, size, k, unexplained, seeds):
            first = first or row.seconds
            print(
                f"{unexplained:9.2f} {row.name:32s} {row.seconds:9.2f} {first / row.seconds:7.1f}x {row.read:7d}"
                f" {row.atoms:7d} {row.fvu:13.4f}",
                flush=True,
            )


class BuildRow(NamedTuple):
    """seconds, activations read and atoms of a build; fvu: on held-out activations."""

    name: str
    seconds: float
    read: int
    atoms: int
    fvu: float


def builds(
    stream: np.ndarray, held: np.ndarray, size: int, k: int, unexplained: float, seeds: int
) -> Iterator[BuildRow]:
    """The published construction and ours, the second time it runs."""

    def fvu(atoms: np.ndarray) -> float:
        code = kernels.encode(kernels.matching_pursuit(k), jnp.asarray(held), kernels.basis_of(jnp.asarray(atoms)))
        return float(np.sum(np.asarray(code.residual)) / np.sum((held - held.mean(axis=0)) ** 2))

    x = torch.from_numpy(stream)
    seconds, (atoms, read) = once(lambda: published_build(x, size, k, unexplained, 2048, seeds))
    yield BuildRow("published construction (torch)", seconds, read, len(atoms), fvu(atoms.numpy()))
    builder = ITDA(size=size, k=k, unexplained=unexplained, seeds=seeds)
    for name in ("ours, with compilation", "ours"):
        seconds, made = once(lambda: builder.build(Activations.of(stream)))
        yield BuildRow(name, seconds, int(made.settings["rows_read"]), len(made), fvu(made.atoms))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("encode", "build", "claims"))
    parser.add_argument("--quick", action="store_true", help="the smallest shape only; two seeds")
    parser.add_argument("--store", help="claims: where trained models are kept; your cache by default")
    given = parser.parse_args()
    if given.what == "claims":
        from whence.cache import Store

        from . import decomposition_shown

        decomposition_shown.main(quick=given.quick, store=Store(given.store))
        return
    machine = Machine.measured()
    threads = f"{torch.get_num_threads()} torch threads"
    print(f"copy {machine.bandwidth / 1e9:.0f} GB/s, float32 product {machine.products / 1e9:.0f} GFLOP/s, {threads}")
    if given.what == "encode":
        encode(SHAPES[:1] if given.quick else SHAPES, machine)
    else:
        build()


if __name__ == "__main__":
    main()
