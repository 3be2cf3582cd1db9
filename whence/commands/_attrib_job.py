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
    from whence.cache import Examples, Task


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
    pack: bool = False
    """Fit on short texts packed into rows of --length tokens, their attention kept apart. Results are by text."""

    def load(self) -> "Attribution":
        from whence.attrib.finite import finite_examples
        from whence.cache.tasks import packed
        from whence.inputs import longest
        from whence.pretrained import context_of

        loaded = self.load_named(self.model, self.sites)
        trained = loaded.trained
        if self.recorded is not None:
            trained = trained.after(self.recorded)
        if self.skip_nan:
            trained = trained.replace(train=finite_examples(trained))
        texts = trained.train
        if self.pack:
            if self.recorded is not None or "input_ids" not in texts.columns:
                raise UsageError("Only texts are packed, and no recorded run saw these rows.", "Leave out --pack.")
            trained = trained.replace(train=packed(texts, longest(self.length, context_of(trained.model))))
        return Attribution(trained, loaded.corpus, self, texts)


@dataclass(frozen=True, eq=False)
class Attribution(Loaded):
    """A job's trained model, its data, and the fitted method."""

    job: Job
    texts: "Examples"
    measure: "Task | None" = None

    @property
    def train(self) -> "Examples":
        """What is scored: the training examples, or the texts that they are packed of."""
        return self.texts

    @cached_property
    def fitted(self) -> "Fitted":
        """The method on the training examples: from the store, resumed, or fitted now. Raises UsageError for packed
        texts and a method that scores rows only."""
        from whence.attrib import Factors

        found = self.job.build().fit(self.trained)
        if self.job.pack and not isinstance(found, Factors):
            raise UsageError(f"{self.job.method} scores whole rows.", "Leave out --pack, or use --method ekfac.")
        return found if self.measure is None else found.measuring(self.measure)

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
