"""What a method wants done: phases of steps, each with the rows it sees, an objective for one model, an optimiser and
tables of targets by row; and the parts that several methods are made of."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from whence.cache import Examples, Task
from whence.cache.retrain.recipe import AdamW, Optimiser, Schedule
from whence.cache.retrain.replicas import PerReplica, Replicas, mode

from .request import UnlearningRequest

FORWARD = 1 / 3  # of a pass
ROWS_AT_ONCE = 256
ADAM = AdamW(1e-3)
CONSTANT = Schedule()


@dataclass(frozen=True, eq=False)
class Phase:
    """Some steps with one objective.

    Args:
        objective: (model, batch, extra) -> scalar; extra has "forget" [b] (true for forgotten rows), the step's rows
            of every table, and "progress" (0 to 1).
        draw: random generator of a model -> rows [b] of each step, in order; as many as there are steps.
        optimiser, schedule: of the steps.
        tables: name -> [e n ...], targets by model and pool row.
        gradient_mask: [e P] or [1 P], multiplied into every gradient.
        before: (model as it was before the phase, batch, extra) -> name -> tensor, which a step's extra has then.
        before_passes: example passes of that, a step.
    """

    objective: PerReplica
    draw: Callable[[np.random.Generator], Iterator[np.ndarray]]
    optimiser: Optimiser = ADAM
    schedule: Schedule = CONSTANT
    tables: Mapping[str, Tensor] = field(default_factory=dict)
    gradient_mask: Tensor | None = None
    before: PerReplica | None = None
    before_passes: float = 0.0


@dataclass(frozen=True, eq=False)
class Plan:
    """What a method wants done.

    Args:
        phases: one after the other; none for a method that computes the models itself.
        models: where the phases begin.
        spent: passes used in preparing it (targets, saliency), per model.
        shift: for methods that change outputs and not weights, points -> change of logits [e p c] or [p c].
    """

    phases: tuple[Phase, ...]
    models: Replicas
    spent: float = 0.0
    shift: Callable[[Examples], np.ndarray] | None = None


def batches(
    rows: np.ndarray, size: int, epochs: int | float = 1.0
) -> Callable[[np.random.Generator], Iterator[np.ndarray]]:
    """Rows in shuffled batches of `size`, for so many epochs; the last partial batch of an epoch is filled from
    its beginning, so every batch has one shape."""
    size = min(size, len(rows))
    per_epoch = -(-len(rows) // size)
    count = max(1, round(per_epoch * epochs))

    def draw(generator: np.random.Generator) -> Iterator[np.ndarray]:
        for step in range(count):
            if step % per_epoch == 0:
                order = generator.permutation(rows)
                order = np.concatenate([order, order[:size]])
            start = step % per_epoch * size
            yield order[start : start + size]

    return draw


def side_by_side(
    forget: np.ndarray, retain: np.ndarray, sizes: tuple[int, int], steps: int
) -> Callable[[np.random.Generator], Iterator[np.ndarray]]:
    """Every step sees some forgotten and some retained rows."""

    def draw(generator: np.random.Generator) -> Iterator[np.ndarray]:
        walks = [batches(rows, size, steps)(generator) for rows, size in ((forget, sizes[0]), (retain, sizes[1]))]
        for _ in range(steps):
            yield np.concatenate([next(walk) for walk in walks])

    return draw


def check_single(models: Replicas, task: Task, batch: dict[str, Tensor]) -> None:
    """Raises ModelError if steps see one example each and the model's batch normalisation cannot train on one.

    Args:
        models: what is trained.
        task: of its outputs.
        batch: [b ...], the examples of one step.
    """
    normalised = any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in models.template.modules())
    if not normalised or len(next(iter(batch.values()))) > 1:
        return
    alone = models.select([0])  # whose running statistics may move
    with mode(alone, training=True), torch.no_grad():
        alone.apply(lambda model, b, extra: task.logits(model, b), batch, shared=True)


def logits_table(
    request: UnlearningRequest, models: Replicas, rows: np.ndarray | None = None
) -> Float[Tensor, "e n ..."]:
    """The models' own logits at every row of the pool (zeros at rows that are not given)."""
    rows = np.arange(len(request.pool)) if rows is None else rows
    return own_table(request, models, lambda model, batch, extra: request.task.logits(model, batch), rows)


def own_table(
    request: UnlearningRequest, models: Replicas, of: PerReplica, rows: np.ndarray
) -> Float[Tensor, "e n ..."]:
    """What a function of a model and a batch gives for each of the models as they are, at rows of the pool; zeros at
    the others."""
    pool = request.pool
    parts = [pool.batch(rows[start : start + ROWS_AT_ONCE]) for start in range(0, len(rows), ROWS_AT_ONCE)]
    with mode(models, training=False), torch.no_grad():
        values = torch.cat([models.apply(of, part, shared=True) for part in parts], 1)
    table = values.new_zeros((len(models), len(pool), *values.shape[2:]))
    table[:, rows] = values
    return table
