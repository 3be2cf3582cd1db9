"""What an unlearning method is: a frozen dataclass of settings that turns a request into a plan."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, ClassVar

import numpy as np

from whence.cache import UsageError
from whence.cache.retrain.recipe import Optimiser
from whence.cache.retrain.replicas import PerReplica

from ..plan import Phase, Plan, batches, side_by_side
from ..request import UnlearningRequest

FORGET, RETAIN = 0, 1  # parts of a request's pool
POSITIVE = ("epochs", "batch_size", "beta", "temperature")


def not_a_setting(why: str, **options: Any) -> Any:
    """A field that is no part of `settings`: `why` gives the reason. options: of `dataclasses.field`."""
    return field(metadata={"why": why}, **options)


@dataclass(frozen=True, eq=False)  # or those that hold objects would inherit an equality of labels alone
class UnlearningMethod(ABC):
    """An unlearning method. `unlearn.run(method, request)` runs it.

    A new method is one file here with a subclass, and one line in the registry `METHODS`. It names itself, declares
    its settings as fields, and implements `plan`. `unlearn.run` runs the plan for all models of the request side by
    side, counts example passes, stops models that become non-finite, and logs the deletion.

    Args:
        label: the name of this run in tables, if not the method's title.
    """

    name: ClassVar[str]
    title: ClassVar[str]

    label: str = field(default="", kw_only=True, metadata={"why": "names the row of a table"})

    def __post_init__(self) -> None:
        for each in fields(self):
            check_number(f"{each.name} of {self.name}", getattr(self, each.name), each.name, whole=each.type is int)

    @abstractmethod
    def plan(self, request: UnlearningRequest) -> Plan:
        """What is to be done, in phases. Raises what the method's preparation raises."""

    @property
    def display_name(self) -> str:
        """The row of a table, and the entry in the deletion log."""
        return self.label or self.title

    def settings(self) -> dict[str, Any]:
        """Every field that changes the result, as plain values. Two runs with equal settings on equal requests give
        equal models, if the objects given as fields that are not settings are equal too."""
        own = {each.name: plain(getattr(self, each.name)) for each in fields(self) if "why" not in each.metadata}
        return {"method": self.name, **own}


def check_number(title: str, value: Any, name: str, *, whole: bool) -> None:
    """Raise UsageError for a number that no method can use: not finite, a broken or negative count, or a batch, an
    epoch or a divisor of nothing. What is no number is not checked."""
    if not isinstance(value, (int, float, np.number)) or isinstance(value, bool):
        return
    if not np.isfinite(value):
        raise UsageError(f"{title} is {value}.", "Give a finite number.")
    if whole and (float(value) % 1 or (value < 0 and name != "seed")):
        raise UsageError(f"{title} is {value}.", "Give a whole number that is not negative.")
    if value <= 0 and (name in POSITIVE or name.endswith("batch")):
        raise UsageError(f"{title} is {value}.", "Give a number above 0.")


def plain(value: Any) -> Any:
    """A dataclass as the dict of its fields and its kind; anything else as it is."""
    if not is_dataclass(value) or isinstance(value, type):
        return value
    return {"kind": type(value).__name__, **{f.name: plain(getattr(value, f.name)) for f in fields(value)}}


class PairedMethod(UnlearningMethod):
    """A method whose every step sees some forgotten and some retained examples. Subclasses declare the four fields."""

    steps: int
    forget_batch: int
    retain_batch: int
    optimiser: Optimiser

    @abstractmethod
    def objective(self, request: UnlearningRequest) -> PerReplica:
        """What every step descends, for one model."""

    def plan(self, request: UnlearningRequest) -> Plan:
        return Plan((self.phase(request, self.objective(request), **self.references(request)),), request.models)

    def references(self, request: UnlearningRequest) -> dict[str, Any]:
        """Further fields of the phase."""
        return {}

    def phase(self, request: UnlearningRequest, objective: PerReplica, **options: Any) -> Phase:
        pool, sizes = request.pool, (self.forget_batch, self.retain_batch)
        draw = side_by_side(pool.rows(FORGET), pool.rows(RETAIN), sizes, self.steps)
        return Phase(objective, draw, self.optimiser, **options)


class EpochMethod(UnlearningMethod):
    """A method that descends one objective for some epochs over one part. Subclasses declare the three fields."""

    part: ClassVar[int]
    epochs: int | float
    batch_size: int
    optimiser: Optimiser

    @abstractmethod
    def objective(self, request: UnlearningRequest) -> PerReplica:
        """What every step descends, for one model."""

    def plan(self, request: UnlearningRequest) -> Plan:
        draw = batches(request.pool.rows(self.part), self.batch_size, self.epochs)
        return Plan((Phase(self.objective(request), draw, self.optimiser),), request.models)
