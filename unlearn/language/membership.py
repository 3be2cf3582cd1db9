"""Membership: are forgotten texts distinguished from texts that no model read? AUC is 1 where they are much likelier.

MUSE's own program reports 1 - AUC; open-unlearning and this program report AUC and turn it round in `privleak`.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from whence.cache import UsageError

from .metric import LanguageMetric, Measured, Session
from .reader import Scored

FORGET, HOLDOUT = "forget_text", "holdout_text"


class Membership(LanguageMetric):
    """AUC of a score that is lower for texts that were read."""

    needs: ClassVar = (FORGET, HOLDOUT)
    better: ClassVar[str] = "the retain model's"

    @abstractmethod
    def score(self, text: Scored) -> float:
        """Of one text."""

    def measure(self, session: Session) -> Measured:
        from sklearn.metrics import roc_auc_score

        read, unread = ([self.score(text) for text in session.texts(part)] for part in (FORGET, HOLDOUT))
        labels = np.repeat([0, 1], [len(read), len(unread)])
        return Measured(float(roc_auc_score(labels, [*read, *unread])), np.array(read))


@dataclass(frozen=True)
class LossAttack(Membership):
    """By the mean loss over tokens (Yeom et al. 2018)."""

    name: ClassVar[str] = "mia_loss"
    source: ClassVar[str] = "arXiv 1709.01604"

    def score(self, text: Scored) -> float:
        return text.loss


@dataclass(frozen=True)
class MinK(Membership):
    """By the mean log-probability of the k least likely tokens, negative (Min-K% Prob; Shi et al. 2024).

    k: share of the tokens; open-unlearning and MUSE use 0.4.
    """

    k: float = 0.4
    name: ClassVar[str] = "mia_min_k"
    source: ClassVar[str] = "arXiv 2310.16789"

    def __post_init__(self) -> None:
        if not 0 < self.k <= 1:
            raise UsageError(f"A share of {self.k} of the tokens cannot be taken.", "Use a share above 0, at most 1.")

    def values(self, text: Scored) -> np.ndarray:
        """Of every token."""
        return text.logprobs

    def score(self, text: Scored) -> float:
        least = np.sort(self.values(text))[: max(1, int(len(text.logprobs) * self.k))]
        return float(-least.mean())


@dataclass(frozen=True)
class MinKPlusPlus(MinK):
    """The same of log-probabilities that are standardised by mean and deviation over the vocabulary (Min-K%++; Zhang et
    al. 2025)."""

    name: ClassVar[str] = "mia_min_k_plus_plus"
    source: ClassVar[str] = "arXiv 2404.02936"

    def values(self, text: Scored) -> np.ndarray:
        return (text.logprobs - text.mean) / np.sqrt(np.maximum(text.variance, 1e-6))


@dataclass(frozen=True)
class PrivLeak(MinK):
    """Privacy leakage in percent: 100 (a - r) / r, where a and r are 1 - AUC of Min-K% of this model and of a retain
    model (MUSE, section 3.3; 0.5 takes the retain model's place without one). 0 is ideal; negative: the forgotten
    texts still look read; positive: they look less likely than unread ones."""

    name: ClassVar[str] = "privleak"
    better: ClassVar[str] = "near 0"
    source: ClassVar[str] = "MUSE (arXiv 2407.06460)"
    against: ClassVar[bool] = True

    def compared(self, own: Measured, retain: Measured | None) -> Measured | None:
        ideal = 1 - (0.5 if retain is None else retain.value)
        return own._replace(value=100 * ((1 - own.value) - ideal) / (ideal + 1e-10))
