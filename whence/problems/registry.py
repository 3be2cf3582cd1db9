"""The problems by name: their only list."""

from collections.abc import Callable
from functools import partial

from .finetuned import finetuned_problem
from .images import images_problem
from .problem import Problem, digits_problem, facts_problem, language_problem

PROBLEMS: dict[str, Callable[[], Problem]] = {
    "digits": digits_problem,
    "finetuned": finetuned_problem,
    "finetuned-smooth": partial(finetuned_problem, "short, eps 1e-5"),
    "finetuned-long": partial(finetuned_problem, "long"),
    "finetuned-sgd": partial(finetuned_problem, "SGD"),
    "images": partial(images_problem, train=300, queries=40),
    "language": language_problem,
    "facts": facts_problem,
}
