"""Lexical prefilters: which training sequences share tokens with a query, so that only these are scored.

Grosse et al. 2023, Section 3.2.1: keep the sequences with the highest sum over tokens t of (k1 + 1) e / (k1 + e)
IDF(t), k1 = 1.5, e = 1 where the token is in both and 0 elsewhere (so each matched token counts its IDF), IDF(t) =
log((C - n_t + 0.5) / (n_t + 0.5) + 1), n_t of the C sequences holding t. Whether t runs over the query's tokens or
over the document's is not said: both are here. BM25 (Robertson and Zaragoza 2009) by bm25s.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Float, Int64
from scipy import sparse

from whence.cache import DataError, Examples, UsageError

if TYPE_CHECKING:
    import xarray

RULES = ("tfidf-query", "tfidf-document", "bm25")
K1 = 1.5


def lexical_scores(queries: Examples, train: Examples, rule: str = "tfidf-query") -> Float[np.ndarray, "q n"]:
    """Scores of every training sequence for every query.

    tfidf-query: t runs over the query's tokens, repeats counted; tfidf-document: over the training sequence's.
    Raises DataError where there are no tokens, UsageError for an unknown rule.
    """
    if rule not in RULES:
        raise UsageError(f"There is no prefilter {rule!r}.", f"There are {', '.join(RULES)}.")
    width = 1 + max(int(np.max(t)) for part in (queries, train) for t in tokens_of(part) if len(t))
    asked, documents = counts(queries, width), counts(train, width)
    if rule == "bm25":
        return _bm25(queries, train, width)
    holding = np.asarray((documents > 0).sum(0)).ravel()
    idf = np.log1p((len(train) - holding + 0.5) / (holding + 0.5))
    one, other = (asked, documents.sign()) if rule == "tfidf-query" else (asked.sign(), documents)
    return np.asarray((one.multiply(idf).tocsr() @ other.T).todense(), np.float32)


def tokens_of(examples: Examples) -> list[Int64[np.ndarray, " s"]]:
    if "input_ids" not in examples.columns:
        raise DataError(
            f"A lexical prefilter compares tokens; these examples have {', '.join(examples.columns)}.",
            "Use it on language data, with a column input_ids.",
        )
    return [np.asarray(t, np.int64) for t in examples.columns["input_ids"]]


def counts(examples: Examples, width: int) -> sparse.csr_matrix:
    """How often each example holds each token, [n width]."""
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
    asked = [t.tolist() for t in tokens_of(queries)]
    return np.stack([np.asarray(retriever.get_scores_from_ids(ids), np.float32) for ids in asked])


def candidates(lexical: Float[np.ndarray, "q n"], keep: int) -> Int64[np.ndarray, "q k"]:
    """Rows of the `keep` best sequences of every query, best first, ties in order of row."""
    return np.argsort(-lexical, axis=1, kind="stable")[:, : max(1, min(keep, lexical.shape[1]))]


class Ladder(NamedTuple):
    """shares: of the training set that is scanned, 0 to 1; recall: of the exact top k among what is scanned, the mean
    over queries at each share; rule: of the prefilter."""

    rule: str
    k: int
    shares: Float[np.ndarray, " h"]
    recall: Float[np.ndarray, " h"]

    def __str__(self) -> str:
        steps = ", ".join(f"{s:.1%}: {r:.3f}" for s, r in zip(self.shares, self.recall))
        return f"{self.rule}, recall of the exact top {self.k} by share scanned: {steps}"


def recall_by_share(
    lexical: Float[np.ndarray, "q n"],
    exact: "xarray.DataArray | Float[np.ndarray, 'q n']",
    *,
    k: int = 10,
    shares: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0),
    rule: str = "",
) -> Ladder:
    """How much of the exact top k a prefilter finds when it lets a share of the training set through."""
    values = np.asarray(exact)
    if values.shape != lexical.shape:
        raise DataError(
            f"Lexical scores are {lexical.shape}, exact ones {values.shape}.", "Score the same queries and examples."
        )
    best = np.argsort(-values, axis=1, kind="stable")[:, : min(k, values.shape[1])]
    place = np.empty(lexical.shape, np.int64)
    order = np.argsort(-lexical, axis=1, kind="stable")
    np.put_along_axis(place, order, np.broadcast_to(np.arange(lexical.shape[1]), lexical.shape), axis=1)
    reached = np.take_along_axis(place, best, axis=1)
    kept = np.array([max(1, round(share * lexical.shape[1])) for share in shares])
    return Ladder(rule, k, np.array(shares), np.array([(reached < keep).mean() for keep in kept]))
