"""Dictionaries of several hook points in one pass of the model, without keeping the activations.

A store keeps what `observe` gives and reads it as needed, so it needs disk; here a batch is gone once every builder has
read it. The model runs in the calling thread, a builder in a thread of its own.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from queue import Full, Queue
from typing import Any

import numpy as np

from whence.cache import Examples, TrainedModel
from whence.cache.model.activations import row_blocks
from whence.cache.model.row_layout import layouts

from .activations import ActivationBatch, Origin
from .builders import Builder
from .codec import Codec

WAITING = 2  # batches that a builder may be behind


def stream(
    trained: TrainedModel, at: Sequence[str], examples: Examples | None = None
) -> Iterator[dict[str, ActivationBatch]]:
    """The activations of hook points, a batch of examples at a time, in the order of `observe`.

    Args:
        trained: the model.
        at: hook points, all read in one pass.
        examples: what it reads; by default its training data.

    Raises the errors of `observe`.

    >>> sum(len(batches["1"].x) for batches in stream(TrainedModel(model, train, task, quiet=True), ["1"]))
    12
    """
    examples, names = trained.train if examples is None else examples, list(at)
    for block in row_blocks(trained, examples, layouts(trained, examples, names), np.arange(len(examples))):
        place = (block["example"], block["position"], block["token"])
        yield {name: ActivationBatch(block[name], *place) for name in names}


def build_each(
    builders: Mapping[str, Builder[Any]],
    trained: TrainedModel,
    examples: Examples | None = None,
    *,
    skip_positions: Sequence[int] = (),
    skip_tokens: Sequence[int] = (),
) -> dict[str, Codec]:
    """A dictionary of every hook point in one pass of the model; memory does not grow with the data.

    The pass ends early once every builder has its size.

    Args:
        builders: by hook point; such as read their activations once (ITDA, Random, Partition, KMeans).
        trained, examples: as for `stream`.
        skip_positions, skip_tokens: left out, as by `Activations.without`.

    Raises UsageError for a builder that reads activations more than once, and the errors of `observe` and `build`.
    """
    examples = trained.train if examples is None else examples
    queues: dict[str, Queue[ActivationBatch | None]] = {name: Queue(WAITING) for name in builders}
    with ThreadPoolExecutor(len(builders)) as pool:
        running = {n: pool.submit(b.build, iter(queues[n].get, None)) for n, b in builders.items()}
        try:
            for batches in stream(trained, list(builders), examples):
                for name, batch in batches.items():
                    drop = np.isin(batch.position, list(skip_positions)) | np.isin(batch.token, list(skip_tokens))
                    _give(queues[name], ActivationBatch(*(column[~drop] for column in batch)), running[name])
                if all(build.done() for build in running.values()):
                    break
        finally:
            for name, queue in queues.items():
                _give(queue, None, running[name])
    model, data = trained.fingerprint(), examples.fingerprint
    return {name: replace(build.result(), origin=Origin(name, model, data)) for name, build in running.items()}


def _give(queue: "Queue[ActivationBatch | None]", batch: ActivationBatch | None, reader: "Future[Any]") -> None:
    """Waits until there is space, unless the reader has ended."""
    while not reader.done():
        try:
            return queue.put(batch, timeout=0.05)
        except Full:
            continue
