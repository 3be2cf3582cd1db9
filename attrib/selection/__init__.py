"""Choosing training data: by scores, balanced over tasks, and without any gradient."""

from .bids import bids as bids
from .bids import normalised as normalised
from .dsir import dsir as dsir
from .dsir import hashed_ngrams as hashed_ngrams
from .top import top_k as top_k
