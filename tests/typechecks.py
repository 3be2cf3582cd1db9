"""Annotations are checked as the suite runs: those of arrays by jaxtyping, all others by beartype alone.

jaxtyping's wrapper binds every call's arguments once more and checks them twice, for what it says of shapes. Around the
functions that have no array among their annotations it took a third of the suite's time. To be imported before the
packages under test: the import hook of `--jaxtyping-packages` names the wrapper by its place in jaxtyping.
"""

import inspect
import typing
from collections.abc import Callable
from functools import partial
from typing import Any

import jaxtyping
from jaxtyping import jaxtyped


def checked(target: Any = None, *, typechecker: Callable[[Any], Any]) -> Any:
    """What `jaxtyping.jaxtyped` is to a function or a class, without its wrapper where that has nothing to say."""
    if target is None:
        return partial(checked, typechecker=typechecker)
    if inspect.isclass(target):
        if "__init__" in vars(target) and "__dataclass_fields__" in vars(target):
            target.__init__ = checked(target.__init__, typechecker=typechecker)
        return target
    if not inspect.isfunction(target) or any(map(needs_jaxtyping, target.__annotations__.values())):
        return jaxtyped(target, typechecker=typechecker)
    return typechecker(target)


def needs_jaxtyping(annotation: Any) -> bool:
    """Whether there is an array in it, or a name in quotes, which may be known to type checkers only."""
    if isinstance(annotation, str | typing.ForwardRef):
        return True
    if inspect.isclass(annotation) and issubclass(annotation, jaxtyping.AbstractArray):
        return True
    parts = annotation if isinstance(annotation, list) else typing.get_args(annotation)
    return any(map(needs_jaxtyping, parts))


jaxtyping.jaxtyped = checked
