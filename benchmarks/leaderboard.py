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
"""

import tempfile
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
SHORT = ("identity", "kfac", "ekfac", "kfac, damping 0.1", "ekfac, damping 0.1", "cg", "logra", "magic", "bm25")
Regime = Literal["short", "short, eps 1e-5", "short, eps 1e-3", "long", "long, eps 1e-3", "SGD"]


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
    short: bool = False,
    regimes: tuple[Regime, ...] = ("short", "short, eps 1e-5", "long"),
    methods: tuple[str, ...] = (),
    peers: tuple[str, ...] = tuple(PEERS),
    tests: tuple[Test, ...] = tuple(TESTS),
    subsets: int = 60,
) -> None:
    """Every method and every peer, under the four tests; in regimes after the first, every method under LDS.

    Args:
        short: one regime, few methods, 24 subsets: ten minutes on two cores.
        regimes: how the model is fine-tuned.
        methods: instead of every method that applies.
        peers: instead of every peer; --peers none for no peer.
        tests: in the first regime.
        subsets: retrained models per test of LDS.
    """
    from whence.problems.judge import judge, scores_of
    from whence.problems.problem import methods_for

    if short:
        regimes, methods, subsets = ("short",), methods or SHORT, min(subsets, 24)
    for place, regime in enumerate(regimes):
        asked = [test for test in tests if place == 0 or test in ("lds", "leave-out")]
        problem = problem_of(run, regime)
        own = scores_of(problem, methods_for(problem, list(methods) or None), run.store, quiet=True)
        scored, failed = {**own, "random": (random_scores(problem), 0.0)}, {}
        for name in peers if place == 0 and peers != ("none",) else ():
            scores, why = peer_scores(problem, name)
            if scores is None:
                failed[name] = why
            else:
                scored[name] = (scores, np.nan)
        rows = judge(problem, asked, (), others=scored, subsets=subsets, store=run.store, quiet=True)
        title = f"{regime}: {problem.recipe}"
        heads = [TESTS[test] for test in asked]
        table = run.table("method", *heads, "correlation with ours|.4f", title=title)
        found = {(row.method, row.test): row for row in rows}
        for name in [*dict.fromkeys(row.method for row in rows)]:
            cells = [shown(found.get((name, test))) for test in asked]
            like = own.get(PEERS[name].like) if name in PEERS else None
            same = None if like is None else np.corrcoef(like[0].values.ravel(), scored[name][0].values.ravel())[0, 1]
            table.row(name, *cells, same)
        for name, why in failed.items():
            table.row(f"{name}: {why}", *[None] * (len(asked) + 1))
        below(run, found)


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


if __name__ == "__main__":
    bench.main()
