"""Chosen training data beside random and all, at equal tokens, judged by the loss on a held-out target.

The pool is the Python language reference and as many tokens of generated biographies. The target is the text of three
topics of the reference: a quarter of their passages is what rules choose by, a quarter is held out, the rest is in the
pool. A new model is trained on what each rule chose; every model sees equally many tokens. Intervals are over seeds of
split, proxy and model.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from whence import attrib
from whence.attrib.annotations import values_of
from whence.attrib.selection import bids, color, dsir, loss_weights, top_k
from whence.cache import AdamW, Examples, LanguageModelling, Recipe, TrainedModel
from whence.cache.retrain.trajectory import Trajectory
from whence.corpora import biographies, language_reference
from whence.corpora.corpus import ragged
from whence.corpora.vocabulary import Vocabulary
from whence.language_model import Shape, Training, new_model, train_language_model

from .condense_common import spread
from .harness import Benchmark, Run
from .timing import timed

bench = Benchmark(__file__, __doc__, example="--only dsir color random")
TOPICS = ("string-methods", "formatstrings", "typesmapping")
PROXY = Recipe(epochs=1, batch_size=16, optimiser=AdamW(3e-3, (0.9, 0.98)), batches="shared")


@dataclass(frozen=True)
class Setting:
    """Sizes of a run.

    Args:
        share: of the pool's tokens that is chosen.
        epochs: over the chosen tokens; all data are seen for as many tokens.
        length: tokens of a passage.
        vocabulary: of byte pairs.
        width: of the models.
        layers: of the models.
    """

    share: float = 0.1
    epochs: int = 10
    length: int = 64
    vocabulary: int = 1024
    width: int = 64
    layers: int = 2


@dataclass(eq=False)
class Situation:
    """One seed: pool, the target that rules see, the held-out target, and what rules compute from models."""

    setting: Setting
    seed: int

    def __post_init__(self) -> None:
        size, rng = self.setting, np.random.default_rng(self.seed)
        reference = language_reference(length=size.length, vocabulary=size.vocabulary).train
        lives = [str(text) for text in biographies().train.about["text"]]
        prose = [" . ".join(lives[at : at + 5]) for at in range(0, len(lives), 5)]
        texts = [str(text) for text in reference.about["text"]]
        words = Vocabulary.byte_pairs([*texts, *prose], size.vocabulary)
        topics = np.array([*(str(t) for t in reference.about["topic"]), *["biographies"] * len(prose)])
        tokens = [words.encode(text)[: size.length] for text in [*texts, *prose]]
        enough = np.array([len(t) >= 16 for t in tokens])
        whole = Examples(ragged(tokens), np.arange(len(tokens)), {"topic": topics.tolist()}).select(enough)
        topics = topics[enough]
        own = np.flatnonzero(np.isin(topics, TOPICS))
        own = own[rng.permutation(len(own))]
        cut = len(own) // 4
        self.seen, self.held_out = whole.select(np.sort(own[:cut])), whole.select(np.sort(own[cut : 2 * cut]))
        rest = np.setdiff1d(np.arange(len(whole)), own[: 2 * cut])
        limit = int(whole.lengths[rest][topics[rest] == "biographies"].sum())  # of other reference text: as many tokens
        wanted = np.isin(topics[rest], (*TOPICS, "biographies"))
        others = rest[~wanted][rng.permutation(int((~wanted).sum()))]
        others = others[np.cumsum(whole.lengths[others]) <= limit]
        self.pool = whole.select(np.sort(np.concatenate([rest[wanted], others])))
        self.shape = Shape(size.layers, size.width, 4, size.length, len(words))

    @cached_property
    def budget(self) -> int:
        """Tokens that are chosen."""
        return int(self.setting.share * self.pool.lengths.sum())

    @cached_property
    def start(self) -> Any:
        return new_model(self.shape, 100 + self.seed)

    @cached_property
    def proxy(self) -> TrainedModel:
        """A model of one pass over the pool: the prior of CoLoR-Filter, and what influence is computed at."""
        untrained = TrainedModel(self.start, self.pool, LanguageModelling(), sites="*.mlp.*", quiet=True)
        return untrained.at(Trajectory.record(untrained, PROXY, 0).end().parameters)

    @cached_property
    def influence(self) -> Any:
        """Scores [query, train] of EK-FAC, nats."""
        return attrib.EKFAC().fit(self.proxy).score(self.seen)

    def within(self, ids: np.ndarray) -> Examples:
        """The first of these examples that fit the budget."""
        order = [int(i) for i in ids]
        lengths = dict(zip(self.pool.ids.tolist(), self.pool.lengths.tolist()))
        kept = np.cumsum([lengths[i] for i in order]) <= self.budget
        return self.pool.select(np.isin(self.pool.ids, np.array(order)[kept]))

    def loss(self, examples: Examples, reweight: Callable[[Any], Any] | None = None) -> float:
        """Nats a token on the held-out target, after training on these examples for the tokens of the budget."""
        model = new_model(self.shape, self.seed)
        tokens = self.budget * self.setting.epochs
        if int(examples.lengths.sum()) > tokens:  # less than a pass: as many examples as that
            order = np.random.default_rng(self.seed).permutation(len(examples))
            examples = examples.select(np.sort(order[np.cumsum(examples.lengths[order]) <= tokens]))
        epochs = round(tokens / int(examples.lengths.sum()))
        how = Training(epochs, batch=16, rate=3e-3, seed=self.seed)
        train_language_model(model, examples, how, reweight=reweight, quiet=True)
        return nats(model, self.held_out)


def nats(model: Any, examples: Examples) -> float:
    """Mean loss per predicted token."""
    trained = TrainedModel(model, examples, LanguageModelling(), quiet=True)
    return float(values_of(trained, examples, trained.task.loss).sum() / (examples.lengths - 1).sum())


def by_random(at: Situation) -> np.ndarray:
    return np.random.default_rng([at.seed, 5]).permutation(at.pool.ids)


def by_dsir(at: Situation) -> np.ndarray:
    return dsir(at.seen, at.pool, len(at.pool), seed=at.seed)


def by_color(at: Situation) -> np.ndarray:
    conditional = deepcopy(at.proxy.model)
    train_language_model(conditional, at.seen, Training(3, 16, 1e-3, seed=at.seed), quiet=True)
    return color(at.proxy, at.proxy.replace(model=conditional), len(at.pool))


def by_influence(at: Situation) -> np.ndarray:
    return top_k(at.influence, len(at.pool))


def by_bids(at: Situation) -> np.ndarray:
    """In the order of choice, until twice the budget's share is reached."""
    count = int(2 * at.setting.share * len(at.pool))
    return bids(at.influence, count, [str(topic) for topic in at.seen.about["topic"]])


def by_optimiser(at: Situation) -> np.ndarray:
    """Scores of AdamW-influence on queries of each topic."""
    few = at.seen.select(np.arange(0, len(at.seen), max(1, len(at.seen) // 12)))
    return top_k(attrib.AdamWInfluence(at.start, PROXY).fit(at.proxy).score(few), len(at.pool))


ORDERS: dict[str, Callable[[Situation], np.ndarray]] = {
    "random": by_random, "dsir": by_dsir, "color": by_color, "influence (EK-FAC)": by_influence,
    "influence, balanced (BIDS)": by_bids, "influence (AdamW)": by_optimiser,
}  # fmt: skip
WHOLE = {
    "all": None,
    "all, reweighted (linupper)": loss_weights,
    "all, reweighted (quadratic)": partial(loss_weights, strategy="quadratic"),
}


@bench.case(quick={"seeds": 1, "epochs": 1, "width": 16, "layers": 1, "length": 32})
def tokens(run: Run, setting: Setting = Setting(), seeds: int = 3) -> None:
    """Loss on the held-out target after training on what each rule chose, at equal tokens.

    Args:
        seeds: of splits and models.
    """
    losses: dict[str, list[float]] = {}
    purity: dict[str, list[float]] = {}
    seconds: dict[str, float] = {}
    names = run.selected([*ORDERS, *WHOLE])
    for seed in range(seeds):
        at = Situation(setting, seed)
        for name in names:
            if name in ORDERS:
                took, chosen = timed(lambda name=name, at=at: at.within(ORDERS[name](at)))
                losses.setdefault(name, []).append(at.loss(chosen))
            else:
                took, chosen = 0.0, at.pool
                losses.setdefault(name, []).append(at.loss(at.pool, WHOLE[name]))
            hits = np.isin(np.array(chosen.about["topic"]), TOPICS)
            purity.setdefault(name, []).append(100 * float(chosen.lengths[hits].sum() / chosen.lengths.sum()))
            seconds[name] = seconds.get(name, 0.0) + took / seeds
    title = (
        f"{len(at.pool)} passages, {at.budget} of {at.pool.lengths.sum()} tokens chosen, {setting.epochs} passes, "
        f"{seeds} seeds"
    )
    table = run.table(
        "rule", "nats a token on the held-out target", "less than random, seed by seed",
        "tokens of the target's topics, %|.0f", "choosing, s|.0f", title=title,
    )  # fmt: skip
    for name in names:
        gap = spread(np.array(losses.get("random", losses[name])) - np.array(losses[name]), 3)
        table.row(name, spread(losses[name], 3), gap, np.mean(purity[name]), seconds[name])


if __name__ == "__main__":
    bench.main()
