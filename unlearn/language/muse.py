"""MUSE (Shi et al. 2024, arXiv 2407.06460): verbatim and knowledge memorisation, as its own program computes them."""

from dataclasses import dataclass
from typing import ClassVar

from .metric import LanguageMetric, Measured, Session
from .rouge import rouge_l

SOURCE = "MUSE (arXiv 2407.06460)"
STOP = ("\n\n", "\nQuestion", "Question:")


@dataclass(frozen=True)
class VerbMem(LanguageMetric):
    """Mean ROUGE-L F1 between the greedy continuation of forgotten passages and how they go on (VerbMem).

    tokens: written, and compared, at most. stem: MUSE's program does not; open-unlearning's does.
    """

    tokens: int = 128
    stem: bool = False
    name: ClassVar[str] = "forget_verbmem_ROUGE"
    needs: ClassVar = ("verbmem",)
    better: ClassVar[str] = "the retain model's"
    source: ClassVar[str] = SOURCE

    def measure(self, session: Session) -> Measured:
        asked, reader = session.data.of("verbmem"), session.reader
        most = session.most([one.continuation for one in asked])
        written = reader.continuations([one.prompt for one in asked], self.tokens, most=most)
        true = [reader.decode(reader.tokens(one.continuation)[: self.tokens]) for one in asked]
        return Measured.mean([rouge_l(right, text, stem=self.stem).f1 for right, text in zip(true, written)])


@dataclass(frozen=True)
class KnowMem(LanguageMetric):
    """Mean ROUGE-L F1 of greedy answers to questions about the forgotten texts (KnowMem). Examples stand before each
    question; an answer ends at an empty line or a next question.

    tokens: written at most. stem: MUSE's program does not; open-unlearning's does.
    """

    tokens: int = 32
    stem: bool = False
    name: ClassVar[str] = "forget_knowmem_ROUGE"
    needs: ClassVar[tuple] = ("knowmem",)
    better: ClassVar[str] = "the retain model's"
    source: ClassVar[str] = SOURCE
    part: ClassVar[str] = "knowmem"

    def measure(self, session: Session) -> Measured:
        asked = session.data.of(self.part)
        written = session.written(self.part, self.tokens, STOP, knowledge=True)
        return Measured.mean([rouge_l(one.answer, text, stem=self.stem).f1 for one, text in zip(asked, written)])


@dataclass(frozen=True)
class RetainKnowMem(KnowMem):
    """The same on questions about the retained texts: MUSE's utility preservation."""

    name: ClassVar[str] = "retain_knowmem_ROUGE"
    needs: ClassVar[tuple] = ("retain_knowmem",)
    better: ClassVar[str] = "higher"
    part: ClassVar[str] = "retain_knowmem"
