"""The rule by which a person counts as forgotten and the rest as kept: beyond the noise, in both directions."""

import numpy as np
import pytest

from benchmarks.people import GROUPS, Answers, Measured
from benchmarks.people_judged import DRIFT, Judge, Row, decided
from whence.cache.display.interval import Interval

MODELS, FACTS, PEOPLE = 8, {"forgotten": 4, "neighbours": 8, "others": 32}, 3


def row(seed: int, forgotten: float, kept: float = -1.0, noise: float = 0.3, models: np.ndarray | None = None) -> Row:
    """Models whose answers have these log-probabilities; noise: sd of a model's own. models: of another row, paired."""
    rng = np.random.default_rng(seed)
    own = rng.normal(0, noise, (MODELS, 1)) if models is None else models
    difficulty = np.random.default_rng(99).normal(0, 0.5, (PEOPLE, max(FACTS.values())))

    def answers(group: str, person: int) -> Answers:
        level = forgotten if group == "forgotten" else kept
        values = level + difficulty[person, : FACTS[group]] + own + rng.normal(0, 0.05, (MODELS, FACTS[group]))
        return Answers(values[..., None], np.ones((FACTS[group], 1)))

    people = [Measured({g: answers(g, p) for g in GROUPS}, 6.5 - own[:, 0] / 20) for p in range(PEOPLE)]
    return Row("", people, [], 0.0)


def own(seed: int, noise: float = 0.3) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, noise, (MODELS, 1))


BEFORE, ORACLES, INDEPENDENT = row(0, -0.7, models=own(0)), row(1, -8.0), row(2, -8.0)
JUDGE = Judge(ORACLES, BEFORE, INDEPENDENT)


def test_models_that_were_retrained_anew_forget_and_do_not_break_anything() -> None:
    for seed in range(3, 9):
        verdict, words = JUDGE.verdict(row(seed, -8.0))
        assert verdict is not False, words
        assert words.startswith("forgets")


def test_doing_nothing_keeps_the_rest_and_forgets_too_little() -> None:
    verdict, words = JUDGE.verdict(BEFORE)
    assert (verdict, words.split(" (")[0], words.split("; ")[1]) == (False, "too little", "keeps the rest")
    assert words.startswith("too little (+1.00 [+1.00, +1.00])")


@pytest.mark.parametrize(("forgotten", "said"), [(-8.0, "forgets"), (-4.0, "too little"), (-15.0, "too much")])
def test_what_is_forgotten_is_said_with_its_sign(forgotten: float, said: str) -> None:
    assert JUDGE.verdict(row(5, forgotten, models=own(0)))[1].startswith(said)


def test_a_loss_above_the_spread_is_found_although_ensembles_differ_by_as_much() -> None:
    loss = 2 * max(JUDGE.allowed["neighbours"], DRIFT)
    after = row(5, -8.0, -1.0 - loss, models=own(0))
    verdict, words = JUDGE.verdict(after)
    assert not verdict
    assert words.endswith("breaks neighbours, others")
    assert JUDGE.lost(after, "others").value == pytest.approx(loss, abs=0.02)


def test_what_is_allowed_is_at_least_the_drift_and_grows_with_the_noise() -> None:
    assert JUDGE.allowed["others"] >= DRIFT
    quiet = Judge(row(1, -8.0, noise=0.0), BEFORE, row(2, -8.0, noise=0.0))
    assert quiet.allowed["others"] == DRIFT
    loud = Judge(row(1, -8.0, noise=2.0), BEFORE, row(2, -8.0, noise=2.0))
    assert loud.allowed["others"] > 3 * JUDGE.allowed["others"]
    assert Judge(ORACLES, BEFORE).spread("others") == 0.0


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(-0.1, 0.2, True), (0.3, 0.6, False), (0.1, 0.4, None), (-0.4, 0.4, None)]
)
def test_an_interval_decides_only_as_a_whole(low: float, high: float, verdict: bool | None) -> None:
    found = Interval((low + high) / 2, low, high)
    assert decided(found, lambda x: abs(x) <= 0.25, crosses=low < 0 < high) is verdict
