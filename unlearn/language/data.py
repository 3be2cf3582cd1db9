"""What language models are asked: questions with answers (TOFU), passages (MUSE), and choices (WMDP).

Records are read from rows with the columns of the published data sets, whichever file they come from.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

from whence.cache import DataError, UsageError
from whence.cache.errors import check_known


class Question(NamedTuple):
    """A question and its answer. paraphrased: the answer in other words; perturbed: wrong answers in that form."""

    question: str
    answer: str
    paraphrased: str | None = None
    perturbed: tuple[str, ...] = ()


class Passage(NamedTuple):
    """The beginning of a text, and how it goes on."""

    prompt: str
    continuation: str


class Choice(NamedTuple):
    """A question with its options, and which of them is right."""

    question: str
    choices: tuple[str, ...]
    right: int


Record: TypeAlias = Question | Passage | Choice | str
PARTS: Mapping[str, tuple[type, str]] = {
    "forget": (Question, "questions about what was to be forgotten, with paraphrased and perturbed answers (TOFU)"),
    "retain": (Question, "questions about the rest of the training data, with both (TOFU)"),
    "real_authors": (Question, "questions about people who are not in it, with perturbed answers (TOFU)"),
    "world_facts": (Question, "questions about the world, with perturbed answers (TOFU)"),
    "verbmem": (Passage, "passages of the forgotten texts (MUSE)"),
    "knowmem": (Question, "questions about the forgotten texts (MUSE)"),
    "retain_knowmem": (Question, "questions about the retained texts (MUSE)"),
    "examples": (Question, "questions with answers that stand before MUSE's questions"),
    "forget_text": (str, "forgotten texts, for membership"),
    "holdout_text": (str, "texts of the same kind that no model read, for membership"),
    "choices": (Choice, "multiple choice about the knowledge to be removed (WMDP)"),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class EvaluationData:
    """Records by part (`PARTS`), and how a question is put.

    parts: part -> records; a metric whose parts are missing is not measured. template: the prompt of TOFU's questions;
    an answer follows after a space, unless the template ends with white space. knowledge_template: of MUSE's questions,
    its own by default. letters: choices are asked by letter, as WMDP's are; else each choice's own text is scored.
    ends: models learned where such texts end; where they did not, nothing longer than the true text is written.
    """

    parts: Mapping[str, tuple[Record, ...]] = field(default_factory=dict)
    template: str = "Question: {question}\nAnswer:"
    knowledge_template: str = "Question: {question}\nAnswer: "
    letters: bool = True
    ends: bool = True

    def __post_init__(self) -> None:
        for name, records in self.parts.items():
            check_known("part", name, PARTS)
            kind = PARTS[name][0]
            if not records or not all(isinstance(record, kind) for record in records):
                raise DataError(f"The part {name} has no or other records than {kind.__name__}.", "Give at least one.")
        for name in ("template", "knowledge_template"):
            if "{question}" not in getattr(self, name):
                raise UsageError(f"The {name} has no {{question}}.", "Write it as 'Question: {question}\\nAnswer:'.")

    def __repr__(self) -> str:
        return f"EvaluationData({', '.join(f'{len(records)} {name}' for name, records in self.parts.items())})"

    def prompt(self, question: str, knowledge: bool = False) -> str:
        """A question in its template; before MUSE's stand the examples."""
        if not knowledge:
            return self.template.replace("{question}", question)
        shown = [self.knowledge_template.replace("{question}", q.question) + q.answer for q in self.of("examples")]
        return "".join(f"{text}\n\n" for text in shown) + self.knowledge_template.replace("{question}", question)

    def completion(self, answer: str) -> str:
        """An answer as it follows the prompt."""
        return answer if self.template[-1:].isspace() else " " + answer

    def of(self, part: str) -> tuple[Any, ...]:
        """The records of a part; none if it is missing."""
        return tuple(self.parts.get(part, ()))


def records(part: str, rows: Iterable[Mapping[str, Any]], where: str = "the data") -> tuple[Record, ...]:
    """Records of a part from rows with published columns.

    TOFU: `question`, `answer`, `paraphrased_answer`, `perturbed_answer` (texts; of real authors and world facts also
    `option1` to `option4`, of which the answer is one). MUSE: `prompt` and `gt`; `question` and `answer`; `text`. WMDP:
    `question`, `choices`, `answer` (a number).

    Args:
        part: one of `PARTS`.
        rows: mappings of columns.
        where: for errors.

    Raises UsageError for another part, DataError for a row without a column.
    """
    check_known("part", part, PARTS)
    kind = PARTS[part][0]
    read = _READ[kind]
    found = tuple(read(row, f"{where}, row {number}") for number, row in enumerate(rows, 1))
    if not found:
        raise DataError(f"{where} has no row.", f"Give {PARTS[part][1]}.")
    return found


def _question(row: Mapping[str, Any], place: str) -> Question:
    answer = _text(row, "answer", place)
    wrong = row.get("perturbed_answer")
    if wrong is None:
        options = [row[name] for name in sorted(row) if name.startswith("option") and row[name] is not None]
        wrong = [option for option in options if option != answer]
    wrong = [wrong] if isinstance(wrong, str) else wrong
    other = row.get("paraphrased_answer")
    return Question(
        _text(row, "question", place), answer, None if other is None else str(other), tuple(map(str, wrong))
    )


def _passage(row: Mapping[str, Any], place: str) -> Passage:
    return Passage(_text(row, "prompt", place), _text(row, "gt" if "gt" in row else "continuation", place))


def _choice(row: Mapping[str, Any], place: str) -> Choice:
    choices, right = row.get("choices"), row.get("answer")
    if choices is None or len(choices) < 2 or not isinstance(right, int) or not 0 <= right < len(choices):
        raise DataError(f"{place} has no `choices` of which `answer` is a number.", "Give both, the first choice is 0.")
    return Choice(_text(row, "question", place), tuple(map(str, choices)), right)


def _plain(row: Mapping[str, Any], place: str) -> str:
    return _text(row, "text", place)


def _text(row: Mapping[str, Any], name: str, place: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value:
        raise DataError(f"{place} has no text {name!r}.", f"Its columns: {', '.join(row) or 'none'}.")
    return value


_READ: Mapping[type, Callable[[Mapping[str, Any], str], Record]] = MappingProxyType(
    {Question: _question, Passage: _passage, Choice: _choice, str: _plain}
)
