"""What every metric of a language model has, and the session that reads each text once."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float

from whence.cache import UsageError

from .data import EvaluationData
from .reader import Reader, Scored


class Measured(NamedTuple):
    """value: of the metric. each: per item. parts: values that it is made of, by name."""

    value: float
    each: Float[np.ndarray, " n"]
    parts: Mapping[str, float] = {}

    @staticmethod
    def mean(each: Any) -> "Measured":
        """The mean of these items."""
        values = np.asarray(each, np.float64)
        return Measured(float(values.mean()), values)


@dataclass(frozen=True, eq=False)
class Session:
    """One model and the data; what several metrics need is computed once."""

    reader: Reader
    data: EvaluationData
    known: dict[Any, Any] = field(default_factory=dict)

    def once(self, key: Any, compute: Callable[[], Any]) -> Any:
        if key not in self.known:
            self.known[key] = compute()
        return self.known[key]

    def answers(self, part: str, which: str = "answer") -> list[Scored]:
        """The answers (or the `paraphrased` ones) of a part's questions. Raises UsageError where one is missing."""
        return self.once((part, which), lambda: self._answers(part, which))

    def _answers(self, part: str, which: str) -> list[Scored]:
        asked = self.data.of(part)
        if any(getattr(one, which) is None for one in asked):
            raise UsageError(f"A question of {part} has no {which} answer.", f"Add `{which}_answer` to the data.")
        prompts = [self.data.prompt(one.question) for one in asked]
        return self.reader.answers(prompts, [self.data.completion(getattr(one, which)) for one in asked])

    def perturbed(self, part: str) -> list[list[Scored]]:
        """The wrong answers of a part's questions, a list a question. Raises UsageError where there is none."""
        return self.once((part, "perturbed"), lambda: self._perturbed(part))

    def _perturbed(self, part: str) -> list[list[Scored]]:
        asked = self.data.of(part)
        if not all(one.perturbed for one in asked):
            raise UsageError(f"A question of {part} has no wrong answers.", "Add `perturbed_answer` to the data.")
        pairs = [(one, wrong) for one in asked for wrong in one.perturbed]
        prompts = [self.data.prompt(one.question) for one, _ in pairs]
        flat = iter(self.reader.answers(prompts, [self.data.completion(wrong) for _, wrong in pairs]))
        return [[next(flat) for _ in one.perturbed] for one in asked]

    def memorised(self) -> list[Scored]:
        """The tokens that memorisation is measured on: the answers of `forget`, else the passages of `verbmem`."""
        if self.data.of("forget"):
            return self.answers("forget")
        asked = self.data.of("verbmem")
        return self.once(
            "verbmem", lambda: self.reader.answers([p.prompt for p in asked], [p.continuation for p in asked])
        )

    def written(self, part: str, tokens: int, stop: Sequence[str] = (), knowledge: bool = False) -> list[str]:
        """Greedy answers to a part's questions of up to `tokens` tokens, cut before the first text of `stop`."""
        asked = self.data.of(part)
        prompts = [self.data.prompt(one.question, knowledge) for one in asked]
        most = self.most([one.answer for one in asked])
        return self.once((tuple(prompts), tokens, stop), lambda: self.reader.continuations(prompts, tokens, stop, most))

    def most(self, texts: Sequence[str]) -> list[int] | None:
        """Tokens of these texts, where models did not learn where they end."""
        return None if self.data.ends else [len(self.reader.tokens(text)) for text in texts]

    def texts(self, part: str) -> list[Scored]:
        """The texts of a part."""
        return self.once(part, lambda: self.reader.texts(self.data.of(part)))


class LanguageMetric(ABC):
    """A metric: a frozen dataclass of settings.

    name: in tables and on the command line; open-unlearning's where it has one. needs: parts of the data, those of an
    inner tuple in place of each other. better: higher, lower, or the retain model's own value. source: of the
    definition. against: the value is a comparison with a retain model.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[str | tuple[str, ...], ...]]
    better: ClassVar[str]
    source: ClassVar[str]
    against: ClassVar[bool] = False

    @abstractmethod
    def measure(self, session: Session) -> Measured:
        """The metric of one model."""

    def compared(self, own: Measured, retain: Measured | None) -> Measured | None:
        """The value to report, given the same of a retain model; None if it needs one. The model's own by default."""
        return own

    def missing(self, data: EvaluationData) -> str | None:
        """What the data lack for it, in words."""
        for need in self.needs:
            any_of = (need,) if isinstance(need, str) else need
            if not any(data.of(part) for part in any_of):
                return f"the data have no {' or '.join(any_of)}"
        return None
