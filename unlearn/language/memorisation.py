"""How much of the forgotten text a model still completes by itself, token by token."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .metric import LanguageMetric, Measured, Session


@dataclass(frozen=True)
class ExactMemorization(LanguageMetric):
    """Mean share of tokens that are the model's likeliest, the true ones given before each (Tirumala et al. 2022, arXiv
    2205.10770). On the answers of `forget`, else on the passages of `verbmem`."""

    name: ClassVar[str] = "exact_memorization"
    needs: ClassVar = (("forget", "verbmem"),)
    better: ClassVar[str] = "the retain model's"
    source: ClassVar[str] = "arXiv 2205.10770"

    def measure(self, session: Session) -> Measured:
        return Measured.mean([one.best.mean() for one in session.memorised()])


@dataclass(frozen=True)
class ExtractionStrength(LanguageMetric):
    """Mean of 1 - k/n: given the first k of n tokens, every later one is the model's likeliest (Carlini et al. 2021;
    Wang et al. 2025, arXiv 2406.09179). It is 0 when not even the last token is; open-unlearning's program gives 1/n
    there. On the answers of `forget`, else on the passages of `verbmem`."""

    name: ClassVar[str] = "extraction_strength"
    needs: ClassVar = (("forget", "verbmem"),)
    better: ClassVar[str] = "the retain model's"
    source: ClassVar[str] = "arXiv 2406.09179"

    def measure(self, session: Session) -> Measured:
        def strength(best: np.ndarray) -> float:
            wrong = np.flatnonzero(~best)
            return 1 - (wrong[-1] + 1) / len(best) if len(wrong) else 1.0

        return Measured.mean([strength(one.best) for one in session.memorised()])
