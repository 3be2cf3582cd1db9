"""Is the knowledge gone or only hidden? Curves of unlearned language models under attack. Compare them with the
oracle's own: an oracle relearns and discloses as well, so only the difference to it counts.

Every function takes one trained model or several of one architecture, which run side by side: `[forgot.trained(e) for
e in range(8)]`.
"""

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from whence.cache import Examples, LanguageModelling, TrainedModel, UsageError
from whence.cache.jobs.signals import stop_if_signalled
from whence.cache.model.bridge import to_numpy
from whence.cache.model.capture import borrowed
from whence.cache.retrain.loop import descend, weighted_loss
from whence.cache.retrain.recipe import AdamW, Optimiser
from whence.cache.retrain.replicas import Replicas, mode

from .plan import check_single

EXAMPLES_AT_ONCE = 64
Models: TypeAlias = TrainedModel | Sequence[TrainedModel]


def loss_per_token(trained: Models, examples: Examples) -> Float[np.ndarray, " e"]:
    """Mean loss of every model in nats, per predicted token (per example for classification)."""
    return _loss(*_side_by_side(trained), examples)


def quantisation_curve(
    trained: Models, examples: Examples, bits: Sequence[int] = (8, 6, 5, 4, 3)
) -> Float[np.ndarray, "k e"]:
    """Loss per token after rounding the weights to each number of bits: what was changed only a little comes
    back when the change is rounded off. Raises UsageError below 2 bits or above 16."""
    first, replicas = _side_by_side(trained, everything=True)
    return np.stack([_loss(first, quantised(replicas, b), examples) for b in bits])


def relearning_curve(
    trained: Models,
    shown: Examples,
    queries: Examples,
    *,
    steps: int = 10,
    batch_size: int = 8,
    optimiser: Optimiser = AdamW(1e-3),
    seed: int = 0,
) -> Float[np.ndarray, "k e"]:
    """Loss per token on `queries` before and after every step of training again on `shown` (some of the forgotten
    data): hidden knowledge comes back faster than an oracle learns it.

    Args:
        trained: the models.
        shown: what they are trained on again.
        queries: what their loss is measured on.
        steps, batch_size, optimiser: of that training.
        seed: of the order of examples.
    """
    first, replicas = _side_by_side(trained)
    check_single(replicas, first.task, first.batch(shown, np.arange(min(batch_size, len(shown)))))
    generator = np.random.default_rng(seed)
    rate = torch.full((len(replicas), 1), optimiser.lr, device=first.device)

    def batches() -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        for _ in range(steps):
            stop_if_signalled()
            rows = generator.permutation(len(shown))[: min(batch_size, len(shown))]
            yield rate, first.batch(shown, rows, int(shown.lengths.max()))

    def gradient_of(flat: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        count = len(next(iter(batch.values())))
        extra = {"weights": torch.ones(len(replicas), count, device=first.device)}
        with mode(replicas, training=True):
            return replicas.with_flat(flat).gradient(weighted_loss(first.task), batch, extra, shared=True)

    start = _loss(first, replicas, queries)
    walk = descend(replicas.flat, gradient_of, batches(), optimiser)
    after = [_loss(first, replicas.with_flat(point.parameters), queries) for point in walk]
    return np.stack([start, *after])


def extraction(trained: Models, examples: Examples, *, prefix: int = 16, length: int = 16) -> Float[np.ndarray, " e"]:
    """Share of the next `length` tokens that greedy continuation of the first `prefix` gets right, over examples
    long enough. Raises UsageError if none is, or if the task is not language modelling."""
    models = [trained] if isinstance(trained, TrainedModel) else list(trained)
    tokens = [np.asarray(t) for t in examples.columns.get("input_ids", ())]
    tokens = [t for t in tokens if len(t) >= prefix + length]
    if not tokens or not isinstance(models[0].task, LanguageModelling):
        raise UsageError(f"No example has {prefix + length} tokens to continue.", "Use a shorter prefix or length.")
    right = []
    for one in models:
        whole = torch.as_tensor(np.stack([t[: prefix + length] for t in tokens]), device=one.device).long()
        text = whole[:, :prefix]
        with borrowed(one.model), torch.no_grad():
            for _ in range(length):
                logits = one.task.logits(one.model, {"input_ids": text})
                text = torch.cat([text, logits[:, -1].argmax(-1, keepdim=True)], 1)
        right.append(float((text[:, prefix:] == whole[:, prefix:]).float().mean()))
    return np.array(right)


def quantised(replicas: Replicas, bits: int) -> Replicas:
    """Weights rounded to `bits` bits, symmetric, one scale per output row; vectors stay. Raises UsageError below 2
    bits or above 16."""
    if not 2 <= bits <= 16:
        raise UsageError(f"Weights cannot be rounded to {bits} bits.", "Use 2 to 16.")
    flat = replicas.flat.clone()
    top = 2 ** (bits - 1) - 1
    for name, values in replicas.views(flat).items():
        if len(replicas.shapes[name]) < 2:
            continue
        rows = values.flatten(2)
        scale = rows.abs().amax(-1, keepdim=True).clamp(min=1e-12) / top
        values.copy_(((rows / scale).round() * scale).view_as(values))
    return replicas.with_flat(flat)


def _side_by_side(trained: Models, everything: bool = False) -> tuple[TrainedModel, Replicas]:
    """The first model, for its task and device, and all of them stacked: what they train, or every parameter."""
    models = [trained] if isinstance(trained, TrainedModel) else list(trained)
    if not models:
        raise UsageError("There is no model to audit.", "Give a trained model, or several.")
    return models[0], Replicas.of([one.model for one in models], (lambda name: True) if everything else None)


def _loss(first: TrainedModel, replicas: Replicas, examples: Examples) -> Float[np.ndarray, " e"]:
    task, width = first.task, int(examples.lengths.max())
    total, counted = torch.zeros(len(replicas), dtype=torch.float64, device=first.device), 0.0
    with mode(replicas, training=False), torch.no_grad():
        for start in range(0, len(examples), EXAMPLES_AT_ONCE):
            rows = np.arange(start, min(start + EXAMPLES_AT_ONCE, len(examples)))
            batch = first.batch(examples, rows, width)
            losses = replicas.apply(lambda model, b, extra: task.loss(model, b), batch, shared=True)
            total = total + losses.sum(1).double()
            counted += float(task.positions(batch).sum())
    return to_numpy(total / counted)
