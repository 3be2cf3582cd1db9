"""The passes of a fit: sums over examples, partition by partition, and the eigenbases between them.

Every sum is kept per partition (a fixed run of examples) in float64 and reduced in order, so it does not depend on
batching, on how often the job was killed, or on how many workers computed it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Float

from whence.cache import ArraySpec, DataError, NumericalError, TrainedModel, UsageError
from whence.cache.errors import enough_memory
from whence.cache.jobs.cluster import INLINE
from whence.cache.jobs.partitions import ordered_sum
from whence.cache.jobs.threads import in_threads
from whence.cache.model.batches import BatchSource, CapturedBatch
from whence.cache.model.bridge import to_accelerator, to_numpy
from whence.cache.store.layout import Shard

from . import host_products, kernels
from .memory import check_fit_fits, factor_limit

PARTITION_EXAMPLES = 512
MAX_PARTITIONS = 16
ORTHOGONAL = 2e-5  # largest |Q^T Q - I| accepted of a float32 eigenbasis


class Moments(NamedTuple):
    """Mean moments of a site: A [i i] and S [o o] over counted positions; positions per example."""

    a: np.ndarray
    s: np.ndarray
    per_example: float


class Eigenbasis(NamedTuple):
    """values: ascending eigenvalues [n], not below zero. vectors: column eigenvectors [n n]."""

    values: np.ndarray
    vectors: np.ndarray


def partition_count(examples: int) -> int:
    return int(min(MAX_PARTITIONS, max(1, -(-examples // PARTITION_EXAMPLES))))


def partition_rows(examples: int, partition: int, count: int) -> np.ndarray:
    """Row numbers of one of `count` partitions, fixed when the entry of the sums is created."""
    return np.array_split(np.arange(examples), count)[partition]


Sums = Callable[[int], dict[str, np.ndarray]]


@dataclass(frozen=True)
class _Row:
    """A partition's sums as the one row of its shard."""

    work: Sums

    def __call__(self, shard: Shard) -> dict[str, np.ndarray]:
        return {name: np.asarray(value)[None] for name, value in self.work(shard.start).items()}


def sum_partitions(
    trained: TrainedModel,
    inputs: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    count: int,
    work: Sums,
    desc: str,
) -> tuple[dict[str, np.ndarray], str]:
    """work(partition) -> named float64 sums, for `count` partitions, each stored as soon as it is done, on the
    trained model's cluster; returns the totals, added in order of partition, and the entry's key.

    Raises UsageError for a cluster without a store.
    """
    store = trained.store
    if store is None:
        if trained.cluster not in ("inline", INLINE):
            raise UsageError("A cluster needs a store for its workers' partitions.", "Give store=Store().")
        with enough_memory(desc):
            totals = work(0)
            for partition in range(1, count):
                for name, value in work(partition).items():
                    totals[name] += value
        return totals, ""
    specs = {name: ArraySpec((count, *shape), "float64") for name, shape in shapes.items()}
    entry = trained.job("factors", inputs, specs, _Row(work), shard_rows=1, desc=desc)
    return {name: ordered_sum(entry, name) for name in shapes}, entry.key


def first_batch(source: BatchSource) -> CapturedBatch:
    return next(iter(source.batches(np.arange(1), desc="probe")))


@dataclass(frozen=True)
class MomentSums:
    """The input and output-gradient moments of one partition."""

    source: BatchSource
    owner: Mapping[str, str]
    rows: np.ndarray
    count: int
    half: bool = False

    def __call__(self, partition: int) -> dict[str, np.ndarray]:
        sums: dict[str, kernels.Sum] = {}
        counts: dict[str, list[jax.Array]] = {name: [] for name in self.owner}  # read at the end: reading one waits
        rows = self.rows[partition_rows(len(self.rows), partition, self.count)]
        on_host = jax.default_backend() == "cpu"
        add = partial(host_products.add_moment, half=self.half) if on_host else kernels.add_moment
        for batch in self.source.batches(rows, "moments"):
            counted: dict[int, jax.Array] = {}  # sites of one width share their weights
            for name, owner in self.owner.items():
                a, g, weight = batch.inputs[name], batch.grads[name], batch.weights[name]
                if owner == name:
                    fold(sums, f"{name}/A", (a.shape[-1],) * 2, add, a, weight)
                fold(sums, f"{name}/S", (g.shape[-1],) * 2, add, g, weight)
                if id(weight) not in counted:
                    counted[id(weight)] = jnp.sum(weight[: len(batch.rows)])
                counts[name].append(counted[id(weight)])
        positions = {f"{name}/positions": np.asarray(sum(map(float, each), 0.0)) for name, each in counts.items()}
        return finished(sums) | positions


def moments(
    source: BatchSource, inputs: Mapping[str, Any], examples: int | None = None, *, half: bool = False
) -> tuple[dict[str, Moments], str]:
    """Input and output-gradient moments of every site (Grosse et al. 2023, Section 2.2), over all examples or over
    `examples` of them, evenly spaced; half: products of a CPU in bfloat16."""
    sites, total = source.sites, len(source.examples)
    check_fit_fits(sites, factor_limit(source.trained))
    examples = total if examples is None else min(examples, total)
    rows = np.linspace(0, total - 1, examples).round().astype(np.int64)
    owner = first_batch(source).owners
    shapes: dict[str, tuple[int, ...]] = {}
    for site in sites:
        o, i = site.shape
        if owner[site.name] == site.name:
            shapes[f"{site.name}/A"] = (i, i)
        shapes[f"{site.name}/S"] = (o, o)
        shapes[f"{site.name}/positions"] = ()
    parts = partition_count(examples)
    work = MomentSums(source, owner, rows, parts, half)
    stage = {**inputs, "stage": "moments"} | ({} if examples == total else {"examples": examples})
    totals, key = sum_partitions(source.trained, stage, shapes, parts, work, "moments")
    check_some_gradient(totals[f"{site.name}/S"] for site in sites)
    averages: dict[str, np.ndarray] = {}  # one array for all that share it, so that it is decomposed once
    found = {}
    for site in sites:
        count = float(totals[f"{site.name}/positions"])
        first = owner[site.name]
        if first not in averages:
            averages[first] = _divided(totals[f"{first}/A"], count)
        found[site.name] = Moments(averages[first], _divided(totals[f"{site.name}/S"], count), count / examples)
    return found, key


def _divided(total: np.ndarray, count: float) -> np.ndarray:
    return np.divide(total, max(count, 1), out=total)


def fold(
    sums: dict[str, kernels.Sum], name: str, shape: tuple[int, ...], add: Callable[..., kernels.Sum], *terms: jax.Array
) -> None:
    """Add terms to a running sum, zeros at first; the sum before is not used again, as its memory may be."""
    start = sums.pop(name) if name in sums else kernels.zero_sum(shape, terms[0].dtype)
    sums[name] = add(start, *terms)


def to_float64(total: kernels.Sum) -> np.ndarray:
    return np.add(to_numpy(total.high), to_numpy(total.low), dtype=np.float64)


def finished(sums: Mapping[str, kernels.Sum]) -> dict[str, np.ndarray]:
    """Running sums as float64 on the host. Raises NumericalError naming one that is not finite."""
    values = in_threads(to_float64, sums.values(), sum(total.high.nbytes for total in sums.values()))
    out = dict(zip(sums, values))
    check_finite(out)
    return out


def check_finite(sums: Mapping[str, np.ndarray]) -> None:
    for name, value in sums.items():
        if not np.isfinite(value).all():
            raise NumericalError(
                f"The sum {name} is not finite.",
                "A gradient overflowed or is NaN: look at the examples of this partition, or use float32 weights.",
            )


def check_some_gradient(sums: Iterable[np.ndarray]) -> None:
    """Raise DataError when nothing in the data moves the model."""
    if not any(value.any() for value in sums):
        raise DataError(
            "The loss has no gradient at any site: no label is counted in any example.",
            "Look at the labels (-100 is not counted) and the attention mask.",
        )


def bases_of(found: Mapping[str, Moments], dtype: str) -> tuple[dict[str, Eigenbasis], dict[str, Eigenbasis]]:
    """Eigenbases of A and of S at every site."""
    return (
        eigenbases({name: m.a for name, m in found.items()}, dtype),
        eigenbases({name: m.s for name, m in found.items()}, dtype),
    )


def eigenbases(matrices: Mapping[str, np.ndarray], dtype: str) -> dict[str, Eigenbasis]:
    """The eigenbasis of every matrix, two decompositions at a time."""
    unique = {id(m): m for m in matrices.values()}
    sizes = sum(m.nbytes for m in unique.values())
    solved = dict(zip(unique, in_threads(lambda m: eigenbasis(m, dtype), unique.values(), sizes, threads=2)))
    return {name: solved[id(m)] for name, m in matrices.items()}


def eigenbasis(matrix: np.ndarray, dtype: str = "float32") -> Eigenbasis:
    """Eigendecomposition of a symmetric matrix in `dtype`; float32 is checked for orthogonality, and float64 is
    used if it falls short. Any orthogonal basis keeps EK-FAC's eigenvalues unbiased, a skewed one does not."""
    if dtype == "float32":
        scale = max(matrix.max(), -matrix.min()) or 1.0
        values, vectors, error = _eigh(np.multiply(matrix, 1 / scale, dtype=np.float32, casting="same_kind"))
        if error <= ORTHOGONAL:
            return Eigenbasis(np.maximum(values.astype(np.float64) * scale, 0), vectors)
    values, vectors = scipy.linalg.eigh((matrix + matrix.T) / 2, driver="evd")
    return Eigenbasis(np.maximum(values, 0), vectors if dtype == "float64" else vectors.astype(np.float32))


def _eigh(matrix: Float[np.ndarray, "n n"]) -> tuple[np.ndarray, np.ndarray, float]:
    """Eigenvalues, eigenvectors and the largest |Q^T Q - I| (NaN if not finite): on an accelerator if JAX has one, else
    by LAPACK on the host."""
    if jax.default_backend() == "cpu":
        values, vectors = scipy.linalg.eigh((matrix + matrix.T) / 2, driver="evd", overwrite_a=True)
        return values, vectors, float(np.abs(vectors.T @ vectors - np.eye(len(vectors), dtype=np.float32)).max())
    values, vectors, error = kernels.checked_eigh(to_accelerator(matrix))
    return np.asarray(values), to_numpy(vectors), float(error)


SiteSum: TypeAlias = Callable[[str, kernels.Sum, Any, Any], kernels.Sum]  # (name, sum, a, g) -> sum; picklable
Parts: TypeAlias = Mapping[str, tuple[str, tuple[int, ...]]]  # name of a sum -> its site, its shape


@dataclass(frozen=True)
class SiteSums:
    """Sums of one partition over the gradients at every site."""

    source: BatchSource
    parts: Parts
    add: SiteSum
    count: int
    desc: str

    def __call__(self, partition: int) -> dict[str, np.ndarray]:
        sums: dict[str, kernels.Sum] = {}
        rows = partition_rows(len(self.source.examples), partition, self.count)
        for batch in self.source.batches(rows, self.desc):
            for name, (site, shape) in self.parts.items():
                fold(sums, name, shape, partial(self.add, name), batch.inputs[site], batch.grads[site])
        return finished(sums)


def fold_sites(
    source: BatchSource, inputs: Mapping[str, Any], add: SiteSum, desc: str, parts: Parts | None = None
) -> tuple[dict[str, np.ndarray], str]:
    """Means over examples of sums at every site, and their entry's key: add(name, sum, a, g) folds one batch into a
    sum. parts: by default one sum [o i] a site, of its name."""
    parts = parts or {site.name: (site.name, site.shape) for site in source.sites}
    examples = len(source.examples)
    count = partition_count(examples)
    work = SiteSums(source, parts, add, count, desc)
    shapes = {name: shape for name, (_, shape) in parts.items()}
    totals, key = sum_partitions(source.trained, inputs, shapes, count, work, desc)
    check_some_gradient(totals.values())
    return {name: total / examples for name, total in totals.items()}, key
