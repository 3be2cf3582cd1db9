"""Is it gone, or only hidden? Curves of unlearned language models under attack, to be read beside the oracle's own:
an oracle relearns and gives away as well, so only the difference to it tells.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from whence.cache import Examples, LanguageModelling, Task, UsageError
from whence.cache.retrain.bank import weighted_loss
from whence.cache.retrain.recipe import AdamW, Optimiser
from whence.cache.retrain.replicas import Lanes, mode, why_not_stacked

EXAMPLES_AT_ONCE = 64


def loss_per_token(lanes: Lanes, task: Task, examples: Examples) -> Float[np.ndarray, " e"]:
    """Mean loss of every model in nats, per predicted token (per example for classification)."""
    total, counted = torch.zeros(len(lanes), dtype=torch.float64), 0.0
    width = int(examples.lengths.max())
    with mode(lanes, training=False), torch.no_grad():
        for start in range(0, len(examples), EXAMPLES_AT_ONCE):
            rows = np.arange(start, min(start + EXAMPLES_AT_ONCE, len(examples)))
            batch = examples.batch(rows, pad_to=width)
            losses = _each(lanes, lambda model, b, extra: task.loss(model, b), batch)
            total = total + losses.sum(1).double()
            counted += float(task.positions(batch).sum())
    return (total / counted).numpy()


def _each(lanes: Lanes, function: object, batch: dict[str, Tensor]) -> Tensor:
    if len(lanes) == 1 or why_not_stacked(lanes.template) is None:
        return lanes.apply(function, batch, shared=True)  # type: ignore[arg-type]
    return torch.cat(
        [lanes.select([e]).apply(function, batch, shared=True) for e in range(len(lanes))]  # type: ignore[arg-type]
    )


def quantised(lanes: Lanes, bits: int) -> Lanes:
    """Weights rounded to `bits` bits, symmetric, one scale an output row; vectors stay. Raises UsageError below 2
    bits."""
    if not 2 <= bits <= 16:
        raise UsageError(f"Weights cannot be rounded to {bits} bits.", "Use 2 to 16.")
    flat = lanes.flat.clone()
    top = 2 ** (bits - 1) - 1
    for name, values in lanes.views(flat).items():
        if len(lanes.shapes[name]) < 2:
            continue
        rows = values.flatten(2)
        scale = rows.abs().amax(-1, keepdim=True).clamp(min=1e-12) / top
        values.copy_(((rows / scale).round() * scale).view_as(values))
    return lanes.with_flat(flat)


def quantisation_curve(
    lanes: Lanes, task: Task, examples: Examples, bits: Sequence[int] = (8, 6, 5, 4, 3)
) -> Float[np.ndarray, "k e"]:
    """Loss per token after rounding the weights to each number of bits: what was only pushed a little away comes
    back when the push is rounded off."""
    return np.stack([loss_per_token(quantised(lanes, b), task, examples) for b in bits])


def relearning_curve(
    lanes: Lanes,
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
    lanes = lanes.select(slice(None))
    moments = optimiser.init(lanes.flat)
    generator = np.random.default_rng(seed)
    curve = [loss_per_token(lanes, task, asked)]
    ones = torch.ones(len(lanes), 1)
    for _ in range(steps):
        rows = generator.permutation(len(shown))[: min(batch_size, len(shown))]
        batch = shown.batch(rows, pad_to=int(shown.lengths.max()))
        extra = {"weights": torch.ones(len(lanes), len(rows))}
        with mode(lanes, training=True):
            _, gradient = lanes.gradient(weighted_loss(task), batch, extra, shared=True)
        moments = optimiser.update(lanes.flat, gradient, moments, ones, None)
        curve.append(loss_per_token(lanes, task, asked))
    return np.stack(curve)


def extraction(
    lanes: Lanes, task: LanguageModelling, examples: Examples, *, prefix: int = 16, length: int = 16
) -> Float[np.ndarray, " e"]:
    """Share of the next `length` tokens that greedy continuation of the first `prefix` gets right, over examples
    long enough. Raises UsageError when none is."""
    tokens = [np.asarray(t) for t in examples.columns["input_ids"]]
    tokens = [t for t in tokens if len(t) >= prefix + length]
    if not tokens:
        raise UsageError(f"No example has {prefix + length} tokens to continue.", "Use a shorter prefix or length.")
    whole = torch.as_tensor(np.stack([t[: prefix + length] for t in tokens])).long()
    right = []
    for e in range(len(lanes)):
        model: nn.Module = lanes.module(e).eval()
        text = whole[:, :prefix]
        with torch.no_grad():
            for _ in range(length):
                logits = task.logits(model, {"input_ids": text})
                text = torch.cat([text, logits[:, -1].argmax(-1, keepdim=True)], 1)
        right.append(float((text[:, prefix:] == whole[:, prefix:]).float().mean()))
    return np.array(right)
