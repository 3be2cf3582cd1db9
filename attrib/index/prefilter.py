"""Lexical prefilters: which training sequences share tokens with a query, so that only these are scored.

Grosse et al. 2023, Section 3.2.1: keep the sequences with the highest sum over tokens t of (k1 + 1) e / (k1 + e)
IDF(t), k1 = 1.5, e = 1 if the token is in both and 0 if not (so each matched token adds its IDF), IDF(t) =
log((C - n_t + 0.5) / (n_t + 0.5) + 1), n_t the number of the C sequences that contain t. The paper does not say whether
t runs over the query's tokens or over the document's: both are here. BM25 (Robertson and Zaragoza 2009) by bm25s.
"""

import numpy as np
from jaxtyping import Float, Int64
from scipy import sparse

from whence.cache import DataError, Examples, UsageError

RULES = ("tfidf-query", "tfidf-document", "bm25")
K1 = 1.5


def lexical_scores(queries: Examples, train: Examples, rule: str = "tfidf-query") -> Float[np.ndarray, "q n"]:
    """Lexical scores of every training sequence for every query.

    Args:
        rule: "tfidf-query": t runs over the query's tokens, repeats counted; "tfidf-document": over the training
            sequence's; "bm25".

    Raises DataError for examples without tokens, UsageError for an unknown rule.
    """
    if rule not in RULES:
        raise UsageError(f"There is no prefilter {rule!r}.", f"Choose from {', '.join(RULES)}.")
    width = 1 + max(int(np.max(t)) for part in (queries, train) for t in tokens_of(part) if len(t))
    wanted, documents = counts(queries, width), counts(train, width)
    if rule == "bm25":
        return _bm25(queries, train, width)
    containing = np.asarray((documents > 0).sum(0)).ravel()
    idf = np.log1p((len(train) - containing + 0.5) / (containing + 0.5))
    one, other = (wanted, documents.sign()) if rule == "tfidf-query" else (wanted.sign(), documents)
    return np.asarray((one.multiply(idf).tocsr() @ other.T).todense(), np.float32)


def tokens_of(examples: Examples) -> list[Int64[np.ndarray, " s"]]:
    if "input_ids" not in examples.columns:
        raise DataError(
            f"A lexical prefilter compares tokens; these examples have {', '.join(examples.columns)}.",
            "Use it on language data, with a column input_ids.",
        )
    return [np.asarray(t, np.int64) for t in examples.columns["input_ids"]]


def counts(examples: Examples, width: int) -> sparse.csr_matrix:
    """How often each token occurs in each example, [n width]."""
    tokens = tokens_of(examples)
    rows = np.repeat(np.arange(len(tokens)), [len(t) for t in tokens])
    columns = np.concatenate(tokens)
    return sparse.csr_matrix((np.ones(len(columns)), (rows, columns)), (len(tokens), width))


def _bm25(queries: Examples, train: Examples, width: int) -> Float[np.ndarray, "q n"]:
    import bm25s
    from bm25s.tokenization import Tokenized

    names = {str(t): t for t in range(width)}
    retriever = bm25s.BM25(k1=K1)
    retriever.index(Tokenized([t.tolist() for t in tokens_of(train)], names), show_progress=False)
    wanted = [t.tolist() for t in tokens_of(queries)]
    return np.stack([np.asarray(retriever.get_scores_from_ids(ids), np.float32) for ids in wanted])


def candidates(lexical: Float[np.ndarray, "q n"], keep: int) -> Int64[np.ndarray, "q k"]:
    """Rows of the `keep` best sequences of every query, best first, ties in order of row."""
    return np.argsort(-lexical, axis=1, kind="stable")[:, : max(1, min(keep, lexical.shape[1]))]
