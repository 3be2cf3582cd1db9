"""Choosing training data: by scores, balanced over tasks, by the losses of two models, and without any model.

`RULES` is the registry: what chooses, and what it chooses by.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from .bids import bids as bids
from .bids import normalised as normalised
from .color import color as color
from .color import loss_reduction as loss_reduction
from .dsir import dsir as dsir
from .dsir import hashed_ngrams as hashed_ngrams
from .reweight import loss_weights as loss_weights
from .top import top_k as top_k


class Rule(NamedTuple):
    """choose: returns ids. needs: "scores" (scores, k), "models" (prior, conditional, k) or "text" (target, raw, k)."""

    choose: Callable[..., Any]
    needs: str


RULES = {
    "top": Rule(top_k, "scores"),
    "bids": Rule(bids, "scores"),
    "color": Rule(color, "models"),
    "dsir": Rule(dsir, "text"),
}
