"""What a builder is: a frozen dataclass of settings that makes a dictionary, or another codec, of activations.

A new builder is one file here with a subclass, and one line in the registry `BUILDERS`. It names itself, declares its
settings as fields, and implements `construct`.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import numpy as np

from whence.cache import Store
from whence.cache.errors import UsageError

from .. import files
from ..activations import ActivationBatch, Activations, Origin, as_stream
from ..codec import Codec
from ..dictionary import Dictionary
from ..transcoder import transcoder_of
from .growth import Grown, Rows

Built = TypeVar("Built", bound=Codec)


class Source(NamedTuple):
    """What a builder reads, and how it reports.

    stream: activations; origin: of them; checkpoint: the file that a long build resumes from, written every `every`
    batches; quiet: show no progress; selection: how the rows were chosen.
    """

    stream: Iterable[ActivationBatch]
    origin: Origin
    checkpoint: Path | None = None
    every: int = 200
    quiet: bool = True
    selection: Mapping[str, Any] | None = None

    def rows(self) -> dict[str, Any]:
        """What fixes the rows that are read, beyond their origin: for keys, and for a build to resume."""
        given = dict(self.selection or {})
        return given | selected(self.stream, self.selection is None) if isinstance(self.stream, Activations) else given

    def settings(self, builder: "Builder[Any]") -> dict[str, Any]:
        """What a build can be resumed under: the builder's settings, and what it reads."""
        chosen = self.rows()
        return {**asdict(builder), "origin": asdict(self.origin), **({"selection": chosen} if chosen else {})}

    def whole(self, name: str) -> Activations:
        """The activations, for a builder that reads them more than once. Raises UsageError for a stream."""
        if not isinstance(self.stream, Activations):
            raise UsageError(f"{name} reads the activations more than once.", "Give Activations, not a stream.")
        return self.stream


@dataclass(frozen=True)
class Builder(ABC, Generic[Built]):
    """A way to build a codec: settings are fields, and every field enters the key of what is built.

    name: in the registry and on the command line. resumes: whether an interrupted build resumes from a checkpoint file.
    """

    name: ClassVar[str]
    resumes: ClassVar[bool] = False

    def build(
        self,
        activations: "Activations | Iterable[ActivationBatch] | Any",
        *,
        store: Store | None = None,
        selection: Mapping[str, Any] | None = None,
        checkpoint: str | Path | None = None,
        every: int = 200,
        quiet: bool = True,
    ) -> Built:
        """Build, or read what was built before from the store.

        Args:
            activations: `Activations`, an entry of the store, an array [t d], or batches of a model that is running. Of
                pairs (`Activations.paired`) it builds a `Transcoder`.
            store: where the result is kept; None keeps nothing.
            selection: how the rows were chosen among those that were observed, for the key; by default a hash of their
                numbers. Of a stream it must also name its "model" and "data"; if the origin of Activations is unknown,
                a hash of them is in the key.
            checkpoint: a file that is written every `every` batches; if it is there, the build resumes from it, and
                the result is the same.
            quiet: show no progress.

        Raises DataError for activations that are too few, UsageError for a request that cannot be met, CorruptEntry
        for a damaged checkpoint.
        """
        if checkpoint is not None and not self.resumes:
            raise UsageError(f"{type(self).__name__} does not resume.", "Leave out the checkpoint.")
        stream, origin = as_stream(activations)
        source = Source(stream, origin, None if checkpoint is None else Path(checkpoint), every, quiet, selection)
        inputs = {} if store is None else self.inputs(source)
        if store is not None and store.has(files.KIND, inputs):
            return files.from_entry(store.open(files.KIND, inputs))
        if isinstance(stream, Activations) and stream.target is not None:
            built: Any = transcoder_of(self.construct(source._replace(stream=stream.inputs)), stream)
        else:
            built = self.construct(source)
        if store is not None:
            files.put(built, store, inputs)
        return built

    @abstractmethod
    def construct(self, source: Source) -> Built:
        """The algorithm."""

    def inputs(self, source: Source) -> dict[str, Any]:
        """What the result is computed from, as in its key. Raises UsageError for a stream that `selection` does not
        name."""
        if not {"model", "data"} <= set(source.selection or ()):
            source.whole("The store")
        builder = {"class": type(self).__name__, **asdict(self)}
        return {"builder": builder, "origin": asdict(source.origin), **source.rows()}


def selected(activations: Activations, chosen: bool) -> dict[str, str]:
    """What fixes these activations beyond their origin: their type unless float32, and which rows there are if
    `chosen`; all their contents if the origin is unknown."""
    dtype = str(getattr(activations.x, "dtype", "float32")).removeprefix("torch.")
    found = {} if dtype == "float32" else {"dtype": dtype}
    found |= {"to": activations.to} if activations.target is not None else {}
    if not (activations.origin.model and activations.origin.data):
        digest = hashlib.sha256()
        for start in range(0, len(activations), 4096):
            part = slice(start, start + 4096)
            also = () if activations.target is None else (activations.targets(part),)
            for column in (*activations.take(part), *also):
                digest.update(np.ascontiguousarray(column).tobytes())
        return found | {"content": digest.hexdigest()}
    if not chosen or activations.rows is None:
        return found
    return found | {"rows": hashlib.sha256(np.asarray(activations.rows, np.int64).tobytes()).hexdigest()}


def labelled(builder: Any, grown: Grown, rows: Rows, origin: Origin, centre: np.ndarray | None = None) -> Dictionary:
    """The dictionary of these atoms, with the builder's settings and what it read."""
    settings = {
        "builder": type(builder).__name__,
        **asdict(builder),
        "rows_read": rows.taken,
        "rows_not_finite": rows.not_finite,
        "rows_zero": rows.zero,
        "seeds_placed": int(grown.provenance.seed.sum()),
        "curve": thinned(grown.curve),
    }
    return Dictionary(
        atoms=grown.atoms,
        provenance=grown.provenance,
        k=min(builder.k, grown.filled),
        origin=origin,
        centre=centre,
        pursuit=builder.pursuit,
        settings=settings,
    )


def thinned(curve: tuple[tuple[int, int], ...]) -> list[list[int]]:
    """At most about 200 of a curve's points, the last among them."""
    stride = max(1, len(curve) // 200)
    return [list(point) for point in (*curve[::stride], *curve[-1:])]
