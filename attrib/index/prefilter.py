"""Lexical prefilters: which training sequences share tokens with a query, so that only these are scored.

Grosse et al. 2023, Section 3.2.1: keep the sequences with the highest sum over tokens t of (k1 + 1) e / (k1 + e)
IDF(t), k1 = 1.5, e = 1 if the token is in both and 0 if not (so each matched token adds its IDF), IDF(t) =
log((C - n_t + 0.5) / (n_t + 0.5) + 1), n_t the number of the C sequences that contain t. The paper does not say whether
t runs over the query's tokens or over the document's: both are here. BM25: Robertson and Zaragoza 2009.
"""

import numpy as np
from jaxtyping import Float, Int64

from whence.cache import Examples, UsageError

from ..lexical import bm25, inverse_document_frequency, token_counts

RULES = ("tfidf-query", "tfidf-document", "bm25")


def lexical_scores(queries: Examples, train: Examples, rule: str = "tfidf-query") -> Float[np.ndarray, "q n"]:
    """Lexical scores of every training sequence for every query.

    Args:
        rule: "tfidf-query": t runs over the query's tokens, repeats counted; "tfidf-document": over the training
            sequence's; "bm25".

    Raises DataError for examples without tokens, UsageError for an unknown rule.
    """
    if rule not in RULES:
        raise UsageError(f"There is no prefilter {rule!r}.", f"Choose from {', '.join(RULES)}.")
    documents = token_counts(train)
    wanted, idf = token_counts(queries, documents.shape[1]), inverse_document_frequency(documents)
    if rule == "bm25":
        return bm25(wanted, documents, idf, max(documents.sum() / len(train), 1e-9)).astype(np.float32)
    one, other = (wanted, documents.sign()) if rule == "tfidf-query" else (wanted.sign(), documents)
    return np.asarray((one.multiply(idf).tocsr() @ other.T).todense(), np.float32)


def candidates(lexical: Float[np.ndarray, "q n"], keep: int) -> Int64[np.ndarray, "q k"]:
    """Rows of the `keep` best sequences of every query, best first, ties in order of row."""
    return np.argsort(-lexical, axis=1, kind="stable")[:, : max(1, min(keep, lexical.shape[1]))]
