"""Problems on which attribution is judged: embedded data, a small model, and how it is trained again.

Every copy starts from the same weights and sees the examples in the same order. A mask is a weight in the loss, so
retrained models differ by their data only.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import nn

from whence.attrib import Damping, methods
from whence.attrib.evaluate import flip_labels
from whence.cache import Classification, Examples, LanguageModelling, Store, Task, TrainedModel, UsageError
from whence.cache.errors import did_you_mean
from whence.cache.model.runs import TrainingRun
from whence.cache.model.stateless import copied
from whence.cache.retrain.bank import Bank, OwnTraining
from whence.cache.retrain.loop import train
from whence.cache.retrain.recipe import SGD, AdamW, Recipe
from whence.cache.retrain.replicas import Replicas
from whence.cache.retrain.retrained import subset_masks
from whence.cache.retrain.trajectory import Trajectory

from ..corpora import biographies, digits, language_reference
from ..corpora.biographies import statements
from .small_transformer import SmallTransformer as SmallTransformer

FIXED = ", damping 0.1"  # after the name of a method whose damping is the paper's, whatever is known of the training


@dataclass(frozen=True, eq=False)
class Problem:
    """A model, its data, and its training.

    build: seed -> untrained model. patterns: the sites that are attributed. truth: query id -> ids of the training
    examples that state its answer, if known. flipped: which labels are wrong, if known. pretrained: every seed has one
    start, and they differ in the order of the examples. device: of all models, the CPU by default. dtype: name of the
    type of the parameters in attribution. recorded: the trained model of a recorded run, which `recipe` takes again."""

    name: str
    build: Callable[[int], nn.Module]
    task: Task
    train: Examples
    queries: Examples
    recipe: Recipe | OwnTraining
    patterns: tuple[str, ...] = ("*",)
    truth: Mapping[int, list[int]] = field(default_factory=dict)
    flipped: np.ndarray | None = None
    pretrained: bool = False
    device: str | None = None
    dtype: str | None = None
    recorded: TrainedModel | None = None

    @cached_property
    def start(self) -> nn.Module:
        return self.untrained(0)

    def untrained(self, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.build(seed)

    def order(self, seed: int) -> np.ndarray:
        """The rows of the training examples in the order of this seed; 0 is their own."""
        rows = np.arange(len(self.train))
        return rows if seed == 0 else np.random.default_rng([1, seed]).permutation(rows)

    def bank(self, order: int = 0) -> Bank:
        """How a model is retrained, on the examples in the order of this seed."""
        train = self.train.select(self.order(order)) if order else self.train
        return self._bank(self.start, train, self.queries, ("measurements", "losses"))

    def population(self, keep: tuple[str, ...] = ("logits", "margins")) -> Bank:
        """How models of several seeds are trained, whose outputs at all examples and queries are kept."""
        model = self.start if self.pretrained else self.build
        return self._bank(model, self.train, self.train.joined(self.queries), keep)

    def _bank(self, model: Any, train: Examples, points: Examples, keep: tuple[str, ...]) -> Bank:
        run = None if self.recorded is None else self.recorded.training
        version = None if run is None else run.fingerprint
        return Bank(
            model, self.task, train, points, self.recipe, keep=keep, device=self.device or "cpu", version=version
        )  # fmt: skip

    def model_of(self, seed: int = 0, epochs: int | None = None) -> nn.Module:
        """The model of this seed trained on everything, as it is after all epochs or after the first `epochs`."""
        bank = self.bank(seed if self.pretrained else 0)
        start = self.start if seed == 0 or self.pretrained else self.untrained(seed)
        if not isinstance(self.recipe, Recipe):
            if epochs is not None:
                raise UsageError("A training function of one's own has no epochs.", "Give a Recipe.")
            return self.recipe(copied(start), bank.train, seed).eval()
        everything, steps = np.ones((1, len(self.train)), bool), -(-len(self.train) // self.recipe.batch_size)
        found = train(
            Replicas.of([start]).to(bank.device), self.task, bank.train, everything, np.array([0]), self.recipe,
            most=None if epochs is None else epochs * steps,
        )  # fmt: skip
        return found.module(0).eval()

    def perturbed(self, count: int) -> list[nn.Module]:
        """Models trained on random halves of the data, which no evaluation uses."""
        masks = subset_masks(len(self.train), count, 0.5, seed=1 << 20)
        replicas = self.bank().train_replicas(masks, np.zeros(count, np.int64))
        return [replicas.module(e).eval() for e in range(count)]

    @cached_property
    def model(self) -> nn.Module:
        if self.recorded is not None:
            return self.recorded.model
        return self.model_of() if self.run is None else self.run.trained()

    @cached_property
    def run(self) -> Trajectory | None:
        """The recorded run of a fine-tuned model: methods then know how it was trained, as users' do."""
        if not self.pretrained or not isinstance(self.recipe, Recipe):
            return None
        return Trajectory.record(TrainedModel(self.start, self.train, self.task, device=self.device), self.recipe, 0)

    def trained(self, store: Store | None = None, quiet: bool = True) -> TrainedModel:
        """The trained model with its data and task."""
        return TrainedModel(
            self.model, self.train, self.task, sites=list(self.patterns), store=store, quiet=quiet, device=self.device,
            dtype=None if self.dtype is None else getattr(torch, self.dtype),
            training=self._training(),
        )  # fmt: skip

    def _training(self) -> TrainingRun | None:
        if self.recorded is not None:
            return self.recorded.training
        return None if self.run is None else self.run.recorded()


def rows_of_length(
    examples: Examples, length: int, train: int, queries: int
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " q"]]:
    """Rows of random passages of so many tokens, to train on and to query. Raises UsageError if there are too few."""
    rows = np.random.default_rng(0).permutation(np.flatnonzero(examples.lengths == length))
    if len(rows) < train + queries:
        raise UsageError(f"There are {len(rows)} passages of {length} tokens.", "Take fewer, or shorter ones.")
    return rows[:train], rows[train : train + queries]


def digits_problem(train: int = 400, queries: int = 40, flipped: float = 0.0) -> Problem:
    """A network 64-32-10 on handwritten digits."""
    corpus = digits()
    data, wrong = corpus.train.select(range(train)), None
    if flipped:
        data, wrong = flip_labels(data, flipped, 10)
    recipe = Recipe(epochs=20, batch_size=40, optimiser=SGD(0.1, momentum=0.9), batches="shared")
    return Problem(
        "digits",
        lambda seed: nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10)),
        Classification(),
        data,
        corpus.queries.select(range(queries)),
        recipe,
        flipped=wrong,
    )


def language_problem(train: int = 256, queries: int = 24, length: int = 32, vocabulary: int = 512) -> Problem:
    """A two-layer transformer that reads 256 passages of the Python language reference from nothing, at a large rate:
    the example of a run about which little can be known (the order of its examples decides more than which they are).
    Queries are passages held out. For training as it is done, see `finetuned_problem`."""
    corpus = language_reference(length=length, vocabulary=vocabulary).train
    chosen, asked = rows_of_length(corpus, length, train, queries)
    recipe = Recipe(epochs=12, batch_size=16, optimiser=AdamW(3e-3, weight_decay=0.01), batches="shared", clip=1.0)
    return Problem(
        "language",
        lambda seed: SmallTransformer(vocabulary, context=length),
        LanguageModelling(),
        corpus.select(chosen),
        corpus.select(asked),
        recipe,
        ("blocks.*",),
    )


def facts_problem(people: int = 40, asked: int = 20) -> Problem:
    """A two-layer transformer that has read generated biographies; known passages state the answer of each query."""
    corpus = biographies(people=people, asked=asked, values=6)
    words = corpus.vocabulary
    assert words is not None  # a corpus of text
    longest = int(max(corpus.train.lengths.max(), corpus.queries.lengths.max()))
    recipe = Recipe(epochs=30, batch_size=32, optimiser=AdamW(4e-3, weight_decay=0.01), batches="shared", clip=1.0)
    return Problem(
        "facts",
        lambda seed: SmallTransformer(len(words), width=48, context=longest),
        LanguageModelling(),
        corpus.train,
        corpus.queries,
        recipe,
        ("blocks.*",),
        truth=statements(corpus.queries, corpus.train),
    )


def methods_for(problem: Problem, names: list[str] | None = None) -> dict[str, Any]:
    """The methods that apply to a problem, ready to fit, given its training run if they need one.

    Raises UsageError for a name that is no method."""
    recipe = problem.recipe
    if not isinstance(recipe, Recipe):
        return _chosen(problem, _without_recipe(problem), names)
    whole, half = recipe.epochs, max(1, recipe.epochs // 2)
    steps = -(-len(problem.train) // recipe.batch_size)
    optimiser = recipe.optimiser
    speed = optimiser.lr / (1 - optimiser.momentum) if isinstance(optimiser, SGD) else None
    named: dict[str, Callable[[], Any]] = dict(methods.METHODS)
    named["tracin"] = lambda: methods.TracIn([problem.model_of(epochs=half), problem.model])
    named["trak"] = lambda: methods.TRAK([problem.model_of(seed) for seed in range(4)], width=128)
    named["grand"] = lambda: methods.GraNd([problem.model_of(seed, epochs=2) for seed in range(3)])
    named["el2n"] = lambda: methods.EL2N([problem.model_of(seed, epochs=2) for seed in range(3)])
    named["magic"] = lambda: methods.MAGIC(problem.start, recipe)
    named["adamw"] = lambda: methods.AdamWInfluence(problem.start, recipe)
    named["daunce"] = lambda: methods.Daunce(problem.perturbed(32))
    if problem.pretrained:  # its run is known, which sets the damping; the paper's beside it, as peers have it
        named |= {"tracin": methods.TracIn, "source": methods.SOURCE}
        for name in ("ekfac", "kfac", "shampoo", "diagonal", "datainf"):
            fixed: Any = methods.METHODS[name]
            named[name + FIXED] = partial(fixed, damping=Damping())
    elif speed is None or isinstance(problem.task, LanguageModelling):
        del named["source"]  # its segments are of gradient descent
    else:
        cuts = sorted({max(1, whole // 4), half, whole})
        named["source"] = lambda: methods.SOURCE([
            methods.Segment([problem.model_of(epochs=end)], speed, steps * (end - start))
            for start, end in zip([0, *cuts[:-1]], cuts)
        ])  # fmt: skip
    return _chosen(problem, named, names)


def _without_recipe(problem: Problem) -> dict[str, Callable[[], Any]]:
    """The methods that apply where a model is trained by a function: those that follow training need a recorded run."""
    named: dict[str, Callable[[], Any]] = dict(methods.METHODS)
    for name in ("trak", "grand", "el2n", "daunce"):
        del named[name]
    if problem.recorded is None:
        for name in ("tracin", "source", "magic", "adamw"):
            del named[name]
    return named


def _chosen(problem: Problem, named: dict[str, Callable[[], Any]], names: list[str] | None) -> dict[str, Any]:
    if "input_ids" not in problem.train.columns:
        del named["bm25"]
    unknown = [name for name in names or [] if name not in named]
    if unknown:
        cure = did_you_mean(unknown[0], named, "There are")
        raise UsageError(f"{unknown[0]!r} is no method for {problem.name}.", cure)
    return {name: build() for name, build in named.items() if names is None or name in names}
