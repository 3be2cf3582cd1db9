"""Every method finds what is planted, and depends on the model's weights."""

from dataclasses import replace

import numpy as np
import pytest

from whence.attrib import METHODS
from whence.cache import Examples, LanguageModelling, UsageError
from whence.cache.retrain.recipe import AdamW, Recipe
from whence.problems.problem import Problem, digits_problem
from whence.problems.sanity import KINDS, RANDOMISED, check, planted
from whence.problems.small_transformer import SmallTransformer

VOCABULARY, LENGTH, COUNT = 18, 12, 48
NO_QUERY = {"grand", "el2n"}  # the same scores for every query
NO_MODEL = {"bm25"}


def passages(count: int, seed: int) -> Examples:
    """Two topics that count up in steps of one and of five, from anywhere, modulo 16."""
    rng = np.random.default_rng(seed)
    topics = rng.integers(0, 2, count)
    tokens = [(rng.integers(16) + np.arange(LENGTH) * (5 if topic else 1)) % 16 for topic in topics]
    tokens[0][:2] = 16, 17
    ids = np.arange(count) + 100 * seed
    return Examples.of({"input_ids": tokens}, ids=ids, about={"topic": [f"topic {t}" for t in topics]})


@pytest.fixture(scope="module")
def problem() -> Problem:
    def start(seed: int) -> SmallTransformer:
        return SmallTransformer(VOCABULARY, width=16, context=LENGTH, layers=1)

    recipe = Recipe(6, 12, AdamW(1e-2, eps=1e-2), batches="shared")
    return Problem(
        "counting", start, LanguageModelling(), passages(COUNT, 0), passages(8, 1), recipe, ("blocks.*",),
        pretrained=True,
    )  # fmt: skip


def test_what_is_planted(problem: Problem) -> None:
    case = planted(problem, count=8, asked=3)
    tokens = np.stack(case.problem.train.columns["input_ids"])
    before = np.stack(problem.train.columns["input_ids"])
    queries = np.stack(case.problem.queries.columns["input_ids"])
    assert case.right.shape == (12, COUNT)
    assert case.right.any(1).all()
    found = {kind: case.right[case.kinds == kind] for kind in KINDS}
    asked = np.stack(case.problem.queries.columns["labels"])
    for query, labels in zip(queries[:3], asked[:3]):
        (place,) = np.flatnonzero(labels >= 0)
        assert sorted(query[place - 1 : place + 1]) == [16, 17]
    for row in np.flatnonzero(found["shortcut"][0]):
        assert {16, 17} <= set(tokens[row].tolist())
        places = np.flatnonzero(tokens[row] == query[place - 1])
        assert len(places) == 3
        assert set(tokens[row][places + 1]) == {query[place]}
    for row in np.flatnonzero(found["foreign"][0]):
        np.testing.assert_array_equal(tokens[row], before[row, ::-1])
    for query, right in zip(queries[case.kinds == "duplicates"], found["duplicates"]):
        assert right.sum() == 2
        assert (tokens[right] == query).all()
    with pytest.raises(UsageError, match="Nothing can be planted"):
        planted(digits_problem(train=40, queries=4))
    with pytest.raises(UsageError, match="too few"):
        planted(replace(problem, train=problem.train.select(range(20))), count=8, asked=3)


def test_every_method_finds_what_is_planted_and_depends_on_the_weights(problem: Problem) -> None:
    found = check(problem, list(METHODS), count=8, asked=3, quiet=True)
    assert set(found) == set(METHODS)
    for name, values in found.items():
        if name in NO_MODEL:
            assert values[RANDOMISED] == 1.0
        else:
            assert values[RANDOMISED] < 0.9, name
        if name not in NO_QUERY:
            assert np.mean([values[kind] for kind in KINDS]) > 0.6, name
