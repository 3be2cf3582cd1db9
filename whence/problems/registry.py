"""The problems by name: their only list."""

from collections.abc import Callable
from functools import partial
from typing import Any

from whence.cache.errors import UsageError, check_known

from .finetuned import finetuned_facts, finetuned_problem
from .images import images_problem
from .own import is_own, own_problem
from .problem import Problem, digits_problem, facts_problem, language_problem

PROBLEMS: dict[str, Callable[[], Problem]] = {
    "digits": digits_problem,
    "finetuned": finetuned_problem,
    "finetuned-smooth": partial(finetuned_problem, "short, eps 1e-5"),
    "finetuned-long": partial(finetuned_problem, "long"),
    "finetuned-sgd": partial(finetuned_problem, "SGD"),
    "finetuned-facts": finetuned_facts,
    "images": partial(images_problem, train=300, queries=40),
    "language": language_problem,
    "facts": facts_problem,
}


def problem_of(name: str, **options: Any) -> Problem:
    """The problem of a name, or of a Python file with the options of `own_problem`.

    Raises UsageError for an unknown name, and for options of an embedded problem.
    """
    if is_own(name):
        return own_problem(name, **options)
    check_known("problem", name, [*PROBLEMS, "FILE.py"])
    given = next((option for option in ("data", "training", "columns") if options.get(option)), None)
    if given is not None:
        raise UsageError(f"{name} has its own {given}.", "Name a Python file to train on data of your own.")
    return PROBLEMS[name]()
