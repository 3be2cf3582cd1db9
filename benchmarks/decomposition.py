"""Pursuit and dictionary building beside what people would use instead: same arrays, one run, error beside time.

The others: `published`, the loop of the paper in torch, written from its description (dense codes, one product with
all atoms a step); `SAELens-style`, the same with non-negative selection and the checks that SAELens makes at every
step; `orthogonal_mp_gram` of scikit-learn, timed on a few signals and scaled, as it copies the Gram matrix for each.
Claims about ITDA (Leask et al. 2025) are measured on small models, which are trained on first use and then stored.
"""

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

from .harness import Benchmark, Run
from .timing import best, best_and_result, product_rate, timed

bench = Benchmark(__file__, __doc__, example="encode --quick")
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
    """What this machine reaches: bytes per second copying far more than its caches, operations per second of
    products."""

    bandwidth: float
    products: float

    @staticmethod
    def measured() -> "Machine":
        source = np.ones(64 << 20, np.float32)
        target = np.empty_like(source)
        return Machine(2 * source.nbytes / best(lambda: np.copyto(target, source)), product_rate(2048, ("jax",)))


# -- the others


def published_loop(x: torch.Tensor, atoms: torch.Tensor, k: int) -> torch.Tensor:
    """Signed matching pursuit, dense codes [b a]."""
    residual, codes = x.clone(), torch.zeros(len(x), len(atoms), device=x.device)
    rows = torch.arange(len(x), device=x.device)
    for _ in range(k):
        correlation = residual @ atoms.T
        chosen = correlation.abs().argmax(dim=1)
        value = correlation[rows, chosen]
        codes[rows, chosen] += value
        residual = residual - value[:, None] * atoms[chosen]
    return codes


def saelens_style(x: torch.Tensor, atoms: torch.Tensor, k: int) -> torch.Tensor:
    """Non-negative matching pursuit as SAELens does it by default: a row stops when a step does not change its support,
    or when its residual's norm falls below 0.01; both are checked after every step. Dense codes."""
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


def unexplained_share(x: np.ndarray, decoded: np.ndarray) -> float:
    return float(np.sum((x - decoded) ** 2, dtype=np.float64) / np.sum(x**2, dtype=np.float64))


def encode_rows(b: int, n: int, d: int, k: int, machine: Machine) -> Iterator[Row]:
    """Every implementation on the same signals."""
    x, atoms = signals(b, n, d)
    xt, at = torch.from_numpy(x), torch.from_numpy(atoms)
    slow = b * n * d * k > 2e11
    for name, run in (("published loop (torch)", published_loop), ("SAELens-style (torch)", saelens_style)):
        seconds, codes = best_and_result(partial(run, xt, at, k), 1 if slow else 2)
        rate = 2 * b * n * d * k / seconds / machine.products
        yield Row(name, seconds, unexplained_share(x, (codes @ at).numpy()), f"{rate:.0%} of the product rate")
        del codes
    yield from ours(x, atoms, k, machine)
    if n <= 16384:
        few = x[:SKLEARN_SIGNALS]
        gram = atoms @ atoms.T
        seconds, codes = timed(lambda: sklearn_omp(few, atoms, gram, k))
        yield Row(
            "orthogonal_mp_gram (scikit-learn)",
            seconds / len(few) * b,
            unexplained_share(few, codes @ atoms),
            f"{len(few)} signals, scaled",
        )


def ours(x: np.ndarray, atoms: np.ndarray, k: int, machine: Machine) -> Iterator[Row]:
    b, (n, d) = len(x), atoms.shape
    xs, ds = jnp.asarray(x), jnp.asarray(atoms)
    plain = kernels.basis_of(ds, gram=False)

    def row(name: str, pursuit: Pursuit, basis: Basis, note: Callable[[float], str]) -> Row:
        def run() -> Code:
            return jax.block_until_ready(kernels.encode(pursuit, xs, basis))

        seconds = best(run, enough=4.0)
        return Row(name, seconds, unexplained_share(x, np.asarray(kernels.decode(run(), ds))), note(seconds))

    def products(seconds: float) -> str:
        return f"{2 * b * n * d * k / seconds / machine.products:.0%} of the product rate"

    yield row("ours: matching, residual form", kernels.matching_pursuit(k), plain, products)

    def basis_in(dtype: Any) -> Basis:
        return jax.block_until_ready(kernels.basis_of(ds, True, dtype))

    for dtype, size in ((jnp.float32, 4), (jnp.bfloat16, 2)):
        seconds, basis = timed(partial(basis_in, dtype))

        def traffic(spent: float, size: int = size, gram: float = seconds) -> str:
            share = b * n * k * size / spent / machine.bandwidth
            return f"{share:.0%} of the copy bandwidth for Gram rows; Gram once {gram:.1f} s"

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


@bench.case(quick={"shapes": 1})
def encode(run: Run, shapes: int = len(SHAPES)) -> None:
    """Every implementation on the same signals, a few minutes on two cores.

    Args:
        shapes: how many, from the smallest.
    """
    machine = announced(run)
    for b, n, d, k in SHAPES[:shapes]:
        table = run.table("implementation", "seconds|.3f", "vs published|.2f", "unexplained share of ‖x‖²|.4f", "note",
                          title=f"B={b} N={n} d={d} k={k}")  # fmt: skip
        published = None
        for row in encode_rows(b, n, d, k, machine):
            published = published or row.seconds
            table.row(row.name, row.seconds, published / row.seconds, row.error, row.note)


def announced(run: Run) -> Machine:
    machine = Machine.measured()
    run.say(f"copy {machine.bandwidth / 1e9:.0f} GB/s, float32 product {machine.products / 1e9:.0f} GFLOP/s, "
            f"{torch.get_num_threads()} torch threads")  # fmt: skip
    return machine


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


class BuildRow(NamedTuple):
    """Seconds, activations read and atoms of a build; fvu: on held-out activations."""

    name: str
    seconds: float
    read: int
    atoms: int
    fvu: float


def builds(
    stream: np.ndarray, held_out: np.ndarray, size: int, k: int, unexplained: float, seeds: int
) -> Iterator[BuildRow]:
    """The published construction and ours, the second time it runs."""

    def fvu(atoms: np.ndarray) -> float:
        code = kernels.encode(kernels.matching_pursuit(k), jnp.asarray(held_out), kernels.basis_of(jnp.asarray(atoms)))
        return float(np.sum(np.asarray(code.residual)) / np.sum((held_out - held_out.mean(axis=0)) ** 2))

    x = torch.from_numpy(stream)
    seconds, (atoms, read) = timed(lambda: published_build(x, size, k, unexplained, 2048, seeds))
    yield BuildRow("published construction (torch)", seconds, read, len(atoms), fvu(atoms.numpy()))
    builder = ITDA(size=size, k=k, unexplained=unexplained, seeds=seeds)
    for name in ("ours, with compilation", "ours"):
        seconds, built = timed(lambda: builder.build(Activations.of(stream)))
        yield BuildRow(name, seconds, int(built.settings["rows_read"]), len(built), fvu(built.atoms))


@bench.case(quick={"t": 8192, "size": 512})
def build(run: Run, t: int = 65536, d: int = 256, size: int = 4096, k: int = 16, seeds: int = 256) -> None:
    """To equal error, at two thresholds: one that the stream's first activations fill, one that reads it to the end.

    In the paper 1.3 million activations give 4,096 to 65,536 atoms.

    Args:
        t: activations of the stream.
        d: their width.
        size: atoms at most.
        k: pursuit steps.
        seeds: first atoms.
    """
    announced(run)
    x = structured(t + 4096, d)
    title = f"{t} activations of width {d}, at most {size} atoms, k={k}"
    table = run.table("threshold|.2f", "construction", "seconds|.2f", "faster|.1f", "read", "atoms",
                      "FVU on held-out activations|.4f", title=title)  # fmt: skip
    for unexplained in FILLING:
        first = 0.0
        for row in builds(x[:t], x[t:], size, k, unexplained, seeds):
            first = first or row.seconds
            table.row(unexplained, row.name, row.seconds, first / row.seconds, row.read, row.atoms, row.fvu)


@bench.case(quick={"epochs": 1, "longest": 2})
def autoencoders(run: Run, epochs: int = 2, longest: int = 20) -> None:
    """A matching-pursuit autoencoder that starts from ITDA's atoms, beside TopK, BatchTopK and ITDA: at equal time, and
    at equal L0, as every codec has 8 steps or latents. ITDA's time counts as part of the matching-pursuit
    autoencoder's; each rate is chosen on validation activations; figures are of held-out ones.

    Args:
        epochs: that the model, of one seed, is trained.
        longest: multiple of ITDA's time up to which autoencoders are trained.
    """
    from . import decomposition_claims as claims
    from .decomposition_models import Plan, data, trained

    plan = Plan(seeds=1, layers=3, width=48, epochs=epochs, middle=1, multiples=(min(5, longest), longest))
    read = data()
    at = claims.place(plan, trained(plan, plan.width, 0, read, run.store), read, run.store)
    built = claims.build(at)
    budget = claims.Budget.of(plan, [built])
    table = run.table("codec", "seconds|.2f", "read|.0f", "L0|.1f", "FVU|.4f", "CE, zero abl.|.4f", "CE, mean abl.|.4f",
                      title=f"One layer of width {plan.width}, {len(built.dictionary)} atoms, one seed")  # fmt: skip

    def row(name: str, found: claims.Figures) -> None:
        table.row(name, found.seconds, found.rows, found.l0, found.fvu, found.zero, found.mean)

    for name, found in claims.dictionaries_judged(built, at, read.held_out):
        row(name, found)
    rates = claims.sweep(budget, at)
    for (kind, mark), found in claims.autoencoders_judged(budget, rates, at, read.held_out):
        row(f"{kind}, {mark}", found)
    for mark, found in claims.trained_atoms_judged(built, budget, at, read.held_out):
        row(f"matching pursuit, {mark}", found)


@bench.case(quick={"short": True})
def claims(run: Run, short: bool = False) -> None:
    """The paper's headline claims, four seeds.

    Args:
        short: two seeds, short training; shows what the tables look like.
    """
    from .decomposition_shown import show

    show(run, short)


if __name__ == "__main__":
    bench.main()
