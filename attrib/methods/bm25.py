"""BM25: words in common, the lexical baseline (Robertson and Zaragoza 2009)."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse
from torch import nn

from whence.cache import DataError, Examples, Sites, Store, Task

from ..method import FitOptions
from ..states import kept, labelled

if TYPE_CHECKING:
    import xarray


@dataclass(frozen=True)
class Lexicon:
    """idf: token -> weight, [vocabulary]. mean_length: tokens in a fitted document. k1, b: BM25's constants."""

    method: str
    inputs: Mapping[str, Any]
    idf: np.ndarray
    mean_length: float
    k1: float
    b: float

    def scores(
        self,
        model: nn.Module,
        task: Task,
        queries: Examples,
        train: Examples,
        *,
        store: Store | None = None,
        options: FitOptions = FitOptions(),
    ) -> "xarray.DataArray":
        """sum over the query's tokens of idf tf (k1 + 1) / (tf + k1 (1 - b + b length / mean length))."""

        def make() -> np.ndarray:
            documents = counts(train, len(self.idf))
            length = np.asarray(documents.sum(1)).ravel() / self.mean_length
            entries = documents.tocoo()
            norm = self.k1 * (1 - self.b + self.b * length[entries.row])
            weight = self.idf[entries.col] * entries.data * (self.k1 + 1) / (entries.data + norm)
            weighted = sparse.csr_matrix((weight, (entries.row, entries.col)), documents.shape)
            return np.asarray((counts(queries, len(self.idf)) @ weighted.T).todense())

        values = kept(store, self.inputs, queries, train, make)
        return labelled(values, queries, train, self.method, "BM25", task)


@dataclass(frozen=True)
class BM25:
    """Needs token sequences and no model. A token of the query that no fitted document holds counts nothing."""

    k1: float = 1.5
    b: float = 0.75
    name = "bm25"

    def fit(
        self,
        model: nn.Module,
        task: Task,
        examples: Examples,
        *,
        sites: Sites | None = None,
        store: Store | None = None,
        options: FitOptions = FitOptions(),
    ) -> Lexicon:
        """Document frequencies. Raises DataError where examples are no token sequences."""
        documents = counts(examples, None)
        holding = np.asarray((documents > 0).sum(0)).ravel()
        idf = np.where(holding > 0, np.log1p((len(examples) - holding + 0.5) / (holding + 0.5)), 0.0)
        inputs = {"method": self.name, **asdict(self), "data": examples.fingerprint}
        return Lexicon(self.name, inputs, idf, max(documents.sum() / len(examples), 1e-9), self.k1, self.b)


def counts(examples: Examples, vocabulary: int | None) -> sparse.csr_matrix:
    """How often each example holds each token, [n vocabulary]; tokens past the vocabulary are left out."""
    if "input_ids" not in examples.columns:
        raise DataError(
            f"BM25 compares tokens; these examples have {', '.join(examples.columns)}.",
            "Use it on language data, with a column input_ids.",
        )
    tokens = [np.asarray(t).astype(np.int64) for t in examples.columns["input_ids"]]
    rows = np.repeat(np.arange(len(tokens)), [len(t) for t in tokens])
    columns = np.concatenate(tokens)
    width = int(columns.max()) + 1 if vocabulary is None else vocabulary
    known = (columns >= 0) & (columns < width)
    ones = np.ones(int(known.sum()))
    return sparse.csr_matrix((ones, (rows[known], columns[known])), (len(tokens), width))
