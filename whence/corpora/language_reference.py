"""The Python language reference that every CPython carries (`pydoc_data.topics`), as passages with titles.

Topics overlap, so a paragraph that was seen before is left out; prose that was wrapped at 72 columns becomes one
line again, code and grammar stay as they are; consecutive paragraphs of one section are packed into passages of
about `length` tokens. The texts differ between versions of Python, and so do the passages; a passage whose text
is the same has the same id everywhere.
"""

import re
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import numpy as np

from whence.cache import Examples

from .corpus import Corpus, query_examples, ragged, stable_ids
from .vocabulary import Vocabulary

FILLED = 50  # columns: lines shorter than this were not wrapped by a typesetter
SHORTEST = 16  # tokens: what is shorter teaches nothing and is left out

# sentences of our own that the reference has an opinion on
QUERIES = (
    ('Using a "yield" expression in the body of a function causes that function to be', " a generator"),
    ('When the "try" statement is left, the "finally" clause', " is executed"),
    ("If the iterator is exhausted, it raises", ' a "StopIteration" exception'),
    ("An object whose value cannot change once it is created is called", " *immutable*"),
    ("The default parameter values are evaluated", " when the function definition is executed"),
    ('A "break" statement terminates the nearest enclosing', " loop"),
    ("A class definition may list the base classes from which it", " inherits"),
    ("Names that are bound in a block are local variables of that block, unless declared", ' "nonlocal"'),
)


class Passage(NamedTuple):
    title: str
    text: str


@cache
def language_reference(length: int = 128, vocabulary: int = 2048) -> Corpus:
    """About 800 passages of at most `length` tokens, and held-out sentences of our own as queries.

    About an example: `title` ("yield: The yield statement"), `topic`, `text`.
    """
    paragraphs = list(_paragraphs())
    words = Vocabulary.byte_pairs((p.text for p in paragraphs), vocabulary)
    passages = list(_packed(paragraphs, words, length))
    train = Examples(
        ragged([words.encode(p.text) for p in passages]),
        stable_ids([p.text for p in passages]),
        {
            "title": [p.title for p in passages],
            "topic": [p.title.partition(":")[0] for p in passages],
            "text": [p.text for p in passages],
        },
    )
    prompts, completions = zip(*QUERIES)
    return Corpus("language-reference", train, query_examples(prompts, completions, words), words)


def _paragraphs() -> Iterator[Passage]:
    """Every paragraph once, in order, with the title of where it stands."""
    from pydoc_data.topics import topics

    seen: set[str] = set()
    for topic in sorted(topics):
        section = ""
        for block in re.split(r"\n[ \t]*\n", topics[topic].expandtabs()):
            block = block.strip("\n")
            heading = re.fullmatch(r"(\S[^\n]*)\n([=*~^\-])\2{2,}", block)
            if heading:
                section = heading[1].replace('"', "")
                continue
            text = _unwrapped(block)
            key = " ".join(text.split())
            if key and key not in seen:
                seen.add(key)
                yield Passage(f"{topic}: {section}" if section else topic, text)


def _unwrapped(block: str) -> str:
    """Prose as one line; anything else as it stands, without the indentation all its lines share."""
    lines = block.split("\n")
    indents = {len(line) - len(line.lstrip()) for line in lines}
    if len(indents) == 1 and all(len(line) >= FILLED for line in lines[:-1]):
        return " ".join(line.strip() for line in lines)
    margin = min(len(line) - len(line.lstrip()) for line in lines if line.strip()) if block.strip() else 0
    return "\n".join(line[margin:].rstrip() for line in lines)


def _packed(paragraphs: list[Passage], words: Vocabulary, length: int) -> Iterator[Passage]:
    """Paragraphs of one title joined as long as `length` tokens allow; longer ones are cut between words."""
    title, text, size = "", "", 0
    for paragraph in [*paragraphs, Passage("", "")]:
        for piece in _pieces(paragraph.text, words, length):
            more = len(words.encode("\n\n" + piece))
            if text and (paragraph.title != title or size + more > length):
                if size >= SHORTEST:
                    yield Passage(title, text)
                text, size = "", 0
            text, size = (f"{text}\n\n{piece}", size + more) if text else (piece, len(words.encode(piece)))
            title = paragraph.title


def _pieces(text: str, words: Vocabulary, length: int) -> list[str]:
    """A text cut into near-equal runs of whole lines, sentences or words, each of at most `length` tokens."""
    if len(words.encode(text)) <= length:
        return [text]
    for separator in (r"(?<=\n)", r"(?<=[.;:] )", r"(?<= )", r"(?<=.)"):
        parts = [part for part in re.split(separator, text) if part]
        if len(parts) > 1:
            break
    sizes = np.cumsum([len(words.encode(part)) for part in parts])
    middle = int(np.argmin(np.abs(sizes[:-1] - sizes[-1] / 2))) + 1
    halves = "".join(parts[:middle]), "".join(parts[middle:])
    return [piece for half in halves for piece in _pieces(half.strip("\n").rstrip(), words, length)]
