"""The key of a task sees the code of a user's own class; a library task's is its settings."""

from typing import Any

import torch

from whence.attrib.measurement import ActivationMeasurement, Direction
from whence.cache import Classification, LanguageModelling, tasks
from whence.cache.model.task_key import task_settings
from whence.cache.retrain.functions import function_key

SOURCE = """
import torch
from dataclasses import dataclass
from whence.cache import Classification
SCALE = {scale}
def scaled(value):
    return SCALE * value + {shift}
@dataclass(frozen=True)
class Own(Classification):
    def loss(self, model, batch):
        return scaled(super().loss(model, batch))
"""


def own(scale: float = 1.0, shift: float = 0.0) -> Any:
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(SOURCE.format(scale=scale, shift=shift), space)
    return space["Own"]()


def test_library_tasks_have_their_settings() -> None:
    for task in (LanguageModelling(), tasks.DPO(), tasks.Choice(), tasks.MaskedLanguageModelling()):
        assert task_settings(task) == task.settings


def test_an_edited_loss_or_a_changed_global_is_another_task() -> None:
    first = task_settings(own())
    assert first == task_settings(own())
    assert len({str(each) for each in (first, task_settings(own(scale=2.0)), task_settings(own(shift=1.0)))}) == 3
    assert own().settings == own(scale=2.0).settings


def test_a_measurement_of_an_own_task_is_another_one_too() -> None:
    read = Direction(torch.ones(3).numpy())
    found = {str(task_settings(ActivationMeasurement(own(scale), "1", read))) for scale in (1.0, 1.0, 2.0)}
    assert len(found) == 2


RATE = 0.5


def _helper(value: float) -> float:
    return RATE * value


def _train(model: Any, examples: Any, seed: int) -> Any:
    return _helper(seed)


def _plain(model: Any, examples: Any, seed: int) -> Any:
    return torch.zeros(1), Classification()


def test_a_training_function_is_keyed_with_the_globals_it_reads(monkeypatch: Any) -> None:
    before = function_key(_train)
    assert before == function_key(_train)
    monkeypatch.setitem(globals(), "RATE", 0.25)
    assert function_key(_train) != before
    assert isinstance(function_key(_plain), str)  # libraries alone: the source as ever
