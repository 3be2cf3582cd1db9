"""Every attribution method under the protocols that judge it, and EK-FAC beside kronfluence 1.0.1 on the same masks.

    python -m benchmarks.evaluation [--on digits language facts] [--subsets 60] [--skip-kronfluence]

Small models of embedded data, retrained from one start in one order. One process, times of fit and scoring with
compilation. kronfluence runs in a folder of its own, on the same weights, labels drawn by its own generator.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers import install, kronfluence_analyzer, run_side

TESTS = {
    "digits": ["lds", "leave-out", "brittleness", "pbrf", "mislabelled"],
    "language": ["lds", "qld"],
    "facts": ["recall"],
}


def kronfluence_side(out: Path) -> None:
    """Scores of the saved model by kronfluence, EK-FAC with the paper's damping."""
    from kronfluence.arguments import FactorArguments, ScoreArguments

    saved = torch.load(out / "problem.pt", weights_only=False)  # written by the process that started this one

    def outputs(model: Any, batch: Any) -> tuple[Any, Any]:
        x, y = batch
        return (model(x)[:, :-1].flatten(0, 1), x[:, 1:].flatten()) if saved["language"] else (model(x), y)

    torch.manual_seed(saved["seed"])
    analyzer = kronfluence_analyzer(saved["model"], outputs, saved["modules"], out)
    train, queries = (torch.utils.data.TensorDataset(*saved[name]) for name in ("train", "queries"))
    analyzer.fit_all_factors("factors", train, per_device_batch_size=64, factor_args=FactorArguments(strategy="ekfac"))
    analyzer.compute_pairwise_scores(
        "scores", "factors", queries, train, per_device_query_batch_size=64, per_device_train_batch_size=64,
        score_args=ScoreArguments(damping_factor=None),
    )  # fmt: skip
    np.save(out / "scores.npy", analyzer.load_pairwise_scores("scores")["all_modules"].numpy())


def beside_kronfluence(name: str, subsets: int, seeds: int) -> None:
    """LDS of both on one bank for several seeds of the drawn labels, and the paired bootstrap of each difference."""
    from whence import attrib
    from whence.attrib.evaluate import compare, lds
    from whence.problems.problem import PROBLEMS
    from whence.problems.judge import retrained

    problem = PROBLEMS[name]()
    bank = retrained(problem, subsets, 0.5, None, True)
    print(f"\n{name}, {subsets} subsets: LDS by label seed, and its difference to kronfluence's of that seed")
    for seed in range(seeds):
        ours = {}
        for label, method in (
            ("EK-FAC", attrib.EKFAC(seed=seed)),
            ("EK-FAC, labels drawn once", attrib.EKFAC(seed=seed, redraw=False)),
        ):
            factors = method.fit(problem.model, problem.task, problem.train, sites=problem.sites)
            ours[label] = attrib.score(factors, problem.model, problem.task, problem.queries, problem.train)
        # theirs is the gradient of the query's loss with the example's loss, not divided by N: the same sign as ours
        theirs = ours["EK-FAC"].copy(data=kronfluence_scores(problem, seed))
        print(f"seed {seed}: kronfluence {lds(theirs, bank)}")
        for label, scores in ours.items():
            correlation = float(np.corrcoef(scores.values.ravel(), theirs.values.ravel())[0, 1])
            found, difference = lds(scores, bank), compare(scores, theirs, bank)
            print(f"seed {seed}: {label:11} {found}; {difference}; scores correlate {correlation:.4f}", flush=True)


def kronfluence_scores(problem: Any, seed: int) -> np.ndarray:
    """Its scores [query, train] of a problem's model, from a process of its own."""
    from whence.cache import LanguageModelling

    language = isinstance(problem.task, LanguageModelling)

    def columns(examples: Any) -> tuple[torch.Tensor, torch.Tensor]:
        batch = examples.batch(range(len(examples)))
        return (batch["input_ids"], batch["input_ids"]) if language else (batch["x"], batch["y"])

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        saved = {
            "model": problem.model,
            "language": language,
            "modules": list(problem.sites.names),
            "train": columns(problem.train),
            "queries": columns(problem.queries),
            "seed": seed,
        }
        torch.save(saved, out / "problem.pt")
        run_side("benchmarks.evaluation", "kronfluence", out, install("kronfluence==1.0.1", "einconv==0.1.0"))
        return np.load(out / "scores.npy").astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", nargs="+", default=list(TESTS), choices=list(TESTS))
    parser.add_argument("--tests", nargs="+", default=None, help="instead of every test of the problem")
    parser.add_argument("--methods", nargs="+", default=None, help="instead of every method that applies")
    parser.add_argument("--subsets", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3, help="label seeds of EK-FAC beside kronfluence")
    parser.add_argument("--skip-kronfluence", action="store_true")
    parser.add_argument("--skip-table", action="store_true")
    parser.add_argument("--side", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side == "kronfluence":
        kronfluence_side(options.out)
        return
    from whence.problems.problem import PROBLEMS
    from whence.problems.judge import HEAD, judge

    for name in options.on:
        if not options.skip_table:
            print(f"\n{name}\n{HEAD}")
            for test in options.tests or TESTS[name]:
                for row in judge(PROBLEMS[name](), [test], options.methods, subsets=options.subsets, quiet=True):
                    print(row, flush=True)
        if not options.skip_kronfluence and name in ("digits", "language"):
            beside_kronfluence(name, options.subsets, options.seeds)


if __name__ == "__main__":
    main()
