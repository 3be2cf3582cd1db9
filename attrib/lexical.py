"""Words in common: token counts, inverse document frequencies and BM25 (Robertson and Zaragoza 2009)."""

import numpy as np
from jaxtyping import Float, Int64
from scipy import sparse

from whence.cache import DataError, Examples


def real_tokens(examples: Examples) -> list[Int64[np.ndarray, " s"]]:
    """The tokens of every example, without padding. Raises DataError for examples that are not token sequences."""
    if "input_ids" not in examples.columns:
        raise DataError(
            f"This compares tokens; these examples have {', '.join(examples.columns)}.",
            "Use it on language data, with a column input_ids.",
        )
    tokens = [np.asarray(each).astype(np.int64) for each in examples.columns["input_ids"]]
    masks = examples.columns.get("attention_mask")
    return tokens if masks is None else [each[np.asarray(mask).astype(bool)] for each, mask in zip(tokens, masks)]


def token_counts(examples: Examples, vocabulary: int | None = None) -> sparse.csr_matrix:
    """How often each example has each token, [n vocabulary].

    Args:
        examples: token sequences.
        vocabulary: tokens at or past it are not counted; by default one more than the largest token.

    Raises DataError for examples that are not token sequences.
    """
    tokens = real_tokens(examples)
    rows = np.repeat(np.arange(len(tokens)), [len(t) for t in tokens])
    columns = np.concatenate(tokens)
    width = int(columns.max(initial=-1)) + 1 if vocabulary is None else vocabulary
    known = (columns >= 0) & (columns < width)
    ones = np.ones(int(known.sum()))
    return sparse.csr_matrix((ones, (rows[known], columns[known])), (len(tokens), width))


def inverse_document_frequency(documents: sparse.csr_matrix) -> Float[np.ndarray, " v"]:
    """log(1 + (n - n_t + 0.5) / (n_t + 0.5)), n_t of the n documents having token t; 0 for a token that none has."""
    having = np.asarray((documents > 0).sum(0)).ravel()
    return np.where(having > 0, np.log1p((documents.shape[0] - having + 0.5) / (having + 0.5)), 0.0)


def bm25(
    queries: sparse.csr_matrix,
    documents: sparse.csr_matrix,
    idf: Float[np.ndarray, " v"],
    mean_length: float,
    k1: float = 1.5,
    b: float = 0.75,
) -> Float[np.ndarray, "q n"]:
    """sum over the query's tokens of idf tf (k1 + 1) / (tf + k1 (1 - b + b length / mean length)), from counts."""
    length = np.asarray(documents.sum(1)).ravel() / mean_length
    entries = documents.tocoo()
    norm = k1 * (1 - b + b * length[entries.row])
    weight = idf[entries.col] * entries.data * (k1 + 1) / (entries.data + norm)
    weighted = sparse.csr_matrix((weight, (entries.row, entries.col)), documents.shape)
    return np.asarray((queries @ weighted.T).todense())
