"""Every attribution method under the protocols that judge it, and EK-FAC beside kronfluence 1.0.1 on the same masks.

Small models of embedded data, retrained from one start in one order. One process, times of fit and scoring with
compilation. kronfluence runs in a process of its own, on the same weights, labels sampled by its own generator.
"""

import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from .harness import Benchmark, Run
from .peers import KRONFLUENCE, Kronfluence

bench = Benchmark(__file__, __doc__, example="--on digits --tests lds --methods ekfac --skip-kronfluence")
Name = Literal["digits", "language", "facts"]
TESTS: dict[str, list[str]] = {
    "digits": ["lds", "leave-out", "brittleness", "pbrf", "mislabelled"],
    "language": ["lds", "qld"],
    "facts": ["recall"],
}


def ekfac_scores(problem: Any, seed: int, redraw: bool) -> Any:
    """EK-FAC's scores [query, train] with labels sampled from this seed, anew for the second pass or once."""
    from whence import attrib

    return attrib.EKFAC(seed=seed, redraw=redraw).fit(problem.trained()).score(problem.queries)


def kronfluence_scores(problem: Any, seed: int) -> np.ndarray:
    """kronfluence's scores [query, train] of a problem's model, from a process of its own."""
    from whence.cache import LanguageModelling

    language = isinstance(problem.task, LanguageModelling)

    def columns(examples: Any) -> tuple[torch.Tensor, torch.Tensor]:
        batch = examples.batch(range(len(examples)))
        return (batch["input_ids"], batch["input_ids"]) if language else (batch["x"], batch["y"])

    modules = list(problem.trained().find().names)
    saved = {"model": problem.model, "language": language, "modules": modules, "seed": seed,
             "train": columns(problem.train), "queries": columns(problem.queries)}  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.save(saved, folder / "problem.pt")
        bench.run_side("kronfluence", folder, KRONFLUENCE)
        return np.load(folder / "scores.npy").astype(np.float32)


def kronfluence_side(folder: Path) -> None:
    """Scores of the saved model by kronfluence, EK-FAC with the paper's damping."""
    saved = torch.load(folder / "problem.pt", weights_only=False)  # written by the process that started this one

    def outputs(model: Any, batch: Any) -> tuple[Any, Any]:
        x, y = batch
        return (model(x)[:, :-1].flatten(0, 1), x[:, 1:].flatten()) if saved["language"] else (model(x), y)

    torch.manual_seed(saved["seed"])
    peer = Kronfluence(saved["model"], outputs, saved["modules"], folder, 64)
    train, queries = (torch.utils.data.TensorDataset(*saved[name]) for name in ("train", "queries"))
    peer.fit(train)
    np.save(folder / "scores.npy", peer.pairwise(queries, train))


bench.side("kronfluence", kronfluence_side)


def beside_kronfluence(run: Run, name: str, subsets: int, seeds: int) -> None:
    """LDS of both on one bank for several seeds of the sampled labels, and the paired bootstrap of each difference."""
    from whence.attrib.evaluate import compare, lds
    from whence.problems.judge import retrained
    from whence.problems.registry import PROBLEMS

    problem = PROBLEMS[name]()
    bank = retrained(problem, subsets, 0.5, None, True)
    title = f"{name}, {subsets} subsets: LDS by label seed, and its difference to kronfluence's of that seed"
    table = run.table("seed", "method", "LDS", "difference", "correlation of scores|.4f", title=title)
    for seed in range(seeds):
        ours = {"EK-FAC": ekfac_scores(problem, seed, True), "EK-FAC, labels once": ekfac_scores(problem, seed, False)}
        # theirs is the gradient of the query's loss with the example's loss, not divided by N: the same sign as ours
        theirs = ours["EK-FAC"].copy(data=kronfluence_scores(problem, seed))
        table.row(seed, "kronfluence", lds(theirs, bank), None, None)
        for label, scores in ours.items():
            correlation = np.corrcoef(scores.values.ravel(), theirs.values.ravel())[0, 1]
            table.row(seed, label, lds(scores, bank), compare(scores, theirs, bank), correlation)


@bench.case(quick={"on": ("digits",), "tests": ("lds",), "methods": ("identity",), "subsets": 12, "seeds": 1})
def judged(
    run: Run,
    on: tuple[Name, ...] = ("digits", "language", "facts"),
    tests: tuple[str, ...] = (),
    methods: tuple[str, ...] = (),
    subsets: int = 60,
    seeds: int = 3,
    skip_kronfluence: bool = False,
    skip_table: bool = False,
) -> None:
    """Methods under tests, and EK-FAC beside kronfluence.

    Args:
        on: problems.
        tests: instead of every test of the problem.
        methods: instead of every method that applies.
        subsets: retrained models.
        seeds: label seeds of EK-FAC beside kronfluence.
        skip_kronfluence: only the table of methods.
        skip_table: only kronfluence.
    """
    from whence.problems.judge import judge
    from whence.problems.registry import PROBLEMS

    for name in on:
        if not skip_table:
            table = run.table("test", "method", "value|.3f", "95 % interval", "seconds|.1f", "note", title=name)
            for test in tests or TESTS[name]:
                for row in judge(PROBLEMS[name](), [test], list(methods) or None, subsets=subsets, quiet=True):
                    interval = None if np.isnan(row.low) else f"[{row.low:.3f}, {row.high:.3f}]"
                    table.row(row.test, row.method, row.value, interval, row.seconds, row.note)
        if not skip_kronfluence and name in ("digits", "language"):
            beside_kronfluence(run, name, subsets, seeds)


if __name__ == "__main__":
    bench.main()
