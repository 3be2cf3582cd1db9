"""Is the knowledge gone or only hidden? Membership attacks on outputs, and curves of models under attack.

Compare with the oracle's own values: an oracle relearns and discloses as well, so only the difference to it counts.
Curves take one trained model or several of one architecture, which run side by side: `[forgot.trained(e) for e in
range(8)]`.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.special import expit, log_softmax
from scipy.stats import norm
from torch import Tensor

from whence.cache import DataError, Examples, LanguageModelling, TrainedModel, UsageError
from whence.cache.jobs.signals import stop_if_signalled
from whence.cache.model.borrowing import borrowed
from whence.cache.model.bridge import to_numpy
from whence.cache.retrain.loop import descend, weighted_loss
from whence.cache.retrain.recipe import AdamW, Optimiser
from whence.cache.retrain.replicas import Replicas, mode

from .language.reader import greedy
from .metrics import checked, checked_labels
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
        with borrowed(one.model), torch.no_grad():
            found = torch.cat(list(islice(greedy(one.task, one.model, whole[:, :prefix]), length)), 1)
        right.append(float((found == whole[:, prefix:]).float().mean()))
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


# --- attacks on outputs: forgotten data or data never seen? --------------------------------------------------


class ULiRA(NamedTuple):
    """accuracy: mean confidence-thresholded success of the attack, 0.5 is ideal; per_point: its mean score."""

    accuracy: float
    per_point: Float[np.ndarray, " p"]


def u_lira(unlearned: Float[np.ndarray, "e p"], oracles: Float[np.ndarray, "f p"]) -> ULiRA:
    """U-LiRA (Hayes et al. 2024) on the margins of forgotten points: every unlearned model is held out in turn,
    Gaussians are fitted to the other unlearned models' margins and to the oracles', and the model is judged
    unlearned where its likelihood ratio says so. Oracles are judged alike; the mean of both rates is 0.5 when
    the two cannot be distinguished.

    Rows may mix forget sets, as the full attack does, as long as each column is one forgotten point.
    Raises DataError as `metrics.checked`, with fewer than four models on a side.
    """
    unlearned, oracles = (margins.astype(np.float64) for margins in checked(unlearned, oracles, 4))
    hits_unlearned = _held_out_scores(unlearned, oracles) > 0.5
    hits_oracle = _held_out_scores(oracles, unlearned) > 0.5
    per_point = 0.5 * (hits_unlearned.mean(0) + hits_oracle.mean(0))
    return ULiRA(float(per_point.mean()), per_point)


def _held_out_scores(own: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Score p_own / (p_own + p_other) [e p] of every own sample under Gaussians of its fellows without it and of the
    others; mean and variance without one sample follow from the sums."""
    n = len(own)
    mean = (own.sum(0) - own) / (n - 1)
    second = ((own**2).sum(0) - own**2) / (n - 1)
    sd = np.sqrt(np.maximum(second - mean**2, 0) * (n - 1) / (n - 2))
    likelihoods = (
        norm.logpdf(own, centre, np.maximum(spread, 1e-6))
        for centre, spread in ((mean, sd), (other.mean(0), other.std(0, ddof=1)))
    )
    return expit(np.subtract(*likelihoods))


class Membership(NamedTuple):
    """auc: area under the ROC curve of the best single threshold score; each: the area of every score."""

    auc: float
    each: dict[str, float]


def membership(
    forgotten: Float[np.ndarray, "e p c"],
    unseen: Float[np.ndarray, "f v c"],
    y_forgotten: np.ndarray,
    y_unseen: np.ndarray,
) -> Membership:
    """Simple membership inference from logits: do loss, confidence, entropy or margin distinguish a forgotten point
    from an unseen one? Areas are averaged over models; 0.5 is chance, below it means forgetting too well, which
    gives membership away as much. The oracle's own areas are the value to meet.

    Raises DataError for logits of different numbers of models, values that are not finite, and labels that are not one
    class each.
    """
    if len(forgotten) != len(unseen):
        raise DataError(
            f"Logits of {len(forgotten)} models cannot be compared with those of {len(unseen)}.",
            "Give the outputs of the same models, in the same order.",
        )
    from sklearn.metrics import roc_auc_score

    scores_in, scores_out = _scores(forgotten, y_forgotten), _scores(unseen, y_unseen)
    labels = np.repeat([1, 0], [np.shape(forgotten)[1], np.shape(unseen)[1]])
    each = {
        name: float(np.mean([roc_auc_score(labels, np.r_[a, b]) for a, b in zip(found, scores_out[name])]))
        for name, found in scores_in.items()
    }
    return Membership(max(each.values(), key=lambda a: abs(a - 0.5)), each)


def _scores(logits: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    logits, y = checked_labels(logits, y)
    logp = log_softmax(logits, -1)
    own = np.take_along_axis(logp, np.broadcast_to(y[:, None], (*logp.shape[:-1], 1)), -1)[..., 0]
    return {
        "loss": own,
        "confidence": logp.max(-1),
        "entropy": (np.exp(logp) * logp).sum(-1),
        "margin": own - np.log(np.maximum(-np.expm1(np.minimum(own, -1e-12)), 1e-12)),
    }


def attack_by_logistic(
    losses_forgotten: Float[np.ndarray, " p"], losses_unseen: Float[np.ndarray, " v"], folds: int = 5
) -> float:
    """Cross-validated accuracy of a logistic regression on one model's losses, balanced; 0.5 is chance."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score

    n = min(len(losses_forgotten), len(losses_unseen))
    if n < folds:
        raise DataError(f"{n} points cannot be split {folds} ways.", "Use more points or fewer folds.")
    x = np.r_[losses_forgotten[:n], losses_unseen[:n]][:, None]
    y: Bool[np.ndarray, " m"] = np.r_[np.ones(n, bool), np.zeros(n, bool)]
    return float(cross_val_score(LogisticRegression(), x, y, cv=folds).mean())
