"""Unlearning against retrained oracles, and timed.

Every case prints the tables that the documentation quotes and says which of its claims held.
"""

from collections.abc import Sequence

from whence.unlearn.report import save
from whence.unlearn.results import Evaluation

from .harness import Benchmark, Run

bench = Benchmark(__file__, __doc__, example="digits --seeds 1")


def show(run: Run, evaluation: Evaluation, claims: dict[str, bool]) -> None:
    run.say(f"\n{evaluation.title}: {evaluation.forgotten} forgotten, {evaluation.models} models per side, "
            f"{evaluation.bins} bins\n\n{evaluation}\n")  # fmt: skip
    for claim, held in claims.items():
        run.claim(claim, held)


def page(run: Run, evaluations: Sequence[Evaluation], name: str, title: str) -> None:
    where = save(evaluations, run.out / f"unlearning-{name}.html", title)
    run.say(f"\n{run.seconds:.0f} s; report: {where}")


@bench.case(quick={"seeds": 1, "steps": 200})
def convex(run: Run, seeds: int = 3, steps: int = 5000) -> None:
    """Ridge and logistic regression: distance to the retrained optimum.

    Args:
        seeds: of the problem (convex), forget sets of each kind (digits).
        steps: of descent.
    """
    from .unlearning_convex import show as regression

    regression(run, seeds, steps)


@bench.case(quick={"seeds": 1, "subsets": 256})
def digits(run: Run, seeds: int = 3, subsets: int = 4096) -> None:
    """Every method on digits, with oracles and the null row.

    Args:
        subsets: retrained models of each datamodel.
    """
    from .unlearning_digits import evaluations, setting, verdicts

    found = evaluations(run, setting(run.store, subsets), seeds)
    for one in found:
        show(run, one, verdicts(one))
    page(run, found, "digits", "Digits: unlearning against oracles")


@bench.case(quick={"models": 4, "documents": 1})
def document(run: Run, models: int = 8, documents: int = 3) -> None:
    """Documents forgotten by a language model, without retraining.

    Args:
        models: that forget; oracles of a document are twice as many.
        documents: how many, one after the other.
    """
    from .unlearning_document import evaluations

    page(run, evaluations(run, models, documents), "document", "Documents forgotten")


@bench.case()
def speed(run: Run) -> None:
    """Regressions and KLoM against plain loops; every method's seconds."""
    from . import unlearning_speed as speed

    speed.regression(run)
    speed.klom(run)
    speed.methods(run)


if __name__ == "__main__":
    bench.main()
