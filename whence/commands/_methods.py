"""Attribution methods on the command line: any method of the registry, its settings given as name=value."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whence.cache.errors import DataError, UsageError

from ._settings import registered, with_settings

if TYPE_CHECKING:
    from whence.attrib import Damping, Method


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """Which attribution method, and its settings."""

    method: str = "ekfac"
    """Name of the method; `whence attrib methods` lists all of them with their settings."""
    damping: float | None = None
    """Damping, as a multiple of each site's mean eigenvalue, for methods that have one. By default that of the training
    if its run is given (--recorded), else 0.1."""
    seed: int = 0
    """Seed of what the method samples."""
    set: tuple[str, ...] = ()
    """Other settings of the method, as name=value (rank=32 labels=true)."""
    checkpoints: tuple[Path, ...] = ()
    """Weights along training, for tracin, trak, source, grand and el2n: .safetensors files, or folders such as
    transformers' Trainer writes (checkpoint-500); magic takes its start."""
    rates: tuple[float, ...] = ()
    """Learning rate at each checkpoint, for tracin and source."""
    steps: tuple[int, ...] = ()
    """Optimiser steps up to each checkpoint, for source."""

    def precheck(self) -> None:
        self.chosen()

    def chosen(self) -> type["Method"]:
        """The class of the method. Raises UsageError for an unknown method or setting."""
        from whence.attrib.methods import METHODS

        return registered(METHODS, self.method, self.set)

    def build(self) -> "Method":
        """The method. Raises UsageError for an unknown method or setting, or for checkpoints that do not match."""
        kind = self.chosen()
        own = {field.name: field for field in dataclasses.fields(kind)}
        return with_settings(kind, self.set, self._shared(own) | self._trajectory(own))

    def chosen_damping(self) -> "Damping | None":
        """The damping that was given, or whose settings were; None for that of the training."""
        from whence.attrib import Damping

        nested = any(text.partition("=")[0].strip().startswith(("damping.", "ekfac.damping.")) for text in self.set)
        return Damping() if self.damping is None and nested else None if self.damping is None else Damping(self.damping)

    def _shared(self, own: Any) -> dict[str, Any]:
        from whence.attrib import EKFAC

        if self.method == "identity":
            return {}
        found: dict[str, Any] = {}
        damping = self.chosen_damping()
        if "damping" in own and damping is not None and not isinstance(own["damping"].default, float):
            found["damping"] = damping
        if "ekfac" in own:
            found["ekfac"] = EKFAC(damping=damping, seed=self.seed)
        return found | ({"seed": self.seed} if "seed" in own else {})

    def _trajectory(self, own: Any) -> dict[str, Any]:
        weights = [_weights(path) for path in self.checkpoints]
        if "segments" in own and weights:
            from whence.attrib.methods import Segment

            if not len(weights) == len(self.rates) == len(self.steps):
                raise UsageError(
                    f"{len(weights)} checkpoints, {len(self.rates)} rates, {len(self.steps)} steps.",
                    "Give --rates and --steps one value per checkpoint.",
                )
            taken = [stop - start for start, stop in zip((0, *self.steps[:-1]), self.steps)]
            return {"segments": tuple(Segment([w], r, s) for w, r, s in zip(weights, self.rates, taken))}
        if "start" in own and weights:
            if len(weights) != 1:
                raise UsageError(f"{self.method} starts at one checkpoint.", "Give --checkpoints START.safetensors.")
            return {"start": weights[0]}
        if not weights:
            return {}
        if "checkpoints" not in own:
            raise UsageError(f"{self.method} uses no checkpoints.", "Leave --checkpoints out.")
        return {"checkpoints": weights} | ({"rates": self.rates} if "rates" in own and self.rates else {})


def _weights(path: Path) -> dict[str, Any]:
    """The tensors of a .safetensors file, or of all such files in a folder. Raises DataError if there is none."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files or not all(file.is_file() for file in files):
        raise DataError(f"There are no weights at {path}.", "Give .safetensors files, or folders with them.")
    try:
        return {name: tensor for file in files for name, tensor in load_file(file).items()}
    except SafetensorError as error:
        raise DataError(f"{path} cannot be read: {error}.", "Give .safetensors files, or folders with them.") from error
