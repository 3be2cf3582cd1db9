"""What the documentation claims, held by the programs that show it."""

from benchmarks import unlearning_convex


def test_targets_converge_where_ascent_turns_away():
    found = unlearning_convex.results()
    newton = max(unlearning_convex.newton_ridge(unlearning_convex.ridge_problem(seed)) for seed in range(3))
    claims = unlearning_convex.claims(found, newton, unlearning_convex.newton_logistic())
    assert all(claims.values()), claims
