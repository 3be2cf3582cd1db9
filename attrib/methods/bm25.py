"""BM25: words in common, the lexical baseline (Robertson and Zaragoza 2009)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from whence.cache import Examples, Sites, TrainedModel

from ..fitted import Fitted
from ..lexical import bm25, inverse_document_frequency, token_counts
from ..method import Method, in_key


@dataclass(frozen=True)
class Lexicon(Fitted):
    """idf: token -> weight, [vocabulary]. mean_length: tokens in a fitted document. k1, b: BM25's constants."""

    idf: Float[np.ndarray, " v"]
    mean_length: float
    k1: float
    b: float

    units = "BM25"

    def pairwise(self, queries: Examples, train: Examples) -> Float[np.ndarray, "q n"]:
        words, documents = (token_counts(part, len(self.idf)) for part in (queries, train))
        return bm25(words, documents, self.idf, self.mean_length, self.k1, self.b)

    def score_inputs(self, queries: Examples, train: Examples) -> dict[str, Any]:
        """Words know no task."""
        inputs = super().score_inputs(queries, train)
        return {name: value for name, value in inputs.items() if name != "task"}


@dataclass(frozen=True)
class BM25(Method):
    """Needs token sequences and no model; `fit` raises DataError for other examples. A token of the query that no
    fitted document has counts nothing.

    Args:
        k1: how soon repeats of a token stop counting.
        b: how much longer documents are discounted, 0 to 1.
    """

    k1: float = in_key(1.5)
    b: float = in_key(0.75)
    name = "bm25"
    at_sites = False

    def fit_at(self, trained: TrainedModel, sites: Sites) -> Lexicon:
        documents = token_counts(trained.train)
        mean_length = max(documents.sum() / len(trained.train), 1e-9)
        inputs = {"method": self.name, "data": trained.train.fingerprint, **self.settings()}
        idf = inverse_document_frequency(documents)
        return Lexicon(trained, self.name, inputs, idf, mean_length, self.k1, self.b)
