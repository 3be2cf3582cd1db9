"""What stands for a task in keys: its settings, and the code of what is the user's own in it."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from .forward import code_of, is_own
from .task import Task


def task_settings(task: Task) -> dict[str, Any]:
    """The settings of a task. For a class of the user's own, also a hash of its code and of the globals that it reads:
    a loss that was edited is another loss. A task that wraps others (a measurement) has theirs too."""
    own = {f"{kind.__qualname__}": code_of(kind) for kind in _classes(task) if is_own(kind)}
    return {**task.settings, "code": own} if own else task.settings


def _classes(value: Any) -> Iterator[type]:
    """The class of a task, and those of what its fields hold."""
    yield type(value)
    if dataclasses.is_dataclass(value):
        for each in dataclasses.fields(value):
            inner = getattr(value, each.name)
            if hasattr(inner, "settings"):
                yield from _classes(inner)
