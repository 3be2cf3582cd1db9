"""What scores become at scale: low rank, cost-chosen forms, precision, relative, top, groups, heads. Each against the
plain pairwise scores or a dense oracle."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests import cases, reference
from whence import attrib
from whence.attrib import EKFAC, FitOptions, contraction, kernels
from whence.attrib.groups import group_scores, groups_by
from whence.attrib.heads import Head, find_heads, head_scores
from whence.attrib.lowrank import curvature_weights, truncated
from whence.attrib.queries import check_fits, hold_queries, prepared_queries, settled_rank
from whence.attrib.relative import relative
from whence.attrib.room import check_fit_fits, fit_bytes
from whence.attrib.topk import ends, top
from whence.cache import DataError, Examples, ModelError, NumericalError, ResourceError, Store, UsageError, find_sites

QUIET = FitOptions(quiet=True)
LENGTHS = np.array([9])


@pytest.fixture(scope="module")
def case() -> cases.Case:
    found = cases.build("attention")
    train = cases.sequences(30)
    data = Examples(train.columns, train.ids, {"topic": ["even" if n % 2 == 0 else "odd" for n in range(30)]})
    return cases.Case("scale", found.model.float(), data, found.task, {"pattern": ["qkv", "out"]})


@pytest.fixture(scope="module")
def queries() -> Examples:
    return cases.sequences(5, seed=9)


@pytest.fixture(scope="module")
def factors(case: cases.Case) -> attrib.Factors:
    return EKFAC().fit(case.model, case.task, case.examples, sites=case.sites, options=QUIET)


@pytest.fixture(scope="module")
def exact(case: cases.Case, factors: attrib.Factors, queries: Examples) -> np.ndarray:
    return attrib.score(factors, case.model, case.task, queries, case.examples, rank=None, options=QUIET).values


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def score(case: cases.Case, factors: attrib.Factors, queries: Examples, **more) -> np.ndarray:
    return attrib.score(factors, case.model, case.task, queries, case.examples, options=QUIET, **more).values


class Wide(torch.nn.Module):
    """One layer wide enough for rank 64 to be a choice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.head = torch.nn.Embedding(7, 72), torch.nn.Linear(72, 72), torch.nn.Linear(72, 7)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(input_ids).cumsum(1)
        return self.head(torch.tanh(self.mix(x)))


def test_every_rank_up_to_the_whole() -> None:
    """r = 1 to 64: agreement rises to exactness; at ranks that no smaller factors exist for, queries stay whole."""
    torch.manual_seed(0)
    model, task = Wide(), cases.build("flat rows").task
    rng = np.random.default_rng(0)  # one length: one shape to compile
    train, queries = (Examples.of({"input_ids": rng.integers(0, 7, (n, 24))}) for n in (40, 6))
    sites = find_sites(model, "mix", quiet=True)
    factors = EKFAC().fit(model, task, train, sites=sites, options=QUIET)

    def scores(rank: int | None) -> np.ndarray:
        return attrib.score(factors, model, task, queries, train, rank=rank, options=QUIET).values

    exact = scores(None)
    found = [correlation(scores(rank), exact) for rank in (1, 2, 4, 8, 16, 32, 64)]
    assert found[0] > 0.5
    assert all(b > a - 0.01 for a, b in itertools.pairwise(found))
    assert found[5] > 0.995
    assert found[6] > 1 - 1e-6


def test_weighted_truncation_loses_least_of_the_score() -> None:
    """Against gradients whose second moments are the eigenvalues, in their basis: the expected squared error."""
    rng = np.random.default_rng(0)
    o, i, rank = 12, 15, 3
    state = attrib.SiteFactors(
        np.linalg.qr(rng.normal(size=(i, i)))[0],
        np.linalg.qr(rng.normal(size=(o, o)))[0],
        np.outer(np.logspace(0, -4, o), np.logspace(0, -3, i)) * rng.uniform(0.5, 1.5, (o, i)),
    )
    site = find_sites(torch.nn.Linear(i, o, bias=False), quiet=True)
    factors = attrib.Factors("ekfac", site, {site[0].name: state}, 1, attrib.Damping(), {})
    value = factors.inverse_product({site[0].name: jnp.asarray(rng.normal(size=(4, o, i)), jnp.float32)})[site[0].name]

    def loss(weighted: bool) -> float:
        low = truncated(factors, site[0].name, value, rank, weighted)
        error = state.qs.T @ np.asarray(value - low.dense(), np.float64) @ state.qa
        return float((state.eigenvalues * error**2).sum())

    assert loss(True) < 0.1 * loss(False)
    u, v = curvature_weights(np.outer([1.0, 4.0], [9.0, 1.0, 0.0]))
    np.testing.assert_allclose(u, [0.5, 1.0])
    np.testing.assert_allclose(v, [1.0, 1 / 3, 1e-3])
    np.testing.assert_array_equal(curvature_weights(np.zeros((2, 3))).u, [1, 1])


@pytest.mark.parametrize("positions", [2, 60])
def test_inverse_of_gradients_as_they_come(positions: int) -> None:
    """From positions as from formed gradients, whichever is rotated; without a basis too."""
    rng = np.random.default_rng(0)
    o, i = 12, 15
    site = find_sites(torch.nn.Linear(i, o, bias=False), quiet=True)
    qa, qs = (np.linalg.qr(rng.normal(size=(w, w)))[0] for w in (i, o))
    a, g = (jnp.asarray(rng.normal(size=(3, positions, w)), jnp.float32) for w in (i, o))
    for bases in ((qa, qs), (None, None)):
        state = attrib.SiteFactors(*bases, rng.random((o, i)))
        factors = attrib.Factors("ekfac", site, {site[0].name: state}, 1, attrib.Damping(), {})
        found = factors.inverse_gradients({site[0].name: a}, {site[0].name: g})[site[0].name]
        wanted = factors.inverse_product({site[0].name: kernels.gradients(a, g)})[site[0].name]
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())


def test_forms_agree() -> None:
    rng = np.random.default_rng(0)
    a, g = (jnp.asarray(rng.normal(size=(3, 5, w)), jnp.float32) for w in (6, 7))
    low = attrib.lowrank.LowRank(*(jnp.asarray(rng.normal(size=(4, w, 2)), jnp.float32) for w in (7, 6)))
    wanted = np.einsum("qoi,bso,bsi->qb", low.dense(), g, a)
    found = [
        contraction.products(low.dense(), a, g, "tiles"),
        contraction.products(low, a, g, "rank"),
        contraction.products(low, a, g, "positions"),
        kernels.rebuilt_products(low.left, low.right, a, g, tile=3),
    ]
    for each in found:
        np.testing.assert_allclose(each, wanted, rtol=1e-4, atol=1e-4)
    summed = kernels.add_gradient(kernels.zero_sum((7, 6), jnp.float32), a, g)
    np.testing.assert_allclose(summed.high, np.einsum("bso,bsi->oi", g, a), rtol=1e-4, atol=1e-5)


def test_form_follows_cost_and_bytes(case) -> None:
    site = find_sites(torch.nn.Linear(1024, 1024, bias=False), quiet=True)

    def form(queries: int, rank: int | None, limit: float) -> str:
        return contraction.choose(site, queries, 512, 16, rank, int(limit), 4)[site[0].name].form

    assert form(4, 32, 1e12) == "positions"
    assert form(512, 32, 1e12) == "tiles"
    assert form(512, 32, 1e8) == "rank"
    assert form(512, None, 1e8) == "tiles"
    works = {w.form: w for w in contraction.options(64, 512, 16, 1024, 1024, 32)}
    assert works["tiles"].operations == 2 * 512 * 1024**2 + 2 * 64 * 1024**2
    assert works["tiles"].nbytes == 64 * 1024**2 * 4
    assert works["rank"].nbytes == 64 * 32 * 2048 * 4
    assert [w.form for w in contraction.options(4, 512, 16, 20, 20, 32)] == ["tiles"]  # no smaller factors


def test_precision(case, factors, queries, exact) -> None:
    for precision in ("tf32", "bfloat16"):
        found = score(case, factors, queries, precision=precision)
        assert correlation(found, exact) > 0.98
    low = score(case, factors, queries, rank=2, precision="bfloat16")
    assert correlation(low, exact) > 0.8
    held = hold_queries(factors, case.model, case.task, queries, LENGTHS, precision="bfloat16", options=QUIET)
    assert {v.dtype for v in held.values.values()} == {jnp.dtype(jnp.bfloat16)}


def test_rank_is_settled_by_memory(factors, capsys, monkeypatch) -> None:
    monkeypatch.delenv("WHENCE_QUIET", raising=False)
    assert settled_rank(factors, 5, "auto", "float32", QUIET) is None
    assert settled_rank(factors, 10**9, "auto", "float32", QUIET) == 32
    assert "held at rank 32" in capsys.readouterr().err
    assert settled_rank(factors, 10**9, 4, "float32", QUIET) == 4
    with pytest.raises(UsageError, match="A rank of 0"):
        settled_rank(factors, 5, 0, "float32", QUIET)


def test_queries_that_do_not_fit_say_what_would(case, factors, queries) -> None:
    with pytest.raises(ResourceError, match="at rank=32, score at most 2 queries at a time"):
        hold_queries(factors, case.model, case.task, queries, LENGTHS, options=FitOptions(memory=5_000, quiet=True))
    with pytest.raises(ResourceError, match="To fit, score at most 10 queries"):
        check_fits(20, 32, 2_000, 1_000)


def test_factors_that_do_not_fit_say_what_would(case) -> None:
    assert fit_bytes(case.sites) > 17_000
    with pytest.raises(ResourceError, match=r"Choose fewer sites \(the 1 smallest of the 2 sites fit"):
        check_fit_fits(case.sites, 17_000)
    check_fit_fits(case.sites, 10**6)


def test_relative(case, factors, queries, exact) -> None:
    own = reference.site_gradients(case.model, case.sites, case.examples, case.task.loss)
    step = factors.inverse_product({n: jnp.asarray(g, jnp.float32) for n, g in own.items()})
    loss = np.sqrt(sum((np.asarray(step[n]) * own[n]).sum((1, 2)) for n in own))
    parameters = np.sqrt(sum(np.square(np.asarray(step[n])).sum((1, 2)) for n in own))
    scores = attrib.score(factors, case.model, case.task, queries, case.examples, options=QUIET)
    for per, norm in (("loss", loss), ("parameters", parameters)):
        found = relative(scores, factors, case.model, case.task, case.examples, per=per, options=QUIET)
        np.testing.assert_allclose(found.values, exact / norm, rtol=1e-3, atol=1e-7)
        assert found.attrs["relative"] == per
    with pytest.raises(DataError, match="not of these"):
        relative(scores, factors, case.model, case.task, case.examples.select(range(4)), options=QUIET)


@pytest.mark.parametrize("kept", [False, True])
def test_top_is_the_sorted_scores_ends(case, factors, queries, exact, tmp_path, monkeypatch, kept) -> None:
    monkeypatch.setattr("whence.attrib.topk.SHARD_ROWS", 11)
    store = Store(tmp_path) if kept else None
    found = top(factors, case.model, case.task, queries, case.examples, 4, store=store, options=QUIET)
    order = np.argsort(-exact, axis=1)
    np.testing.assert_array_equal(found.helpful_id.values, case.examples.ids[order[:, :4]])
    np.testing.assert_array_equal(found.harmful_id.values, case.examples.ids[order[:, ::-1][:, :4]])
    np.testing.assert_allclose(found.helpful.values, np.take_along_axis(exact, order[:, :4], 1), rtol=1e-4)
    if store is not None:
        top(factors, case.model, case.task, queries, case.examples, 4, store=store, options=QUIET)
        assert store.events[-1].what == "hit"
    with pytest.raises(UsageError, match="top 0"):
        top(factors, case.model, case.task, queries, case.examples, 0, options=QUIET)


def test_ends_of_short_rows() -> None:
    values, places = ends(np.array([[1.0, 3.0, 3.0]]), 5)
    np.testing.assert_array_equal(values, [[3, 3, 1, -np.inf, -np.inf]])
    np.testing.assert_array_equal(places, [[1, 2, 0, -1, -1]])


def test_groups_are_sums(case, factors, queries, exact) -> None:
    asked = {"first two": queries.ids[:2], "all": np.ones(5, bool)}
    found = group_scores(
        factors, case.model, case.task, queries, case.examples,
        query_groups=asked, train_groups=groups_by(case.examples, "topic"), options=QUIET,
    )  # fmt: skip
    wanted = np.array([[exact[q][:, t::2].sum() for t in (0, 1)] for q in ([0, 1], range(5))])
    np.testing.assert_allclose(found.values, wanted, rtol=1e-3, atol=1e-6)
    assert list(found.train.values) == ["even", "odd"]
    assert list(found["query"].values) == ["first two", "all"]
    whole = group_scores(factors, case.model, case.task, queries, case.examples, options=QUIET)
    np.testing.assert_allclose(whole.values, exact.sum(), rtol=1e-3)


def test_groups_that_do_not_match(case, factors, queries) -> None:
    def grouped(**groups):
        return group_scores(factors, case.model, case.task, queries, case.examples, options=QUIET, **groups)

    with pytest.raises(DataError, match=r"mask of group 'a' has shape \(7,\); there are 30 training examples"):
        grouped(train_groups={"a": np.ones(7, bool)})
    with pytest.raises(DataError, match="has no queries in it"):
        grouped(query_groups={"a": np.zeros(5, bool)})
    with pytest.raises(DataError, match="are not among these"):
        grouped(train_groups={"a": [10**6]})
    with pytest.raises(DataError, match="Nothing called 'title'"):
        groups_by(case.examples, "title")


def test_heads_add_up_to_their_maps(case, factors, queries) -> None:
    heads = find_heads(case.sites.only(["qkv"]), 2)
    assert [h.name for h in heads] == [f"qkv/{p}{n}" for p in "qkv" for n in range(2)]
    reads = [Head("out", "o", n, "in", 4 * n, 4 * n + 4) for n in range(2)]
    found = head_scores(factors, case.model, case.task, queries, case.examples, [*heads, *reads], options=QUIET)
    by_site = attrib.score(factors, case.model, case.task, queries, case.examples, per_site=True, options=QUIET)
    np.testing.assert_allclose(
        found.values[..., :6].sum(-1), by_site.sel(site="qkv").values, atol=1e-5 * np.abs(by_site.values).max()
    )
    # the output map's bias belongs to no head
    prepared = prepared_queries(factors, case.model, case.task, queries, QUIET)["out"]
    own = reference.site_gradients(case.model, case.sites, case.examples, case.task.loss)["out"]
    wanted = -np.einsum("qoi,noi->qn", np.asarray(prepared)[:, :, :8], own[:, :, :8]) / 30
    np.testing.assert_allclose(found.values[..., 6:].sum(-1), wanted, atol=1e-5 * np.abs(wanted).max())


def test_heads_by_the_names_in_use() -> None:
    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.self_attn = torch.nn.ModuleDict(
                {"q_proj": torch.nn.Linear(8, 8), "k_proj": torch.nn.Linear(8, 4), "o_proj": torch.nn.Linear(8, 8)}
            )
            self.mlp = torch.nn.Linear(8, 8)

    found = find_heads(find_sites(Block(), quiet=True), 4, 2)
    assert [(h.name, h.axis, h.start) for h in found if h.number == 1] == [
        ("self_attn.q_proj/q1", "out", 2), ("self_attn.k_proj/k1", "out", 2), ("self_attn.o_proj/o1", "in", 2),
    ]  # fmt: skip
    with pytest.raises(ModelError, match="does not divide into 3 heads"):
        find_heads(find_sites(Block(), quiet=True), 3, 3)
    with pytest.raises(ModelError, match="None of these sites is an attention map"):
        find_heads(find_sites(Block(), "mlp", quiet=True), 4)


class Overflowing(torch.nn.Module):
    """Its loss is finite, the gradient of an example that holds the number 5 is not."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = torch.nn.Linear(4, 6), torch.nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.b(torch.tanh(self.a(x)))
        if out.requires_grad:
            odd = (x == 5).any(1, keepdim=True)
            out.register_hook(lambda g: g.masked_fill(odd, float("inf")))
        return out


def test_an_infinite_gradient_is_named_and_left_out_by_choice() -> None:
    torch.manual_seed(0)
    x = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
    x[7, 1] = 5
    examples = Examples.of({"x": x, "y": np.arange(12) % 3}, ids=np.arange(12) + 100)
    model, task = Overflowing(), cases.build("mlp").task
    with pytest.raises(NumericalError, match=r"gradient is not finite for 1 examples of this batch: ids \[107\]"):
        EKFAC().fit(model, task, examples, options=QUIET)
    clean = attrib.finite_examples(model, task, examples, options=QUIET)
    assert list(examples.ids[~np.isin(examples.ids, clean.ids)]) == [107]
    factors = EKFAC().fit(model, task, clean, options=QUIET)
    with pytest.raises(NumericalError, match=r"ids \[107\]"):
        attrib.score(factors, model, task, clean.select([0]), examples, options=QUIET)
    assert np.isfinite(attrib.score(factors, model, task, clean.select([0]), clean, options=QUIET).values).all()


def test_fewer_examples_than_dimensions(case) -> None:
    """Singular factors: damping carries the directions that no example has; without damping they are left out."""
    few = case.examples.select(range(2))
    for damping in (attrib.Damping(), attrib.Damping(0.0, "absolute")):
        factors = EKFAC(damping=damping).fit(case.model, case.task, few, sites=case.sites, options=QUIET)
        found = attrib.score(factors, case.model, case.task, few, few, options=QUIET)
        assert np.isfinite(found.values).all()
        assert (np.diag(found.values) > 0).all()
