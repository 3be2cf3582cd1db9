"""Margins of language models under teacher forcing: the true tokens are given before each token that is judged.

A point of KLoM is then a token. Two readings of the same text differ in what stands before it. `stream_margins` is
EasyDUB's (arXiv 2602.16400; `teacher_margins.py` of its repository): texts follow each other as one stream that is cut
into windows, so a window may begin within a text and hold several. `token_margins` reads every text by itself, as
`OracleSplit` does.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import nn

from whence.cache import DataError, Examples, LanguageModelling, UsageError
from whence.cache.jobs.signals import stop_if_signalled
from whence.cache.model.batches import plan_batches
from whence.cache.model.borrowing import borrowed
from whence.cache.model.bridge import to_numpy
from whence.cache.model.task import margin


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
    task, plan = LanguageModelling(), plan_batches(examples.lengths, np.arange(len(examples)), positions)
    out = []
    for model in models:
        device = next(model.parameters()).device
        found: dict[int, np.ndarray] = {}
        with borrowed(model), torch.no_grad():
            for planned in plan:
                stop_if_signalled()
                batch = examples.batch(planned.rows, device=device)
                logits = task.logits(model, batch)[:, :-1].float()
                targets, counted = task.targets(batch)
                margins = margin(logits, targets)
                for line, row in enumerate(planned.rows):
                    found[int(row)] = to_numpy(margins[line, counted[line]])
        out.append(np.concatenate([found[row] for row in range(len(examples))]))
    return np.stack(out)


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
