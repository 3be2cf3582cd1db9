"""Margins of language models under teacher forcing: the true tokens are given before each token that is judged.

A point of KLoM is then a token. Two readings of the same text differ in what stands before it. `stream_margins` is
EasyDUB's (arXiv 2602.16400; `teacher_margins.py` of its repository): texts follow each other as one stream that is cut
into windows, so a window may begin within a text and hold several. `token_margins` reads every text by itself, as
`OracleSplit` does.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from whence.cache import DataError, Examples, LanguageModelling, UsageError
from whence.cache.jobs.progress import progress
from whence.cache.jobs.signals import stop_if_signalled
from whence.cache.model.batches import plan_batches
from whence.cache.model.borrowing import borrowed
from whence.cache.model.bridge import to_numpy
from whence.cache.model.task import margin

Of = TypeVar("Of")


def predicted_tokens(
    model: nn.Module, examples: Examples, of: Callable[[Tensor, Tensor], Of], *, positions: int, quiet: bool = True
) -> list[Of]:
    """`of(logits [t c], targets [t])` of every example's predicted tokens.

    Args:
        model: a causal language model.
        examples: with `input_ids`, and `labels` if some tokens are not to be judged.
        of: what is kept of an example.
        positions: in a batch.
        quiet: show no progress bar.
    """
    task, found = LanguageModelling(), dict[int, Of]()
    device = next(model.parameters()).device
    plan = plan_batches(examples.lengths, np.arange(len(examples)), positions)
    with borrowed(model), torch.no_grad():
        for planned in progress(plan, desc="reading", unit="batch", quiet=quiet):
            stop_if_signalled()
            batch = examples.batch(planned.rows, device=device)
            logits, (targets, counted) = task.logits(model, batch)[:, :-1], task.targets(batch)
            for line, row in enumerate(planned.rows.tolist()):
                found[row] = of(logits[line, counted[line]], targets[line, counted[line]])
    return [found[row] for row in range(len(examples))]


def token_margins(
    models: Sequence[nn.Module], examples: Examples, *, positions: int = 1024
) -> Float[np.ndarray, "e p"]:
    """Margins in nats of every predicted token, text by text, [models, tokens].

    Args:
        models: causal language models.
        examples: with `input_ids`, and `labels` if some tokens are not to be judged.
        positions: in a batch.

    Raises UsageError without a model.
    """
    if not models:
        raise UsageError("There is no model.", "Give at least one.")

    def margins(logits: Tensor, targets: Tensor) -> np.ndarray:
        return to_numpy(margin(logits.float(), targets))

    return np.stack([np.concatenate(predicted_tokens(m, examples, margins, positions=positions)) for m in models])


def stream_margins(
    models: Sequence[nn.Module], tokens: Int64[np.ndarray, " s"], *, window: int = 1024, positions: int = 1024
) -> Float[np.ndarray, "e p"]:
    """Margins in nats of the tokens of a stream, each predicted from those before it in its window, [models, tokens].

    Window w predicts tokens w·window + 1 to (w + 1)·window; a rest at the end that fills no window is left out, so that
    point i is the token i + 1.

    Args:
        models: causal language models.
        tokens: texts one after the other.
        window: tokens that are predicted in one pass.
        positions: in a batch.

    Raises DataError if the stream fills no window.
    """
    count = (len(tokens) - 1) // window
    if count < 1:
        raise DataError(
            f"{len(tokens)} tokens fill no window of {window}.", f"Give at least {window + 1}, or a smaller window."
        )
    pieces = [np.asarray(tokens[k * window : (k + 1) * window + 1], np.int64) for k in range(count)]
    windows = Examples({"input_ids": pieces}, np.arange(count, dtype=np.int64))
    return token_margins(models, windows, positions=max(positions, window + 1))
