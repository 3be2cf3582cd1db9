"""What the commands of `attrib` share: the trained model and the fitted method."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from whence.cache.errors import UsageError

from ._methods import MethodOptions
from ._shared import Loaded, ModelOptions

if TYPE_CHECKING:
    from whence.attrib import Factors, Fitted


@dataclass(frozen=True, kw_only=True)
class Job(MethodOptions, ModelOptions):
    """The layers and examples that are used."""

    sites: tuple[str, ...] = ("*.mlp.*",)
    """Layers that are attributed, by name; "*" for every linear layer."""
    recorded: Path | None = None
    """Folder of the recorded training run (`cache.runs`; also --run): the model is then that at its end, and methods
    that follow training take their damping, checkpoints and rates from it."""
    skip_nan: bool = False
    """Leave out examples whose gradients are not finite, after naming them."""

    def load(self) -> "Attribution":
        from whence.attrib.finite import finite_examples

        loaded = self.load_named(self.model, self.sites)
        trained = loaded.trained
        if self.recorded is not None:
            trained = trained.after(self.recorded)
        if self.skip_nan:
            trained = trained.replace(train=finite_examples(trained))
        return Attribution(trained, loaded.corpus, self)


@dataclass(frozen=True, eq=False)
class Attribution(Loaded):
    """A job's trained model, its data, and the fitted method."""

    job: Job

    @cached_property
    def fitted(self) -> "Fitted":
        """The method on the training examples: from the store, resumed, or fitted now."""
        return self.job.build().fit(self.trained)

    @property
    def factors(self) -> "Factors":
        """The fitted method as curvature. Raises UsageError for a method that fits none."""
        from whence.attrib import Factors

        if isinstance(self.fitted, Factors):
            return self.fitted
        raise UsageError(
            f"{self.job.method} fits no curvature, which this needs.",
            "Use --method ekfac, kfac, shampoo, diagonal, identity, cg, astra, lissa or datainf.",
        )
