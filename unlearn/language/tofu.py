"""TOFU (Maini et al. 2024, arXiv 2401.06121), as open-unlearning computes it."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .metric import LanguageMetric, Measured, Session
from .rouge import rouge_l

SOURCE = "TOFU (arXiv 2401.06121)"
TINY = 1e-10


def probabilities(session: Session, part: str) -> np.ndarray:
    """P(answer | question)^(1/tokens) of every question."""
    return np.array([np.exp(-one.loss) for one in session.answers(part)])


def normalised(session: Session, part: str) -> np.ndarray:
    """That probability over the sum with those of the wrong answers."""
    right = probabilities(session, part)
    wrong = np.array([sum(np.exp(-one.loss) for one in each) for each in session.perturbed(part)])
    return right / (right + wrong + TINY)


def truth_ratios(session: Session, part: str, right: str) -> np.ndarray:
    """Geometric mean of the wrong answers' probability over that of the right one, all normalised by length."""
    good = np.array([one.loss for one in session.answers(part, right)])
    bad = np.array([np.mean([one.loss for one in each]) for each in session.perturbed(part)])
    return np.exp(-bad) / (np.exp(-good) + TINY)


def recalls(session: Session, part: str, tokens: int, stem: bool) -> np.ndarray:
    """ROUGE-L recall of the greedy answers."""
    asked, written = session.data.of(part), session.written(part, tokens)
    return np.array([rouge_l(one.answer, text, stem=stem).recall for one, text in zip(asked, written)])


@dataclass(frozen=True)
class ForgetProbability(LanguageMetric):
    """Mean P(answer | question)^(1/tokens) on the forgotten questions (TOFU, section 2.2.1)."""

    name: ClassVar[str] = "forget_Q_A_Prob"
    needs: ClassVar = ("forget",)
    better: ClassVar[str] = "lower"
    source: ClassVar[str] = SOURCE

    def measure(self, session: Session) -> Measured:
        return Measured.mean(probabilities(session, "forget"))


@dataclass(frozen=True)
class ForgetRouge(LanguageMetric):
    """Mean ROUGE-L recall of greedy answers to the forgotten questions.

    tokens: written at most. stem: as open-unlearning does, see `rouge_l`.
    """

    tokens: int = 200
    stem: bool = False
    name: ClassVar[str] = "forget_Q_A_ROUGE"
    needs: ClassVar = ("forget",)
    better: ClassVar[str] = "lower"
    source: ClassVar[str] = SOURCE

    def measure(self, session: Session) -> Measured:
        return Measured.mean(recalls(session, "forget", self.tokens, self.stem))


@dataclass(frozen=True)
class ForgetTruthRatio(LanguageMetric):
    """Mean of min(r, 1/r) of the truth ratio r on the forgotten questions: wrong answers over the paraphrased right
    one. 1 where a model prefers neither (TOFU, equation 1; open-unlearning's `closer_to_1_better`)."""

    name: ClassVar[str] = "forget_Truth_Ratio"
    needs: ClassVar = ("forget",)
    better: ClassVar[str] = "higher"
    source: ClassVar[str] = SOURCE

    def measure(self, session: Session) -> Measured:
        ratios = truth_ratios(session, "forget", "paraphrased")
        return Measured.mean(np.minimum(ratios, 1 / (ratios + TINY)))


@dataclass(frozen=True)
class ForgetQuality(LanguageMetric):
    """p-value of the two-sample Kolmogorov-Smirnov test between the truth ratios of this model and of a retain model
    on the forgotten questions (TOFU, section 2.2.3). Above 0.05 the two cannot be distinguished by it; with few
    questions it cannot reject anything."""

    name: ClassVar[str] = "forget_quality"
    needs: ClassVar = ("forget",)
    better: ClassVar[str] = "higher"
    source: ClassVar[str] = SOURCE
    against: ClassVar[bool] = True

    def measure(self, session: Session) -> Measured:
        ratios = truth_ratios(session, "forget", "paraphrased")
        return Measured(float(np.mean(ratios)), ratios)

    def compared(self, own: Measured, retain: Measured | None) -> Measured | None:
        from scipy.stats import ks_2samp

        if retain is None:
            return None
        return own._replace(value=float(ks_2samp(own.each, retain.each).pvalue))


@dataclass(frozen=True)
class ModelUtility(LanguageMetric):
    """Harmonic mean of nine numbers: probability, ROUGE-L recall and truth ratio on retained questions, real authors
    and world facts (TOFU, section 2.2.2). On the last two, probabilities are normalised over the wrong answers. Truth
    ratios enter as mean max(0, 1 - r); on retained questions the right answer is the paraphrased one.

    tokens: written at most. stem: as open-unlearning does, see `rouge_l`.
    """

    tokens: int = 200
    stem: bool = False
    name: ClassVar[str] = "model_utility"
    needs: ClassVar = ("retain", "real_authors", "world_facts")
    better: ClassVar[str] = "higher"
    source: ClassVar[str] = SOURCE

    def measure(self, session: Session) -> Measured:
        found: dict[str, float] = {}
        for part, short in (("retain", "retain"), ("real_authors", "ra"), ("world_facts", "wf")):
            own = part == "retain"
            share = probabilities(session, part) if own else normalised(session, part)
            ratios = truth_ratios(session, part, "paraphrased" if own else "answer")
            found[f"{short}_Q_A_Prob" + ("" if own else "_normalised")] = float(share.mean())
            found[f"{short}_Q_A_ROUGE"] = float(recalls(session, part, self.tokens, self.stem).mean())
            found[f"{short}_Truth_Ratio"] = float(np.maximum(0, 1 - ratios).mean())
        values = np.array(list(found.values()))
        mean = len(values) / (1 / values).sum() if (values > 0).all() else 0.0
        return Measured(float(mean), values, found)
