"""Masked language models, and anything that predicts a label at the position where it stands."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int
from torch import Tensor

from ..errors import DataError, UsageError
from ..model import rng
from ..model.examples import Examples
from ..model.task import IGNORED, Batch, TokenTask, column, real_tokens


@dataclass(frozen=True)
class MaskedLanguageModelling(TokenTask):
    """Cross-entropy of `labels` [b s] at their own positions (Devlin et al. 2019, BERT); -100 is not predicted. Labels
    may also be classes of tokens, as in tagging. The measurement is the log-probability of the labels, or their margin.

    Raises DataError for data without labels (see `masked`).
    """

    measure: Literal["logprob", "margin"] = "logprob"

    def labelled(self, batch: Batch) -> tuple[Int[Tensor, "b t"], Bool[Tensor, "b t"]]:
        if "labels" not in batch:
            raise DataError(
                "Masked language modelling needs the column labels: tokens at masked positions, -100 elsewhere.",
                "Mask the tokens first: tasks.masked(examples, mask=tokenizer.mask_token_id).",
            )
        labels = column(batch, "labels")
        counted = (labels != IGNORED) & real_tokens(batch)
        return labels.masked_fill(~counted, 0), counted


def masked(
    examples: Examples,
    *,
    mask: int,
    share: float = 0.15,
    vocabulary: int | None = None,
    keep: tuple[int, ...] = (),
    seed: int = 0,
) -> Examples:
    """Examples with a share of their tokens masked and the column `labels`, the same for every order and batch.

    Args:
        examples: with the column `input_ids`, unmasked.
        mask: the mask token.
        share: of each example's tokens that are chosen, at least one.
        vocabulary: if given, of the chosen tokens one in ten becomes a random token below it and one in ten stays
            (Devlin et al. 2019); else all become the mask.
        keep: tokens that are never chosen, such as [CLS] and [SEP].
        seed: of the choice.

    Raises UsageError for a share outside 0 to 1, DataError for an example all of whose tokens are to be kept.
    """
    if not 0 < share <= 1:
        raise UsageError(f"A share of {share} of the tokens cannot be masked.", "Give a number above 0, up to 1.")
    tokens, labels = [], []
    for row, own in zip(examples.ids, examples.columns["input_ids"]):
        ids = np.asarray(own, np.int64)
        free = np.flatnonzero(~np.isin(ids, keep))
        if not len(free):
            raise DataError(f"Example {row} has no token that can be masked.", "Leave it out.")
        u, how, what = (
            rng.uniforms(seed + k, np.array([row]), np.arange(len(ids))[None])[0] for k in (0, 1 << 32, 1 << 33)
        )
        chosen = np.zeros(len(ids), bool)
        chosen[free] = u[free] < share
        chosen[free[np.argmin(u[free])]] = True
        labels.append(np.where(chosen, ids, IGNORED))
        replaced = np.where(chosen, mask, ids)
        if vocabulary is not None:
            replaced = np.where(chosen & (how < 0.1), (what * vocabulary).astype(np.int64), replaced)
            replaced = np.where(chosen & (how >= 0.9), ids, replaced)
        tokens.append(replaced)
    return Examples({**examples.columns, "input_ids": tokens, "labels": labels}, examples.ids, examples.about)
