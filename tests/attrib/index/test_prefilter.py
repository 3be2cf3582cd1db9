"""Lexical prefilters against their formulas."""

import numpy as np
import pytest

from tests import cases
from whence.attrib.index.prefilter import candidates, lexical_scores
from whence.cache import DataError, Examples, UsageError


def test_prefilters_by_their_formulas() -> None:
    documents, wanted = [[1, 2, 2, 3], [4, 5, 1], [2, 2, 2, 6]], [[2, 3, 3], [9, 1]]
    train, queries = (Examples.of({"input_ids": [np.array(t) for t in rows]}) for rows in (documents, wanted))
    containing = {t: sum(t in d for d in documents) for t in range(10)}
    idf = {t: np.log((3 - n + 0.5) / (n + 0.5) + 1) for t, n in containing.items()}
    over_query = [[sum(idf[t] for t in q if t in d) for d in documents] for q in wanted]
    over_document = [[sum(idf[t] for t in d if t in q) for d in documents] for q in wanted]
    np.testing.assert_allclose(lexical_scores(queries, train, "tfidf-query"), over_query, rtol=1e-5)
    np.testing.assert_allclose(lexical_scores(queries, train, "tfidf-document"), over_document, rtol=1e-5)
    bm25 = lexical_scores(queries, train, "bm25")
    assert bm25.shape == (2, 3)
    assert bm25[0].argmax() == 0
    assert bm25[1, 2] == 0
    np.testing.assert_array_equal(candidates(bm25, 2)[0], [0, 2])
    with pytest.raises(UsageError, match="no prefilter"):
        lexical_scores(queries, train, "words")
    with pytest.raises(DataError, match="compares tokens"):
        lexical_scores(cases.vectors(), cases.vectors())
