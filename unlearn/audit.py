"""Is the knowledge gone or only hidden? Curves of unlearned language models under attack. Compare them with the
oracle's own: an oracle relearns and discloses as well, so only the difference to it counts.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from whence.cache import Examples, LanguageModelling, Task, UsageError
from whence.cache.retrain.loop import descend, weighted_loss
from whence.cache.retrain.recipe import AdamW, Optimiser
from whence.cache.retrain.replicas import Replicas, mode

EXAMPLES_AT_ONCE = 64


def loss_per_token(models: Replicas, task: Task, examples: Examples) -> Float[np.ndarray, " e"]:
    """Mean loss of every model in nats, per predicted token (per example for classification)."""
    total, counted = torch.zeros(len(models), dtype=torch.float64), 0.0
    width = int(examples.lengths.max())
    with mode(models, training=False), torch.no_grad():
        for start in range(0, len(examples), EXAMPLES_AT_ONCE):
            rows = np.arange(start, min(start + EXAMPLES_AT_ONCE, len(examples)))
            batch = examples.batch(rows, pad_to=width)
            losses = models.apply(lambda model, b, extra: task.loss(model, b), batch, shared=True)
            total = total + losses.sum(1).double()
            counted += float(task.positions(batch).sum())
    return (total / counted).numpy()


def quantised(models: Replicas, bits: int) -> Replicas:
    """Weights rounded to `bits` bits, symmetric, one scale per output row; vectors stay. Raises UsageError below 2
    bits."""
    if not 2 <= bits <= 16:
        raise UsageError(f"Weights cannot be rounded to {bits} bits.", "Use 2 to 16.")
    flat = models.flat.clone()
    top = 2 ** (bits - 1) - 1
    for name, values in models.views(flat).items():
        if len(models.shapes[name]) < 2:
            continue
        rows = values.flatten(2)
        scale = rows.abs().amax(-1, keepdim=True).clamp(min=1e-12) / top
        values.copy_(((rows / scale).round() * scale).view_as(values))
    return models.with_flat(flat)


def quantisation_curve(
    models: Replicas, task: Task, examples: Examples, bits: Sequence[int] = (8, 6, 5, 4, 3)
) -> Float[np.ndarray, "k e"]:
    """Loss per token after rounding the weights to each number of bits: what was changed only a little comes
    back when the change is rounded off."""
    return np.stack([loss_per_token(quantised(models, b), task, examples) for b in bits])


def relearning_curve(
    models: Replicas,
    task: Task,
    shown: Examples,
    asked: Examples,
    *,
    steps: int = 10,
    batch_size: int = 8,
    optimiser: Optimiser = AdamW(1e-3),
    seed: int = 0,
) -> Float[np.ndarray, "k e"]:
    """Loss per token on `asked` before and after every step of training again on `shown` (some of the forgotten
    data): hidden knowledge comes back faster than an oracle learns it."""
    models, generator = models.select(slice(None)), np.random.default_rng(seed)
    rate = torch.full((len(models), 1), optimiser.lr)

    def batches() -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        for _ in range(steps):
            rows = generator.permutation(len(shown))[: min(batch_size, len(shown))]
            yield rate, shown.batch(rows, pad_to=int(shown.lengths.max()))

    def gradient_of(flat: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        extra = {"weights": torch.ones(len(models), len(next(iter(batch.values()))))}
        with mode(models, training=True):
            return models.with_flat(flat).gradient(weighted_loss(task), batch, extra, shared=True)

    start = loss_per_token(models, task, asked)
    walk = descend(models.flat, gradient_of, batches(), optimiser)
    after = [loss_per_token(models.with_flat(point.parameters), task, asked) for point in walk]
    return np.stack([start, *after])


def extraction(
    models: Replicas, task: LanguageModelling, examples: Examples, *, prefix: int = 16, length: int = 16
) -> Float[np.ndarray, " e"]:
    """Share of the next `length` tokens that greedy continuation of the first `prefix` gets right, over examples
    long enough. Raises UsageError when none is."""
    tokens = [np.asarray(t) for t in examples.columns["input_ids"]]
    tokens = [t for t in tokens if len(t) >= prefix + length]
    if not tokens:
        raise UsageError(f"No example has {prefix + length} tokens to continue.", "Use a shorter prefix or length.")
    whole = torch.as_tensor(np.stack([t[: prefix + length] for t in tokens])).long()
    right = []
    for e in range(len(models)):
        model: nn.Module = models.module(e).eval()
        text = whole[:, :prefix]
        with torch.no_grad():
            for _ in range(length):
                logits = task.logits(model, {"input_ids": text})
                text = torch.cat([text, logits[:, -1].argmax(-1, keepdim=True)], 1)
        right.append(float((text[:, prefix:] == whole[:, prefix:]).float().mean()))
    return np.array(right)
