"""The problems by name: their only list."""

from collections.abc import Callable
from functools import partial

from .finetuned import finetuned_facts, finetuned_problem
from .problem import Problem, digits_problem, facts_problem, language_problem

PROBLEMS: dict[str, Callable[[], Problem]] = {
    "digits": digits_problem,
    "finetuned": finetuned_problem,
    "finetuned-smooth": partial(finetuned_problem, "short, eps 1e-5"),
    "finetuned-long": partial(finetuned_problem, "long"),
    "finetuned-sgd": partial(finetuned_problem, "SGD"),
    "finetuned-facts": finetuned_facts,
    "language": language_problem,
    "facts": facts_problem,
}
