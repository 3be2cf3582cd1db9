"""Continual learning: tasks come one after the other, of the former ones only a small memory stays.

Class-incremental tasks bring new classes; domain-incremental ones the same classes looking otherwise. After each
task one network, trained on, is tested on all tasks so far. Memories of equal size are compared: random, herding,
or condensed. Protocol after Zhao et al. 2021 (SVHN, MNIST, USPS) and Castro et al. 2018, without distillation.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from whence.cache.errors import DataError
from whence.cache.jobs.progress import progress

from .condensing import condense
from .networks import Network
from .pool import Pool
from .selection import select
from .settings import Settings
from .training import Training, accuracy, fit

if TYPE_CHECKING:
    import xarray

# (task's training data, seed) -> the examples kept of it, [k ...], and their labels over all classes
Memory: TypeAlias = Callable[[Pool, int], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Task:
    """train and test data of one task; classes: their numbers among all tasks' classes, in the order of its own."""

    name: str
    train: Pool
    test: Pool
    classes: tuple[int, ...]


def by_class(train: Pool, test: Pool, groups: Sequence[Sequence[int]]) -> list[Task]:
    """Class-incremental tasks: each brings a group of classes."""
    return [
        Task("classes " + ", ".join(map(str, group)), _only(train, group), _only(test, group), tuple(group))
        for group in groups
    ]


def by_domain(domains: Mapping[str, tuple[Pool, Pool]]) -> list[Task]:
    """Domain-incremental tasks: every one has all classes."""
    return [Task(name, train, test, tuple(range(train.classes))) for name, (train, test) in domains.items()]


def chosen(rule: str, per_class: int) -> Memory:
    """A memory of real examples: random, herding or k-centre."""

    def keep(pool: Pool, seed: int) -> tuple[np.ndarray, np.ndarray]:
        kept = select(pool, rule, per_class, seed)
        return kept.x, kept.y

    return keep


def condensed(settings: Settings) -> Memory:
    """A synthetic memory."""

    def keep(pool: Pool, seed: int) -> tuple[np.ndarray, np.ndarray]:
        (small,) = condense(pool, settings, (seed,), quiet=True)
        return small.x, small.y

    return keep


def run(
    tasks: Sequence[Task],
    memories: Mapping[str, Memory],
    network: Network,
    training: Training,
    seeds: Sequence[int] = (0,),
    *,
    share: float = 0.5,
    quiet: bool = True,
) -> "xarray.DataArray":
    """Accuracy in percent [memory, seed, after, task]: on each task after each task; NaN for tasks to come.

    share: of the loss that the memory has, from the second task on.
    Raises DataError where tasks differ in shape.
    """
    import xarray as xr

    shapes = {task.train.shape for task in tasks} | {task.test.shape for task in tasks}
    if len(shapes) != 1:
        raise DataError(f"Tasks of different shapes: {sorted(shapes)}.", "Bring all to one shape.")
    jobs = [(m, s) for m in memories for s in seeds]
    cells = [
        _one(tasks, memories[name], network, training, seed, share)
        for name, seed in progress(jobs, desc="continual learning", unit="run", quiet=quiet)
    ]
    names = [task.name for task in tasks]
    return xr.DataArray(
        np.stack(cells).reshape(len(memories), len(seeds), len(tasks), len(tasks)),
        dims=("memory", "seed", "after", "task"),
        coords={"memory": list(memories), "seed": list(seeds), "after": names, "task": names},
        name="accuracy",
        attrs={"unit": "percent", "network": repr(network), "training": str(training)},
    )


def average_after(found: "xarray.DataArray") -> "xarray.DataArray":
    """Mean accuracy over the tasks so far, [memory, seed, after]."""
    return found.mean("task", skipna=True)


def _one(
    tasks: Sequence[Task], memory: Memory, network: Network, training: Training, seed: int, share: float
) -> Float[np.ndarray, "t t"]:
    total = 1 + max(c for task in tasks for c in task.classes)
    params = jax.jit(lambda key: network.init(key, tasks[0].train.shape, total))(jax.random.key(seed))
    kept_x = np.zeros((0, *tasks[0].train.shape), np.float32)
    kept_y = np.zeros(0, np.int64)
    out = np.full((len(tasks), len(tasks)), np.nan)
    for now, task in enumerate(tasks):
        x, y = task.train.x, np.asarray(task.classes)[task.train.y]
        if len(kept_x):
            # the memory is repeated until it has its share of the examples
            times = max(1, round(share / (1 - share) * len(x) / len(kept_x)))
            x, y = np.concatenate([x, *[kept_x] * times]), np.concatenate([y, *[kept_y] * times])
        labels = np.eye(total, dtype=np.float32)[y]
        params = _onwards(network, training, params, seed * 1000 + now, x, labels)
        for before in range(now + 1):
            given = tasks[before]
            truth = jnp.asarray(np.asarray(given.classes)[given.test.y])
            out[now, before] = 100.0 * float(_tested(network, params, jnp.asarray(given.test.x), truth))
        new_x, new_y = memory(task.train, seed)
        kept_x = np.concatenate([kept_x, new_x])
        kept_y = np.concatenate([kept_y, np.asarray(task.classes)[new_y]])
    return out


def _onwards(network: Network, training: Training, params: dict, seed: int, x: np.ndarray, labels: np.ndarray) -> dict:
    return _fit(network, params, jax.random.key(seed), jnp.asarray(x), jnp.asarray(labels), training)


_fit = jax.jit(fit, static_argnums=(0, 5))
_tested = jax.jit(accuracy, static_argnums=(0,))


def _only(pool: Pool, group: Sequence[int]) -> Pool:
    """The examples of some classes, numbered within the group."""
    rows = np.flatnonzero(np.isin(pool.y, group))
    place = {c: number for number, c in enumerate(group)}
    y = np.array([place[int(c)] for c in pool.y[rows]])
    return Pool(pool.x[rows], y, len(group), pool.ids[rows], pool.scaling, f"{pool.fingerprint}:{list(group)}")
