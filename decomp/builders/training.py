"""The loop that trained codecs share: batches of random rows, a scan of optimiser steps, marks, a checkpoint.

A trained codec says what differs: where it starts, what its loss's gradient is, and what comes of the weights.
"""

import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from whence.cache.errors import DataError, UsageError
from whence.cache.jobs.progress import progress
from whence.cache.retrain.scan import Run, descend

from ..activations import Activations
from ..codec import Codec
from . import checkpoint as checkpoints
from .builder import Builder, Source

Trained = TypeVar("Trained", bound=Codec)
SCAN = 8  # steps in one compiled call


@dataclass(frozen=True)
class Mark(Generic[Trained]):
    """The autoencoder after some training: tokens seen and seconds spent (compilation not counted), and the mark that
    was passed, `unit` ("tokens" or "seconds") and `goal`."""

    tokens: int
    seconds: float
    autoencoder: Trained
    unit: str
    goal: float


@dataclass(frozen=True, eq=False)
class Plan(Generic[Trained]):
    """What a trained codec differs in.

    start: weights, the optimiser's state and what is carried; gradient_of, project: as for `descend`; finished: the
    codec of a run after so many steps; centre, scale: rows are trained on as (x - centre) / scale.
    """

    start: Run
    optimiser: optax.GradientTransformation
    gradient_of: Callable[[Any, Any, Any], tuple[Any, Any]]
    project: Callable[[Any], Any]
    finished: Callable[[Run, int], Trained]
    centre: np.ndarray | float = 0.0
    scale: float = 1.0


class TrainedBuilder(Builder[Trained]):
    """A builder whose codec is trained by gradient descent. Subclasses declare the fields and implement `plan`."""

    batch: int
    seed: int
    tokens: int | None

    @abstractmethod
    def plan(self, acts: Activations, usable: Activations, quiet: bool) -> Plan[Trained]:
        """What is trained, for these activations, of which `usable` can be decomposed."""

    def construct(self, source: Source) -> Trained:
        acts = source.whole(type(self).__name__)
        return list(self._marks(acts, [(float(self.tokens or len(acts)), "tokens")], source))[-1].autoencoder

    def train(
        self, source: Any, at_tokens: Sequence[int] = (), at_seconds: Sequence[float] = ()
    ) -> Iterator[Mark[Trained]]:
        """Yields the autoencoder for every mark as it is passed, and ends with the last one.

        Raises UsageError without a mark, DataError for activations that are too few for a batch.
        """
        if not at_tokens and not at_seconds:
            raise UsageError("No mark to train to.", "Give at_tokens or at_seconds.")
        acts = Activations.of(source).inputs
        marks = [(float(n), "tokens") for n in at_tokens] + [(float(s), "seconds") for s in at_seconds]
        yield from self._marks(acts, marks, Source(acts, acts.origin))

    def _marks(self, acts: Activations, marks: list[tuple[float, str]], source: Source) -> Iterator[Mark[Trained]]:
        batch, usable = self.batch, acts.usable()[0]
        if len(usable) < batch:
            raise DataError(f"{len(usable)} activations for batches of {batch}.", "Use a smaller batch.")
        plan = self.plan(acts, usable, source.quiet)
        shape = (SCAN, batch, acts.width)
        run = jax.jit(lambda state, xs: descend(plan.optimiser, plan.gradient_of, state, xs, plan.project))
        advance = run.lower(plan.start, jnp.zeros(shape)).compile()  # before the clock runs
        path = source.checkpoint
        about = {} if path is None else source.settings(self)
        generator = np.random.default_rng(self.seed)
        state, tokens, spent = plan.start, 0, 0.0
        if path is not None and path.exists():
            state, tokens, spent = _resumed(path, about, state, generator)
        most = max((goal for goal, unit in marks if unit == "tokens"), default=None)
        total = None if most is None else -(-int(most) // (SCAN * batch))
        bar = progress(count(), desc="training", unit="step", total=total, quiet=source.quiet)
        for n in bar:
            began = time.perf_counter()
            rows = generator.integers(0, len(usable), (SCAN, batch))
            x = usable.take(rows.reshape(-1)).x.reshape(shape)
            state = jax.block_until_ready(advance(state, jnp.asarray((x - plan.centre) / plan.scale)))
            tokens, spent = tokens + rows.size, spent + time.perf_counter() - began
            passed = [m for m in marks if (tokens if m[1] == "tokens" else spent) >= m[0]]
            marks = [m for m in marks if m not in passed]
            for goal, unit in passed:
                yield Mark(tokens, spent, plan.finished(state, tokens // batch), unit, goal)
            if not marks:
                break
            if path is not None and n % source.every == source.every - 1:
                _keep(path, about, state, tokens, spent, generator)
        if path is not None:
            path.unlink(missing_ok=True)


def _keep(
    path: Path, about: Mapping[str, Any], state: Run, tokens: int, spent: float, generator: np.random.Generator
) -> None:
    arrays = {str(n): np.asarray(leaf) for n, leaf in enumerate(jax.tree.leaves(state))}
    progressed = {"tokens": tokens, "spent": spent, "random": generator.bit_generator.state}
    checkpoints.write(path, arrays, about, progressed)


def _resumed(
    path: Path, about: Mapping[str, Any], start: Run, generator: np.random.Generator
) -> tuple[Run, int, float]:
    """The run where it was interrupted; the generator goes on from there too."""
    arrays, progressed = checkpoints.read(path, about)
    leaves = [jnp.asarray(arrays[str(n)]) for n in range(len(arrays))]
    generator.bit_generator.state = progressed["random"]
    return jax.tree.unflatten(jax.tree.structure(start), leaves), progressed["tokens"], progressed["spent"]
