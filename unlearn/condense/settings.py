"""How a set is condensed: one frozen description, with the published defaults."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from whence.cache.errors import UsageError, check_known

from .augment import OPERATIONS, check_operations
from .methods import METHODS, CondensationRule
from .networks import ConvNet, Network
from .training import Training

INITS = ("real", "noise", "means")


@dataclass(frozen=True)
class Settings:
    """What to condense and how.

    Args:
        method: a name in `METHODS`, or a method with settings of its own: `MTT(experts=20)`.
        network: what gradients are matched on.
        per_class: synthetic examples per class.
        outer: fresh networks.
        inner: matching steps with each; None is the published number for `per_class`: 10 up to ten, 50 above.
        epochs: of training it between them; None is the published number: 5 for one, 50 up to ten, 10 above.
        real_batch: real examples per class and step.
        lr, momentum: of the synthetic examples, in units of the scaled data.
        lr_network, batch: of the network's training.
        warm_outer, warm_inner: the bi-level warm-up: classes are contrasted iff outer >= warm_outer or
            inner >= warm_inner. If warm_outer is None it becomes a quarter of `outer` (published: 250 of 1000).
        init: "real" examples, "noise", or "means" of a class's examples cut into `per_class` parts.
        augment: operations of DSA and DSAC.
        soft_labels: labels are learned too, at rate lr_labels (as is the student's rate of mtt and ast).
        groups: of subgroup.

    Raises UsageError for an unknown method, init or operation, or a number that cannot be.

    Source: Lee et al. 2022, arXiv 2202.02916, and its code's defaults.
    """

    method: str | CondensationRule = "dcc"
    network: Network = ConvNet()
    per_class: int = 10
    outer: int = 1000
    inner: int | None = None
    epochs: int | None = None
    real_batch: int = 256
    lr: float = 0.1
    momentum: float = 0.5
    lr_network: float = 0.01
    batch: int = 256
    warm_outer: int | None = None
    warm_inner: int = 10
    init: str = "real"
    augment: tuple[str, ...] = tuple(OPERATIONS)
    soft_labels: bool = False
    lr_labels: float = 0.1
    groups: int = 1

    def __post_init__(self) -> None:
        if self.warm_outer is None:
            object.__setattr__(self, "warm_outer", self.outer // 4)
        if isinstance(self.method, str):
            check_known("condensation method", self.method, METHODS)
        check_known("init", self.init, INITS)
        check_operations(self.augment)
        for name, least in (("per_class", 1), ("outer", 1), ("inner", 1), ("real_batch", 1), ("epochs", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"{name} = {value} cannot be.", f"Use {least} or more.")
        if not (self.lr > 0 and self.lr_network > 0 and self.lr_labels > 0):
            raise UsageError("A learning rate of zero or less changes nothing.", "Use a rate above 0.")

    @property
    def rule(self) -> CondensationRule:
        return METHODS[self.method] if isinstance(self.method, str) else self.method

    @property
    def warms_up(self) -> bool:
        """Whether any step is class by class before classes are contrasted."""
        return bool(self.warm_outer) and self.warm_inner > 0

    @property
    def inner_steps(self) -> int:
        return self.inner or (1 if not self.rule.trains else 10 if self.per_class <= 10 else 50)

    @property
    def training(self) -> Training:
        """Of the network, between matching steps."""
        published = 5 if self.per_class == 1 else 50 if self.per_class <= 10 else 10
        epochs = published if self.epochs is None else self.epochs
        return Training(epochs, self.lr_network, 0.0, 0.0, self.batch, drop=False)

    def to_json(self) -> dict[str, Any]:
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        own = asdict(self.rule)
        return plain | {
            "network": repr(self.network),
            "method": {"name": self.rule.name, **own} if own else self.rule.name,
        }
