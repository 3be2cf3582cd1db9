"""What an attribution method is: a frozen dataclass of settings that fits a trained model, and the part of its key that
its fields form."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from whence.cache import Sites, TrainedModel
from whence.cache.model.checkpoints import Checkpoint, models_at
from whence.cache.model.trained import ModelPass

from .annotations import warned
from .curvature import Damping, SiteFactors
from .factors import Factors
from .fitted import Fitted
from .training import chosen_damping

Labels = Literal["sampled", "true"]
Eigen = Literal["float32", "float64"]


def in_key(default: Any, *, name: str | None = None, unless: Any = MISSING) -> Any:
    """A field that enters the key under `name` (its own by default), unless it has the value `unless`."""
    return field(default=default, metadata={"key": name, "unless": unless})


def not_in_key(default: Any, why: str) -> Any:
    """A field that enters the key in another way, or changes nothing that is stored: `why` says which."""
    return field(default=default, metadata={"why": why})


@dataclass(frozen=True)
class Method(ABC):
    """An attribution method: `fit` once, score often.

    A new method is one file in `methods/` with a subclass, and one line in its registry `METHODS`. It names itself,
    declares its settings as fields, and implements `fit_at`. Every field enters the key of what it computes, unless
    it is declared with `not_in_key`.
    """

    name: ClassVar[str]
    at_sites: ClassVar[bool] = True  # whether it looks at layers

    def fit(self, trained: TrainedModel, *, sites: Any = None) -> Fitted:
        """Fit, resume a fit, or read it from the store.

        Args:
            trained: the model with its data, task, store and device.
            sites: the layers that are attributed, as for TrainedModel; by default the trained model's own.

        Raises ModelError if no site is called; DataError for no data; NumericalError if a loss or a sum is not
        finite; ResourceError if one example does not fit the memory limit; UsageError for settings that contradict.

        >>> EKFAC().fit(trained).score(queries).sizes["train"]
        12
        """
        fitted = self.fit_at(trained, self.chosen(trained, sites))
        warned([fitted.caution] if fitted.caution else [], trained)
        return fitted

    def chosen(self, trained: TrainedModel, sites: Any) -> Sites:
        """The sites that are fitted; none for a method that looks at no layer."""
        return trained.find(sites) if self.at_sites else Sites((), 0, ())

    @abstractmethod
    def fit_at(self, trained: TrainedModel, sites: Sites) -> Fitted:
        """Fit at these sites, all of which the model calls."""

    def inputs(self, run: ModelPass) -> dict[str, Any]:
        """What a fit on this pass is computed from, as in its key."""
        return {**run.inputs(method=self.name), **self.settings()}

    def settings(self) -> dict[str, Any]:
        """The part of the key that the method's own fields form."""
        found: dict[str, Any] = {}
        for each in fields(self):
            if "why" in each.metadata:
                continue
            value = getattr(self, each.name)
            unless = each.metadata.get("unless", MISSING)
            if unless is MISSING or value != unless:
                found[each.metadata.get("key") or each.name] = (
                    asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
                )
        return found


@dataclass(frozen=True)
class CurvatureMethod(Method):
    """A method whose fit is a curvature per site, in a Kronecker-factored eigenbasis or the weights' own basis.

    Args:
        damping: how eigenvalues are inverted; chosen after the fit, so it enters the key of scores only. By default
            that of the training, if it is known (`training.chosen_damping`), else 0.1 times the site's mean.
        labels: "sampled" from the model (the Fisher matrix, equal to the Gauss-Newton matrix), or "true", the data's
            own (the empirical Fisher, which Grosse et al. 2023 advise against).
        seed: of the sampled labels.
    """

    damping: Damping | None = not_in_key(None, "enters the key of the scores")
    labels: Labels = not_in_key("sampled", "enters as the objective of the pass")
    seed: int = not_in_key(0, "enters with the pass")

    if TYPE_CHECKING:  # a fit of curvature answers more questions than `Fitted`

        def fit(self, trained: TrainedModel, *, sites: Any = None) -> Factors: ...

    def fit_at(self, trained: TrainedModel, sites: Sites) -> Factors:
        run = self.run(trained, sites)
        inputs = self.inputs(run)
        per_site, key = self.curvature(run, inputs)
        return Factors(trained, self.name, inputs, sites, per_site, len(run.examples), self.damping_for(run), key)

    def run(self, trained: TrainedModel, sites: Sites) -> ModelPass:
        return trained.run("sampled" if self.labels == "sampled" else "loss", sites, seed=self.seed)

    def damping_for(self, run: ModelPass) -> Damping:
        """The damping as chosen, else that of the training, else the paper's."""
        return chosen_damping(run.trained, run.sites, self.damping)[0]

    @abstractmethod
    def curvature(self, run: ModelPass, inputs: dict[str, Any]) -> tuple[dict[str, SiteFactors], str]:
        """Eigenbases and eigenvalues of every site, and the key of the entry that they are in (or "")."""


@dataclass(frozen=True)
class CheckpointMethod(Method):
    """A method that looks at several trained models.

    Args:
        checkpoints: models or state_dicts of the model's architecture; by default the model itself. `fit` raises
            ModelError for one whose parameters differ in name or shape.
    """

    checkpoints: Sequence[Checkpoint] = not_in_key((), "enters as the checkpoints' fingerprints")

    def models(self, trained: TrainedModel) -> tuple[TrainedModel, ...]:
        """The trained model at every checkpoint."""
        found = models_at(trained.model, self.checkpoints or [trained.model])
        return tuple(trained.replace(model=model) for model in found)

    def inputs_at(self, models: Sequence[TrainedModel], run: ModelPass) -> dict[str, Any]:
        """What a fit at these models on the data of a pass is computed from, as in its key."""
        return {**self.inputs(run), "checkpoints": [at.fingerprint() for at in models]}
