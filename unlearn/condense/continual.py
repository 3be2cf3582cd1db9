"""Continual learning: tasks come one after the other, of the former ones only a small memory stays.

Class-incremental tasks bring new classes; domain-incremental ones the same classes looking otherwise. After each
task one network, trained on, is tested on all tasks so far. Memories of equal size are compared: random, herding,
or condensed. Protocol after Zhao et al. 2021 (SVHN, MNIST, USPS) and Castro et al. 2018, without distillation.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from whence.cache.errors import DataError
from whence.cache.jobs.progress import progress

from .condensed import Condensed
from .condensing import condense
from .networks import Network, check_network
from .pool import Pool
from .selection import select
from .settings import Settings
from .training import Training, accuracy, fit

if TYPE_CHECKING:
    import xarray

# (task's training data, seed) -> what is kept of it, None for nothing
Memory: TypeAlias = Callable[[Pool, int], Condensed | Pool | None]


@dataclass(frozen=True)
class Task:
    """train and test data of one task; classes: their numbers among all tasks' classes, in the order of its own."""

    name: str
    train: Pool
    test: Pool
    classes: tuple[int, ...]

    def numbered(self, given: Condensed | Pool) -> Int[np.ndarray, " n"]:
        """The labels of this task's data, among all tasks' classes."""
        return np.asarray(self.classes)[given.y]


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
    return lambda pool, seed: select(pool, rule, per_class, seed)


def condensed(settings: Settings) -> Memory:
    """A synthetic memory."""
    return lambda pool, seed: condense(pool, settings, (seed,), quiet=True)[0]


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
    check_network(network, tasks[0].train.shape, 1 + max(c for task in tasks for c in task.classes))
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
    kept_x, kept_y = tasks[0].train.x[:0], np.zeros(0, np.int64)
    out = np.full((len(tasks), len(tasks)), np.nan)
    for now, task in enumerate(tasks):
        x, y = task.train.x, task.numbered(task.train)
        if len(kept_x):
            # the memory is repeated until it has its share of the examples
            times = max(1, round(share / (1 - share) * len(x) / len(kept_x)))
            x, y = np.concatenate([x, *[kept_x] * times]), np.concatenate([y, *[kept_y] * times])
        key, labels = jax.random.key(seed * 1000 + now), jnp.eye(total)[y]
        params = _fit(network, params, key, jnp.asarray(x), labels, training)
        for before, given in enumerate(tasks[: now + 1]):
            out[now, before] = 100.0 * float(
                _tested(network, params, jnp.asarray(given.test.x), given.numbered(given.test))
            )
        kept = memory(task.train, seed)
        if kept is not None:
            kept_x, kept_y = np.concatenate([kept_x, kept.x]), np.concatenate([kept_y, task.numbered(kept)])
    return out


_fit = jax.jit(fit, static_argnums=(0, 5))
_tested = jax.jit(accuracy, static_argnums=(0,))


def _only(pool: Pool, group: Sequence[int]) -> Pool:
    """The examples of some classes, numbered within the group."""
    kept = pool.select(np.isin(pool.y, group))
    y = np.array([list(group).index(c) for c in kept.y])
    return replace(kept, y=y, classes=len(group), fingerprint=f"{pool.fingerprint}:{list(group)}")
