"""Scores of groups against sums of scores."""

import numpy as np
import pytest

from whence.attrib.scoring.groups import groups_by
from whence.cache import DataError


def test_a_group_s_score_is_the_sum_of_its_members_scores(fitted) -> None:
    factors, queries, exact = fitted.factors, fitted.queries, fitted.exact
    query_groups = {"first two": queries.ids[:2], "all": np.ones(5, bool)}
    topics = groups_by(fitted.trained.train, "topic")
    found = factors.group_scores(queries, query_groups=query_groups, train_groups=topics)
    wanted = np.array([[exact[q][:, t::2].sum() for t in (0, 1)] for q in ([0, 1], range(5))])
    np.testing.assert_allclose(found.values, wanted, rtol=1e-3, atol=1e-6)
    assert list(found.train.values) == ["even", "odd"]
    assert list(found["query"].values) == ["first two", "all"]
    np.testing.assert_allclose(factors.group_scores(queries).values, exact.sum(), rtol=1e-3)


def test_groups_that_do_not_match_are_refused(fitted) -> None:
    def grouped(**groups):
        return fitted.factors.group_scores(fitted.queries, **groups)

    with pytest.raises(DataError, match=r"mask of group 'a' has shape \(7,\); there are 30 training examples"):
        grouped(train_groups={"a": np.ones(7, bool)})
    with pytest.raises(DataError, match="has no queries in it"):
        grouped(query_groups={"a": np.zeros(5, bool)})
    with pytest.raises(DataError, match="are not among these"):
        grouped(train_groups={"a": [10**6]})
    with pytest.raises(DataError, match="have no 'title'"):
        groups_by(fitted.trained.train, "title")
