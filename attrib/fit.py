"""The passes of a fit: sums over examples, partition by partition, and the eigenbases between them.

Every sum is kept per partition (a fixed run of examples) in float64 and reduced in order, so it does not depend on
batching, on how often the job was killed, or on how many workers made it.
"""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy.linalg

from cache import ArraySpec, DataError, NumericalError, Store
from cache.build import Frame, Replay

from . import kernels

PARTITION_EXAMPLES = 512
MAX_PARTITIONS = 16
ORTHOGONAL = 2e-5  # largest |Q^T Q - I| accepted of a float32 eigenbasis


class Moments(NamedTuple):
    """Mean moments of a site: A [i i] and S [o o] over counted positions; positions per example."""

    a: np.ndarray
    s: np.ndarray
    per_example: float


def partition_count(examples: int) -> int:
    return int(min(MAX_PARTITIONS, max(1, -(-examples // PARTITION_EXAMPLES))))


def partition_rows(examples: int, partition: int) -> np.ndarray:
    """Row numbers of one partition: fixed by the number of examples alone."""
    return np.array_split(np.arange(examples), partition_count(examples))[partition]


def sum_partitions(
    store: Store | None,
    inputs: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    count: int,
    work: Callable[[int], dict[str, np.ndarray]],
) -> tuple[dict[str, np.ndarray], str]:
    """work(partition) -> named float64 sums, for `count` partitions, each kept in the store as soon as it is done;
    returns the totals, added in order of partition, and the entry's key."""
    if store is None:
        totals = {name: np.zeros(shape) for name, shape in shapes.items()}
        for partition in range(count):
            for name, value in work(partition).items():
                totals[name] += value
        return totals, ""
    specs = {name: ArraySpec((count, *shape), "float64") for name, shape in shapes.items()}
    with store.writer("factors", inputs, specs, shard_rows=1) as writer:
        for shard in writer.todo():
            writer.write(shard, {name: value[None] for name, value in work(shard.start).items()})
        entry = writer.seal()
    totals = {name: np.zeros(shape) for name, shape in shapes.items()}
    for name, total in totals.items():
        for partition in range(count):
            total += entry.slice(name, partition, partition + 1)[0]
    return totals, entry.key


def shared_inputs(frame: Frame) -> dict[str, str]:
    """site -> the first site that reads the same input: their A is one."""
    first: dict[int, str] = {}
    return {site: first.setdefault(id(array), site) for site, array in frame.inputs.items()}


def first_frame(replay: Replay) -> Frame:
    return next(iter(replay.frames(np.arange(1), desc="probe", quiet=True)))


def moments(
    replay: Replay, store: Store | None, inputs: Mapping[str, Any], quiet: bool = False
) -> tuple[dict[str, Moments], str]:
    """Input and output-gradient moments of every site over all examples (Grosse et al. 2023, Section 2.2)."""
    sites, examples = replay.run.sites, len(replay.run.examples)
    owner = shared_inputs(first_frame(replay))
    shapes: dict[str, tuple[int, ...]] = {}
    for site in sites:
        o, i = site.shape
        if owner[site.name] == site.name:
            shapes[f"{site.name}/A"] = (i, i)
        shapes[f"{site.name}/S"] = (o, o)
        shapes[f"{site.name}/positions"] = ()
    parts = partition_count(examples)

    def work(partition: int) -> dict[str, np.ndarray]:
        sums: dict[str, kernels.Sum] = {}
        positions = {site.name: 0.0 for site in sites}
        rows = partition_rows(examples, partition)
        for frame in replay.frames(rows, f"moments {partition + 1}/{parts}", quiet):
            for site in sites:
                name, weight = site.name, frame.weights[site.name]
                if owner[name] == name:
                    _fold(sums, f"{name}/A", kernels.add_moment, frame.inputs[name], weight)
                _fold(sums, f"{name}/S", kernels.add_moment, frame.grads[name], weight)
                positions[name] += float(jnp.sum(weight[: len(frame.rows)]))
        out = {name: to_float64(total) for name, total in sums.items()}
        check_finite(out)
        return out | {f"{name}/positions": np.asarray(count, np.float64) for name, count in positions.items()}

    totals, key = sum_partitions(store, {**inputs, "stage": "moments"}, shapes, parts, work)
    check_some_gradient(totals[f"{site.name}/S"] for site in sites)
    found = {}
    for site in sites:
        count = float(totals[f"{site.name}/positions"])
        a, s = totals[f"{owner[site.name]}/A"], totals[f"{site.name}/S"]
        found[site.name] = Moments(a / max(count, 1), s / max(count, 1), count / examples)
    return found, key


def _fold(sums: dict[str, kernels.Sum], name: str, add: Callable[..., kernels.Sum], x: Any, weight: Any) -> None:
    width = x.shape[-1]
    start = sums.pop(name) if name in sums else kernels.zero_sum((width, width), x.dtype)
    sums[name] = add(start, x, weight)


def to_float64(total: kernels.Sum) -> np.ndarray:
    return np.asarray(total.high, np.float64) + np.asarray(total.low, np.float64)


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


def eigenbases(matrices: Mapping[str, np.ndarray], dtype: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """name -> (eigenvalues ascending, column eigenvectors), two decompositions at a time."""
    unique = {id(m): m for m in matrices.values()}
    with ThreadPoolExecutor(2) as pool:
        solved = dict(zip(unique, pool.map(lambda m: eigenbasis(m, dtype), unique.values())))
    return {name: solved[id(m)] for name, m in matrices.items()}


def eigenbasis(matrix: np.ndarray, dtype: str = "float32") -> tuple[np.ndarray, np.ndarray]:
    """Eigendecomposition of a symmetric matrix in `dtype`; float32 is checked for orthogonality and done again in
    float64 where it falls short. Any orthogonal basis keeps EK-FAC's eigenvalues unbiased, a skewed one does not."""
    symmetric = (matrix + matrix.T) / 2
    if dtype == "float32":
        scale = np.abs(symmetric).max() or 1.0
        values, vectors = scipy.linalg.eigh((symmetric / scale).astype(np.float32), driver="evd", overwrite_a=True)
        error = np.abs(vectors.T @ vectors - np.eye(len(vectors), dtype=np.float32)).max()
        if np.isfinite(error) and error <= ORTHOGONAL:
            return np.maximum(values.astype(np.float64) * scale, 0), vectors
    values, vectors = scipy.linalg.eigh(symmetric, driver="evd")
    return np.maximum(values, 0), vectors if dtype == "float64" else vectors.astype(np.float32)


def fold_sites(
    replay: Replay,
    store: Store | None,
    inputs: Mapping[str, Any],
    add: Callable[[str, kernels.Sum, Any, Any], kernels.Sum],
    desc: str,
    quiet: bool = False,
) -> tuple[dict[str, np.ndarray], str]:
    """Mean over examples of an [o i] sum at every site: add(site, sum, a, g) folds one frame in."""
    sites, examples = replay.run.sites, len(replay.run.examples)
    parts = partition_count(examples)

    def work(partition: int) -> dict[str, np.ndarray]:
        sums: dict[str, kernels.Sum] = {}
        for frame in replay.frames(partition_rows(examples, partition), f"{desc} {partition + 1}/{parts}", quiet):
            for site in sites:
                a, g = frame.inputs[site.name], frame.grads[site.name]
                start = sums.pop(site.name) if site.name in sums else kernels.zero_sum(site.shape, a.dtype)
                sums[site.name] = add(site.name, start, a, g)
        out = {name: to_float64(total) for name, total in sums.items()}
        check_finite(out)
        return out

    totals, key = sum_partitions(store, inputs, {site.name: site.shape for site in sites}, parts, work)
    check_some_gradient(totals.values())
    return {name: total / examples for name, total in totals.items()}, key
