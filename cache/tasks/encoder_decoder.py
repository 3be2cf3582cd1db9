"""Encoder-decoder models, such as T5: a source is read, a target is written."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..errors import ModelError
from ..model.examples import Examples
from ..model.stateless import unwrapped
from ..model.task import IGNORED, Batch, TokenTask, column, extras, outputs_of, real_tokens
from .text import encoded


@dataclass(frozen=True)
class EncoderDecoder(TokenTask):
    """Cross-entropy of `labels` [b t], the target's tokens, given `input_ids` [b s], the source's. The decoder reads
    the labels shifted by one, from the model's own start token. The measurement is the log-probability of the target,
    or its margin.

    Args:
        measure: "logprob" or "margin".
        start: the decoder's first token; by default `decoder_start_token_id` of the model's configuration.

    Its losses raise ModelError for a model that names no start token.
    """

    measure: Literal["logprob", "margin"] = "logprob"
    start: int | None = None

    def logits(self, model: nn.Module, batch: Batch) -> Float[Tensor, "b t c"]:
        labels, _ = self.labelled(batch)
        start = self.start
        if start is None:
            start = getattr(getattr(unwrapped(model), "config", None), "decoder_start_token_id", None)
        if start is None:
            raise ModelError(
                f"{type(unwrapped(model)).__name__} names no token that its decoder begins with.",
                "Give EncoderDecoder(start=...), the token that the decoder was trained to begin with.",
            )
        given = torch.cat([torch.full_like(labels[:, :1], start), labels[:, :-1]], dim=1)
        source = column(batch, "input_ids")
        return outputs_of(model(input_ids=source, decoder_input_ids=given, **extras(model, batch)))

    def labelled(self, batch: Batch) -> tuple[Int[Tensor, "b t"], Bool[Tensor, "b t"]]:
        labels = column(batch, "labels")
        if labels.shape[1] == column(batch, "input_ids").shape[1]:  # the two sides are told by their widths
            labels = F.pad(labels, (0, 1), value=IGNORED)
        counted = labels != IGNORED
        return labels.masked_fill(~counted, 0), counted

    def places(self, batch: Batch) -> Int[Tensor, "b t"]:
        labels, _ = self.labelled(batch)
        return torch.arange(labels.shape[1], device=labels.device).expand_as(labels)

    def positions(self, batch: Batch) -> Any:
        """Two masks: the source's tokens [b s], for layers of the encoder and what reads its output, and the target's
        [b t], for layers of the decoder."""
        return real_tokens(batch), self.labelled(batch)[1]


def sequence_pairs(sources: Sequence[str], targets: Sequence[str], tokenizer: Any, *, ids: Any = None) -> Examples:
    """Sources and targets for `EncoderDecoder`, each with the special tokens that the tokenizer adds (T5: the end of
    sequence).

    Args:
        sources, targets: a text each.
        tokenizer: of the model.
        ids: of the examples; 0, 1, 2, ... by default.
    """
    columns = {
        "input_ids": [encoded(tokenizer, text, special=True) for text in sources],
        "labels": [encoded(tokenizer, text, special=True) for text in targets],
    }
    about = {
        "title": list(sources),
        "text": [f"{s} -> {t}" for s, t in zip(sources, targets, strict=True)],
        "prompt": list(sources),
        "completion": list(targets),
    }
    whole = Examples(columns, np.arange(len(sources), dtype=np.int64), about)
    return whole if ids is None else Examples.of(columns, ids, about)
