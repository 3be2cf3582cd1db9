"""Attribution methods on a fine-tuned language model: this library's and its peers', judged by retraining.

A transformer of two layers and width 64 is pretrained on 6,300 passages of the Python language reference and
fine-tuned on 256 others; scores are of the layers in its blocks, for 24 held-out passages. All methods see the same
model, data and masks; peers run in environments of their own, with the same loss and, if they have one, the same
damping.

LDS: Spearman's correlation, over retrained models, of summed scores with the query's log-probability, averaged over
queries; each model leaves out half or 5 % of the passages. documents: the same, over models that each leave out all
passages of one topic. QLD: how much more a query's loss rises, in nats, when its three highest passages (1 %) are left
out than when three random ones are. [low, high] are 95 % bootstrap intervals, of LDS over subsets and queries, of QLD
over queries. "(other order)" is a second set of retrainings that sees the passages in another order: what it predicts
of the first is what the data decide, and the rest is the order's.

facts: the model has read biographies and is fine-tuned on those of other people; each question asks for a fact that
three passages state in other words. sanity: structure planted among the passages is found, and scores depend on the
model's weights. real: QLD on SmolLM2-135M (pip install 'whence[real]').
"""

import os
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from .harness import Benchmark, Run
from .leaderboard_peers import PEERS, run_peer

bench = Benchmark(__file__, __doc__, example="--short")
for peer in PEERS:
    bench.side(peer, partial(run_peer, peer))

Test = Literal["lds", "leave-out", "documents", "qld"]
TESTS: dict[Test, str] = {
    "lds": "LDS, half out",
    "leave-out": "LDS, 5 % out",
    "documents": "documents",
    "qld": "QLD, nats",
}
SHORT = ("identity", "kfac", "ekfac", "kfac, damping 0.1", "ekfac, damping 0.1", "source", "logra", "magic", "bm25")
SHORT_PEERS = ("kronfluence EK-FAC", "kronfluence K-FAC")
Regime = Literal["short", "short, eps 1e-5", "short, eps 1e-3", "long", "long, eps 1e-3", "SGD"]


@dataclass(frozen=True)
class Rows:
    """Which methods have a row.

    Args:
        short: few methods; in `methods` one regime, LDS by 24 subsets, two peers. Ten minutes on two cores.
        methods: instead of every method that applies.
    """

    short: bool = False
    methods: tuple[str, ...] = ()

    @property
    def names(self) -> list[str] | None:
        return list(self.methods or (SHORT if self.short else ())) or None

    def scored(self, problem: Any, store: Any) -> Any:
        """Their scores for the problem's queries, and seconds."""
        from whence.problems.judge import scores_of
        from whence.problems.problem import methods_for

        return scores_of(problem, methods_for(problem, self.names), store, quiet=True)


def problem_of(run: Run, regime: str) -> Any:
    from whence.problems.finetuned import finetuned_problem

    return finetuned_problem(regime, store=run.store)


def random_scores(problem: Any, seed: int = 0) -> Any:
    """The control that knows nothing."""
    import xarray

    values = np.random.default_rng(seed).normal(size=(len(problem.queries), len(problem.train)))
    return xarray.DataArray(
        values, dims=("query", "train"), coords={"query": problem.queries.ids, "train": problem.train.ids}
    )


def peer_scores(problem: Any, name: str) -> tuple[Any, str]:
    """A peer's scores of the problem, or None and why it failed."""
    train, queries = (e.batch(range(len(e)))["input_ids"] for e in (problem.train, problem.queries))
    saved = {"model": problem.model, "sites": list(problem.trained().find().names), "train": train, "queries": queries}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        torch.save(saved, out / "problem.pt")
        process = bench.run_side(name, out, PEERS[name].packages, check=False)
        if process.returncode:
            lines = [line for line in process.stderr.splitlines() if line.strip()]
            return None, lines[-1][:120] if lines else f"exit code {process.returncode}"
        values = np.load(out / "scores.npy")
    like = random_scores(problem)
    if values.shape != like.shape:
        return None, f"scores of shape {values.shape} for {like.shape}"
    return like.copy(data=values), ""


@bench.case(quick={"regimes": ("short",), "methods": ("identity", "bm25"), "subsets": 12, "peers": ()})
def methods(
    run: Run,
    rows: Rows = Rows(),
    regimes: tuple[Regime, ...] = ("short", "short, eps 1e-5", "long"),
    peers: tuple[str, ...] = tuple(PEERS),
    tests: tuple[Test, ...] = tuple(TESTS),
    subsets: int = 60,
) -> None:
    """Every method and every peer, under the four tests; in regimes after the first, every method under LDS.

    Args:
        regimes: how the model is fine-tuned.
        peers: instead of every peer; --peers none for no peer.
        tests: in the first regime.
        subsets: retrained models per test of LDS.
    """
    from whence.problems.judge import judge

    peers = () if peers == ("none",) else peers
    if rows.short:
        regimes, tests, subsets = ("short",), ("lds", "leave-out"), min(subsets, 24)
        peers = tuple(name for name in SHORT_PEERS if name in peers)
    for place, regime in enumerate(regimes):
        asked = [test for test in tests if place == 0 or test in ("lds", "leave-out")]
        problem = problem_of(run, regime)
        own = rows.scored(problem, run.store)
        scored, failed = {**own, "random": (random_scores(problem), 0.0)}, {}
        for name in peers if place == 0 else ():
            scores, why = peer_scores(problem, name)
            if scores is None:
                failed[name] = why
            else:
                scored[name] = (scores, np.nan)
        judged = judge(problem, asked, (), others=scored, subsets=subsets, store=run.store, quiet=True)
        title = f"{regime}: {problem.recipe}"
        heads = [TESTS[test] for test in asked]
        table = run.table("method", *heads, "correlation with ours|.4f", title=title)
        found = {(row.method, row.test): row for row in judged}
        for name in dict.fromkeys(row.method for row in judged):
            cells = [shown(found.get((name, test))) for test in asked]
            like = own.get(PEERS[name].like) if name in PEERS else None
            same = None if like is None else np.corrcoef(like[0].values.ravel(), scored[name][0].values.ravel())[0, 1]
            table.row(name, *cells, same)
        for name, why in failed.items():
            table.row(f"{name}: {why}", *[None] * (len(asked) + 1))
        below(run, found)
        if "lds" in asked:
            gains(run, problem, own, subsets)
    say_time(run)


def say_time(run: Run) -> None:
    """The processor time of this process and its sides, which other work on the machine hardly changes."""
    spent = os.times()
    minutes = (spent.user + spent.system + spent.children_user + spent.children_system) / 60
    run.say(f"\n{minutes:.0f} minutes of one core so far, beside what the store had")


@bench.case(quick={"methods": ("identity", "bm25")})
def facts(run: Run, rows: Rows = Rows()) -> None:
    """Recall of the passages that state a fact, by every method, on a fine-tuned model."""
    from whence.attrib.evaluate import recall
    from whence.cache.display.interval import Interval
    from whence.language_model import top_answers
    from whence.problems.finetuned import finetuned_facts

    problem = finetuned_facts(store=run.store)
    answered = top_answers(problem.model, problem.queries)
    title = (
        f"facts: {len(problem.queries)} questions, {answered.mean():.0%} answered; {len(problem.train)} passages, "
        f"three of which state each answer; {problem.recipe}"
    )
    scored = rows.scored(problem, run.store)
    table = run.table("method", "recall@3", "reciprocal rank", title=title)
    found = {name: recall(scores, problem.truth, (3,)) for name, (scores, _) in (scored | with_random(problem)).items()}
    for name, one in found.items():
        each = [Interval.bootstrap(values, resamples=2000) for values in (one.per_query[3], one.reciprocal)]
        table.row(name, *map(shown, each))
    for name, fixed in both_dampings(found):
        gap = Interval.bootstrap(found[name].per_query[3] - found[fixed].per_query[3], resamples=2000)
        run.claim_above(f"{name} recalls more with the run's damping than with 0.1", gap, "+.3f")
    say_time(run)


@bench.case(quick={"methods": ("identity", "bm25")})
def sanity(run: Run, rows: Rows = Rows(), regime: Regime = "short, eps 1e-5") -> None:
    """AUC of planted passages, by every method; and the correlation with scores of a model of random weights.

    Args:
        regime: how the model is fine-tuned.
    """
    from whence.problems.finetuned import finetuned_problem
    from whence.problems.sanity import KINDS, RANDOMISED, check

    problem = finetuned_problem(regime, train=128, store=run.store)
    found = check(problem, rows.names, others=with_random, store=run.store, quiet=True)
    table = run.table("method", *(f"{kind}|.2f" for kind in (*KINDS, RANDOMISED)), title=f"sanity, {regime}")
    for name, values in found.items():
        table.row(name, *(values[kind] for kind in (*KINDS, RANDOMISED)))
    say_time(run)


def with_random(problem: Any) -> dict[str, Any]:
    return {"random": (random_scores(problem), 0.0)}


@bench.case(default=False, quick={"passages": 24, "queries": 2, "methods": ("bm25",), "length": 24})
def real(
    run: Run,
    passages: int = 256,
    queries: int = 8,
    length: int = 64,
    methods: tuple[str, ...] = ("identity", "ekfac", "bm25"),
    rate: float = 2e-5,
    device: str = "cpu",
) -> None:
    """QLD on SmolLM2-135M-Instruct, fine-tuned on passages of the Python reference: minutes on a GPU, a night on two
    cores.

    Args:
        passages: that it is fine-tuned on.
        queries: held-out passages.
        length: tokens of a passage.
        rate: learning rate of the fine-tuning.
        device: of the models.
    """
    from whence.problems.judge import judge
    from whence.problems.real import smollm2_problem

    problem = smollm2_problem(passages, queries, length, rate, device)
    rows = judge(problem, ["qld"], methods, others=with_random(problem), store=run.store)
    table = run.table("method", TESTS["qld"], "", title=f"SmolLM2-135M-Instruct, {device}: {problem.recipe}")
    for row in rows:
        table.row(row.method, shown(row), row.note)
    say_time(run)


def shown(row: Any) -> str | None:
    return None if row is None else f"{row.value:.3f} [{row.low:.3f}, {row.high:.3f}]"


def below(run: Run, found: Any) -> None:
    """Say of every peer whether the method of ours that it is compared with is below its interval."""
    for name in PEERS:
        theirs, ours = found.get((name, "lds")), found.get((PEERS[name].like, "lds"))
        if theirs is not None and ours is not None:
            run.claim(
                f"{PEERS[name].like} is not below the interval of {name}", bool(ours.value >= theirs.low),
                f"{ours.value:.3f} beside {theirs.value:.3f} [{theirs.low:.3f}, {theirs.high:.3f}]",
            )  # fmt: skip


def both_dampings(rows: Collection[str]) -> list[tuple[str, str]]:
    """Rows of one method with the damping of the recorded run and with the paper's."""
    from whence.problems.problem import FIXED

    return [(name, name + FIXED) for name in rows if name + FIXED in rows]


def gains(run: Run, problem: Any, own: Any, subsets: int) -> None:
    """What the damping of the recorded run gains beside the paper's in LDS, half out, by paired bootstraps."""
    from whence.attrib.evaluate import compare
    from whence.problems.judge import SHARES, retrained

    bank = retrained(problem, subsets, SHARES["lds"], run.store, quiet=True)
    for name, fixed in both_dampings(own):
        gap = compare(own[name][0], own[fixed][0], bank)
        run.claim_above(f"{name} has a higher LDS with the run's damping than with 0.1", gap, "+.3f")


if __name__ == "__main__":
    bench.main()
