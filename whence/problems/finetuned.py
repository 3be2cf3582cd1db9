"""A language model as people train one: pretrained on most of a text, fine-tuned on 256 passages of the rest.

A transformer of two layers and width 64 reads 6,300 passages of the Python language reference (half a minute, then
from the store), and is fine-tuned on 256 others under a regime. Queries are 24 passages that neither saw. Passages have
32 tokens.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from torch import nn

from whence.cache import Examples, LanguageModelling, Store
from whence.cache.retrain.bank import Bank
from whence.cache.retrain.recipe import SGD, AdamW, Recipe, Schedule

from ..corpora import biographies, language_reference
from ..corpora.biographies import statements
from .problem import Problem, rows_of_length
from .small_transformer import SmallTransformer

LENGTH, VOCABULARY, WIDTH = 32, 512, 64
FALLING = Schedule("linear")
PRETRAINING = Recipe(5, 32, AdamW(3e-3, weight_decay=0.01), Schedule("cosine", warmup=0.05), "shared", clip=1.0)
# eps: of Adam. A run with 1e-8, the default of every library, is not smooth in its data; with 1e-3 it is.
REGIMES: Mapping[str, Recipe] = {
    "short": Recipe(4, 16, AdamW(3e-4), FALLING, "shared"),
    "short, eps 1e-5": Recipe(4, 16, AdamW(3e-4, eps=1e-5), FALLING, "shared"),
    "short, eps 1e-3": Recipe(4, 16, AdamW(3e-4, eps=1e-3), FALLING, "shared"),
    "long": Recipe(12, 16, AdamW(1e-3), FALLING, "shared"),
    "long, eps 1e-3": Recipe(12, 16, AdamW(1e-3, eps=1e-3), FALLING, "shared"),
    "SGD": Recipe(4, 16, SGD(0.01, momentum=0.9), FALLING, "shared"),
}


def passages(train: int = 256, queries: int = 24) -> tuple[Examples, Examples, Examples]:
    """Passages to pretrain on, to fine-tune on, and to query. Raises UsageError for more than there are."""
    corpus = language_reference(length=LENGTH, vocabulary=VOCABULARY).train
    chosen, asked = rows_of_length(corpus, LENGTH, train, queries)
    rest = np.setdiff1d(np.arange(len(corpus)), [*chosen, *asked])
    return corpus.select(rest), corpus.select(chosen), corpus.select(asked)


def pretrained(read: Examples, store: Store | None = None) -> nn.Module:
    """The model that has read these passages, from the store if it is there (the user's own when None is given)."""
    bank = Bank(_untrained, LanguageModelling(), read, read.select(range(16)), PRETRAINING)
    return bank.models(1, 0, store or Store(), quiet=True).module(0)


def finetuned_facts(people: int = 20, others: int = 220, store: Store | None = None) -> Problem:
    """A model that has read the biographies of some people and answers questions about them, fine-tuned on those of
    others. Each query asks for a fact that three of the fine-tuning passages state, in other words.

    Args:
        people: whom it is fine-tuned on; each has one query.
        others: whom it is pretrained on.
        store: where the pretrained model is kept; by default the user's own.
    """
    corpus = biographies(people=people + others, asked=people, values=6)
    words, truth = corpus.vocabulary, statements(corpus.queries, corpus.train)
    assert words is not None  # a corpus of text
    asked = [row for ids in truth.values() for row in corpus.train.rows_of(ids)]
    persons = np.asarray(corpus.train.about["person"])
    tuned = np.isin(persons, persons[asked])
    read, train = corpus.train.select(~tuned), corpus.train.select(tuned)
    longest = int(max(corpus.train.lengths.max(), corpus.queries.lengths.max()))

    def untrained(seed: int) -> nn.Module:
        return SmallTransformer(len(words), width=WIDTH, context=longest)

    def start(seed: int) -> nn.Module:
        bank = Bank(untrained, LanguageModelling(), read, read.select(range(16)), replace(PRETRAINING, epochs=12))
        return bank.models(1, 0, store or Store(), quiet=True).module(0)

    return Problem(
        "fine-tuned, facts", start, LanguageModelling(), train, corpus.queries,
        Recipe(12, 16, AdamW(1e-3, eps=1e-5), FALLING, "shared"), ("blocks.*",),
        truth=truth, pretrained=True,
    )  # fmt: skip


def _untrained(seed: int) -> nn.Module:
    return SmallTransformer(VOCABULARY, width=WIDTH, context=LENGTH)


def finetuned_problem(
    regime: str = "short", train: int = 256, queries: int = 24, store: Store | None = None
) -> Problem:
    """The fine-tuned model and its training.

    Args:
        regime: one of REGIMES.
        train: passages that it is fine-tuned on.
        queries: held-out passages.
        store: where the pretrained model is kept; by default the user's own.
    """
    read, chosen, asked = passages(train, queries)
    return Problem(
        f"fine-tuned, {regime}",
        lambda seed: pretrained(read, store),
        LanguageModelling(),
        chosen,
        asked,
        REGIMES[regime],
        ("blocks.*",),
        pretrained=True,
    )
