"""The training loop: gradient, clipping, optimiser, for every step that it is given.

`descend` is the loop. It knows neither models nor data: callers give it the gradient as a function of the parameters,
and steps with a learning rate each. `train` uses it for replicas under a recipe; unlearning, relearning, the small
language model and recorded runs (`trajectory`) give it gradients and steps of their own.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor, nn

from ..errors import NumericalError
from ..jobs.progress import progress
from ..model.examples import Examples
from ..model.task import Task
from .allocator import freed_memory_kept
from .optimisers import Moments, Optimiser, Rate, Tree, clipped
from .recipe import Recipe, steps_of
from .replicas import PerReplica, Replicas, mode
from .traced import Traced


class Point(NamedTuple):
    """Where a run is: parameters and the optimiser's state after a step, and the loss before it (None at the start)."""

    parameters: Any  # a tree of the form of the start's
    moments: Moments
    loss: Any = None


# may change what a step uses: (parameters, loss, gradient, rate) -> (parameters, gradient, rate)
Guard: TypeAlias = Callable[[Any, Any, Any, Any], tuple[Any, ...]]


def descend(
    start: Any,
    gradient_of: Callable[..., tuple[Any, Any]],
    steps: Iterable[tuple[Any, ...]],
    optimiser: Optimiser,
    *,
    clip: float | None = None,
    guard: Guard | None = None,
) -> Iterator[Point]:
    """The point after every step.

    Args:
        start: parameters (a matrix [e P], or a dict of one model's tensors), or the point at which to resume.
        gradient_of: (parameters, *inputs) -> (loss, gradient).
        steps: (rate, *inputs) of every step; the rate is [e 1] for a matrix, a number for a dict.
        optimiser: its own learning rate is not used.
        clip: largest norm of a model's gradient.
        guard: called between gradient and update.
    """
    point = start if isinstance(start, Point) else Point(start, optimiser.init(start))
    for rate, *inputs in steps:
        loss, gradient = gradient_of(point.parameters, *inputs)
        if guard is not None:
            parameters, gradient, rate = guard(point.parameters, loss, gradient, rate)
            point = point._replace(parameters=parameters)
        point = advance(point, gradient, rate, optimiser, clip)._replace(loss=loss)
        yield point


def advance(point: Point, gradient: Tree, rate: Rate, optimiser: Optimiser, clip: float | None = None) -> Point:
    """One step of the optimiser; differentiable."""
    gradient = gradient if clip is None else clipped(gradient, clip)
    return Point(*optimiser.update(gradient, point.moments, point.parameters, rate))


class LastGood:
    """A guard for replicas: one whose loss or gradient is not finite is stopped, at its parameters of the step before.

    live: [e 1], 1 for replicas that still move. stopped: (replica, step, reason) in order.
    """

    def __init__(self, flat: Tensor, live: Tensor):
        self.good, self.live, self.step = flat, live, 0
        self.stopped: list[tuple[int, int, str]] = []

    def __call__(self, parameters: Tensor, loss: Tensor, gradient: Tensor, rate: Tensor) -> tuple[Tensor, ...]:
        sound = torch.isfinite(loss) & torch.isfinite(gradient).all(1)
        self._stop(~sound, "its loss or gradient is not finite")
        self.live = self.live * sound[:, None]
        self.good = parameters = torch.where(sound[:, None], parameters, self.good)
        self.step += 1
        return parameters, torch.where(self.live > 0, gradient, 0.0), rate * self.live

    def end(self, parameters: Tensor) -> Tensor:
        """The parameters after the last step, which no gradient has checked."""
        broken = ~torch.isfinite(parameters).all(1)
        self.step -= 1
        self._stop(broken, "its weights are not finite")
        return torch.where(broken[:, None], self.good, parameters)

    def _stop(self, broken: Tensor, reason: str) -> None:
        found = (broken & (self.live[:, 0] > 0)).nonzero().flatten().tolist()
        self.stopped += [(replica, self.step, reason) for replica in found]


def train(
    replicas: Replicas,
    task: Task,
    data: Examples,
    masks: Bool[np.ndarray, "e n"],
    seeds: Int64[np.ndarray, " e"],
    recipe: Recipe,
    *,
    quiet: bool = True,
    most: int | None = None,
) -> Replicas:
    """Replicas trained under one mask each. The loss of a step is the weighted mean of the task's loss, per example
    (per predicted token for language). `most`: stop after so many steps.

    Raises NumericalError when a replica's parameters become infinite or NaN, ModelError before the first step when a
    batch of one example is too small for the model's batch normalisation.
    """
    device, dtype = replicas.flat.device, replicas.flat.dtype
    columns = data.batch(np.arange(len(data)), device=device, dtype=dtype)
    walk, totals = steps_of(masks, seeds, recipe)
    total = torch.as_tensor(totals, dtype=dtype, device=device)[:, None]
    count = int(totals.max()) if most is None else min(most, int(totals.max()))
    bar = progress(islice(walk, count), total=count, desc=f"training {len(replicas)} models", unit="step", quiet=quiet)
    shared = recipe.batches == "shared"
    copies, loss = replicas.select(slice(None)), weighted_loss(task)
    _check_smallest_batch(copies, loss, columns, masks, recipe)

    def gradient_at(flat: Tensor, batch: dict[str, Tensor], weights: Tensor) -> tuple[Tensor, Tensor]:
        return copies.with_flat(flat).gradient(loss, batch, {"weights": weights}, shared=shared)

    def steps() -> Iterator[tuple[Any, ...]]:
        for number, step in enumerate(bar):
            rows = torch.as_tensor(step.rows, device=device)
            weights = torch.as_tensor(step.weights, device=device)
            batch = {name: column[rows] for name, column in columns.items()}
            if len(copies) == 1 and not shared:  # alone, a replica sees its own rows only, no padding
                kept = weights[0] > 0
                batch, weights = {name: column[:, kept] for name, column in batch.items()}, weights[:, kept]
            live = weights.sum(1, keepdim=True) > 0
            rate = recipe.optimiser.lr * recipe.schedule.factor(torch.full_like(total, number), total)
            yield rate if bool(live.all()) else rate * live.to(dtype), batch, weights

    # recording runs a step again, which would move running statistics once more
    gradient_of = Traced(gradient_at) if len(copies) > 1 and copies.stackable else gradient_at
    flat = copies.flat
    with mode(copies, training=True), _seeded(copies, seeds), freed_memory_kept():
        for point in descend(flat, gradient_of, steps(), recipe.optimiser, clip=recipe.clip):
            flat = point.parameters
    broken = (~torch.isfinite(flat).all(1)).nonzero().flatten().tolist()
    if broken:
        raise NumericalError(
            f"Training diverged in {len(broken)} of {len(copies)} models (seed {int(seeds[broken[0]])}).",
            "Lower the learning rate, or clip gradients (Recipe(clip=1.0)).",
        )
    return copies.with_flat(flat)


def _check_smallest_batch(
    replicas: Replicas, loss: PerReplica, columns: dict[str, Tensor], masks: np.ndarray, recipe: Recipe
) -> None:
    """Run a batch of one example, if training will come to one and batch normalisation may refuse it."""
    examples = masks.sum(1) if recipe.batches == "own" else np.array([masks.shape[1]])
    normalised = any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in replicas.template.modules())
    if not normalised or not (recipe.batch_size == 1 or (examples % recipe.batch_size == 1).any()):
        return
    one = {name: column[None, :1] for name, column in columns.items()}
    with mode(replicas, training=True), torch.random.fork_rng(devices=[]):
        replicas.select([0]).gradient(loss, one, {"weights": torch.ones(1, 1, device=replicas.flat.device)})


def weighted_loss(task: Task) -> PerReplica:
    """Σ w · loss / Σ w · positions over a replica's batch, with weights [b] in `extra`."""

    def loss(model: nn.Module, batch: dict[str, Tensor], extra: dict[str, Tensor]) -> Tensor:
        counted, weights = task.positions(batch).sum(1), extra["weights"]
        return (weights * task.loss(model, batch)).sum() / (weights * counted).sum().clamp(min=1e-9)

    return loss


@contextmanager
def _seeded(replicas: Replicas, seeds: np.ndarray) -> Iterator[None]:
    """Inside, the dropout of a single replica uses its own seed; afterwards the caller's random state is restored."""
    state = torch.random.get_rng_state()
    if len(replicas) == 1:
        torch.manual_seed(int(seeds[0]))
    try:
        yield
    finally:
        torch.random.set_rng_state(state)
