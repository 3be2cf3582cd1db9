"""ROUGE-L (Lin 2004): the longest common subsequence of words, over the reference's words or both."""

import re
from collections.abc import Callable
from typing import NamedTuple

from whence.cache import UsageError


class Rouge(NamedTuple):
    """recall: of the reference's words; f1: the harmonic mean of precision and recall."""

    recall: float
    f1: float


def rouge_l(reference: str, text: str, *, stem: bool = False) -> Rouge:
    """ROUGE-L as the package rouge-score computes it: lower-case words of a-z and 0-9.

    Args:
        reference: the true text.
        text: the text to judge.
        stem: reduce words of more than three letters to their stem first (Porter), which open-unlearning and TOFU do
            and MUSE does not; needs the package nltk.

    Raises UsageError when stems are wanted and nltk is not installed.

    >>> rouge_l("the cat sat", "The cat was here")
    Rouge(recall=0.6666666666666666, f1=0.5714285714285715)
    """
    change = _stemmer() if stem else str
    one, other = (
        [change(word) if len(word) > 3 else word for word in re.findall(r"[a-z0-9]+", each.lower())]
        for each in (reference, text)
    )
    if not one or not other:
        return Rouge(0.0, 0.0)
    row = [0] * (len(other) + 1)
    for word in one:
        before = 0  # of the row above, one to the left
        for k, own in enumerate(other, 1):
            above = row[k]
            row[k] = before + 1 if word == own else max(above, row[k - 1])
            before = above
    recall, precision = row[-1] / len(one), row[-1] / len(other)
    both = recall + precision
    return Rouge(recall, 2 * recall * precision / both if both else 0.0)


def _stemmer() -> Callable[[str], str]:
    try:
        from nltk.stem.porter import PorterStemmer
    except ImportError as error:
        raise UsageError("Stems need the package nltk.", "Install it, or leave stems out.") from error
    return PorterStemmer().stem
