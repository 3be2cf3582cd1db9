"""DSIR: importance resampling on hashed n-grams (Xie et al. 2023), the baseline without model or gradient."""

import numpy as np
from jaxtyping import Float, Int64
from scipy import sparse

from whence.cache import Examples

from ..lexical import real_tokens
from .top import check_k

BUCKETS = 10_000
PRIME = np.uint64(0x100000001B3)


def hashed_ngrams(examples: Examples, buckets: int = BUCKETS) -> sparse.csr_matrix:
    """Counts [n buckets] of each example's tokens and pairs of neighbouring tokens, hashed. Raises DataError for
    examples that are not token sequences."""
    rows, columns = [], []
    for row, tokens in enumerate(real_tokens(examples)):
        ids = tokens.astype(np.uint64)
        pairs = (ids[:-1] + np.uint64(1)) * PRIME ^ (ids[1:] + np.uint64(1)) * (PRIME + np.uint64(2))
        grams = np.concatenate([(ids + np.uint64(1)) * PRIME, pairs])
        grams ^= grams >> np.uint64(29)
        columns.append((grams % np.uint64(buckets)).astype(np.int64))
        rows.append(np.full(len(grams), row))
    flat = np.concatenate(columns)
    return sparse.csr_matrix((np.ones(len(flat)), (np.concatenate(rows), flat)), (len(examples), buckets))


def log_weights(target: Examples, raw: Examples, buckets: int = BUCKETS) -> Float[np.ndarray, " n"]:
    """log p_target(x) - log p_raw(x) of every raw example under bags of hashed n-grams, one count of smoothing each."""
    features = hashed_ngrams(raw, buckets)

    def log_probability(counts: sparse.csr_matrix) -> np.ndarray:
        total = np.asarray(counts.sum(0)).ravel() + 1.0
        return np.log(total / total.sum())

    return np.asarray(features @ (log_probability(hashed_ngrams(target, buckets)) - log_probability(features))).ravel()


def dsir(
    target: Examples, raw: Examples, k: int, *, buckets: int = BUCKETS, seed: int | None = 0
) -> Int64[np.ndarray, " k"]:
    """Ids of k raw examples drawn without replacement in proportion to their importance weights (the Gumbel top-k
    trick); seed None: the k largest weights, no draw. Raises UsageError for a k that is not 1 to n."""
    check_k(k, len(raw))
    weights = log_weights(target, raw, buckets)
    if seed is not None:
        weights = weights + np.random.default_rng(seed).gumbel(size=len(weights))
    return raw.ids[np.argsort(-weights, kind="stable")[:k]]
