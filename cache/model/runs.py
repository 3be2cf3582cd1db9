"""A training run as it is recorded: the steps taken, which examples each of them saw, and checkpoints with the
optimiser's state.

The folder has `run.json` (settings), `steps.jsonl` (a line per step) and `checkpoint-00000000.safetensors` and so on.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Float, Int64
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..errors import DataError, ModelError, UsageError
from .checkpoints import own_names
from .fingerprint import model_fingerprint
from .names import own_parameters, parts_of
from .stateless import named_parameters

FORMAT = "whence-run/1"
ADAMS, SGDS = ("Adam", "AdamW"), ("SGD",)
MOMENTS: Mapping[
    str, tuple[str, ...]
] = {  # names in torch.optim of the averages, as cache.retrain's optimisers order them
    "Adam": ("exp_avg", "exp_avg_sq"),
    "AdamW": ("exp_avg", "exp_avg_sq"),
    "SGD": ("momentum_buffer",),
}
SETTINGS = ("momentum", "dampening", "nesterov", "betas", "eps", "weight_decay", "amsgrad", "maximize")
Averaged: TypeAlias = Literal["targets", "positions", "examples", "nothing"]


@dataclass(frozen=True)
class Group:
    """Parameters that the optimiser treats alike: their names, and its settings as plain values."""

    names: tuple[str, ...]
    settings: Mapping[str, Any]


class Checkpointed(ABC):
    """The model and the optimiser's state after `step` steps; `digest` stands for them in keys."""

    step: int
    digest: str

    @abstractmethod
    def read(self, kind: str = "model") -> dict[str, Tensor]:
        """Tensors by parameter name: "model" (weights and buffers), or one of the optimiser's averages by its name in
        torch.optim."""


@dataclass(frozen=True)
class Saved(Checkpointed):
    """A checkpoint in a file. digest: the first digits of the file's sha256."""

    step: int
    path: Path
    digest: str

    def read(self, kind: str = "model") -> dict[str, Tensor]:
        """As for Checkpointed. Raises DataError for a file that is damaged."""
        try:
            with safe_open(self.path, "pt") as file:
                names = [name for name in file.keys() if name.startswith(f"{kind}/")]  # noqa: SIM118 (not a dict)
                return {name.removeprefix(f"{kind}/"): file.get_tensor(name) for name in names}
        except (OSError, SafetensorError) as error:
            raise damaged(self.path, str(error)) from error

    def whole(self) -> bool:
        """Whether the file is the one that was written."""
        return self.path.is_file() and digest_of(self.path) == self.digest


@dataclass(frozen=True, eq=False)
class Changed(Checkpointed):
    """A checkpoint as a model takes it."""

    saved: Checkpointed

    @property
    def step(self) -> int:  # type: ignore[override]
        return self.saved.step

    @property
    def digest(self) -> str:  # type: ignore[override]
        return self.saved.digest


@dataclass(frozen=True, eq=False)
class InBridge(Changed):
    """A checkpoint by the names that its tensors have in a bridge around the model that was trained."""

    model: nn.Module

    def read(self, kind: str = "model") -> dict[str, Tensor]:
        found = own_names(self.model, self.saved.read(kind))
        known = [*named_parameters(self.model), *dict(self.model.named_buffers())]
        return {name: found[name] for name in known if name in found}


@dataclass(frozen=True, eq=False)
class OnBase(Changed):
    """A checkpoint of what was trained, such as adapters, completed by the frozen parameters of a model."""

    frozen: Mapping[str, Tensor]

    def read(self, kind: str = "model") -> dict[str, Tensor]:
        return {**(self.frozen if kind == "model" else {}), **self.saved.read(kind)}


@dataclass(frozen=True, eq=False)
class TrainingRun:
    """A recorded run.

    Args:
        folder: where it is recorded; None for one in memory.
        optimiser: name of its class in torch.optim.
        groups: of parameters.
        rates: [t g], the learning rate of every step and group.
        ids: of the examples that each step saw; None if the order could not be recorded.
        checkpoints: in order; the first is the start if the run was recorded from there.
        averaged: what the loss of a step is a mean over: its examples' predicted tokens ("targets", as transformers'
            models compute it; one per example without tokens), all their positions ("positions", as the bank
            computes it), the examples, each one's loss summed over tokens ("examples"), or "nothing" (a sum).
        clip: largest norm of a gradient, or None.
        by_row: whether `ids` are rows of the training data (`of_data` turns them into ids).
        frozen: fingerprint of the parameters that were not trained, which checkpoints lack; "" if they have all.
    """

    folder: Path | None
    optimiser: str
    groups: tuple[Group, ...]
    rates: Float[np.ndarray, "t g"]
    ids: tuple[Int64[np.ndarray, " _b"], ...] | None
    checkpoints: tuple[Checkpointed, ...]
    averaged: Averaged = "targets"
    clip: float | None = None
    by_row: bool = False
    frozen: str = ""

    def __len__(self) -> int:
        return len(self.rates)

    def __repr__(self) -> str:
        order = "order of examples recorded" if self.ids is not None else "order of examples unknown"
        return f"TrainingRun({len(self)} steps of {self.optimiser}, {len(self.checkpoints)} checkpoints, {order})"

    @cached_property
    def fingerprint(self) -> str:
        """The hash of all that was recorded, which stands for the run in keys."""
        told = [self.optimiser, [[list(g.names), dict(g.settings)] for g in self.groups], self.averaged, self.clip]
        parts = [json.dumps(told, sort_keys=True), np.ascontiguousarray(self.rates).tobytes().hex()]
        parts += [] if self.ids is None else [np.asarray(each, "<i8").tobytes().hex() for each in self.ids]
        parts += [f"{saved.step} {saved.digest}" for saved in self.checkpoints]
        parts += [self.frozen] if self.frozen else []
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def of_data(self, model: nn.Module, ids: Int64[np.ndarray, " n"]) -> "TrainingRun":
        """The run of this architecture, or of the model that a bridge is around, on the examples with these ids. Raises
        ModelError if a trained parameter is not the model's, or a frozen one is another than in the run; DataError if
        a step saw an example that is not among them."""
        own = named_parameters(model)
        if any(name not in own for group in self.groups for name in group.names):
            return self._in_bridge(model)._of(model, ids)
        return self._of(model, ids)

    def _in_bridge(self, model: nn.Module) -> "TrainingRun":
        """By the names of a bridge, which may show a part of a parameter as another one."""
        own, parts, groups = named_parameters(model), parts_of(model), []
        here = {other: full for full, other in own_parameters(model).items() if full in own}
        for group in self.groups:
            names = [here.get(name, name) for name in group.names]
            names += [part for part, whole in parts.items() if whole in names]
            groups.append(replace(group, names=tuple(names)))
        saved = tuple(InBridge(checkpoint, model) for checkpoint in self.checkpoints)
        return replace(self, groups=tuple(groups), checkpoints=saved)

    def _of(self, model: nn.Module, ids: Int64[np.ndarray, " n"]) -> "TrainingRun":
        own = named_parameters(model)
        strange = [name for group in self.groups for name in group.names if name not in own]
        if strange:
            raise ModelError(
                f"The run in {self.folder} trained {strange[0]}, which this model has not.",
                "Give a model of the architecture that was trained, under the same parameter names.",
            )
        return self._completed(own)._of_ids(ids)

    def _completed(self, own: Mapping[str, Tensor]) -> "TrainingRun":
        """With checkpoints of whole models, by these parameters where they were frozen."""
        if not self.frozen:
            return self
        trained = self.checkpoints[0].read()
        rest = {name: p.detach() for name, p in own.items() if name not in trained}
        if model_fingerprint(rest).hex != self.frozen:
            raise ModelError(
                f"The run in {self.folder} trained {len(trained)} tensors of a model; the frozen ones of this model "
                "are not those that it trained on.",
                "Give the model that was trained: adapters on their base, with the base's own weights.",
            )
        return replace(self, checkpoints=tuple(OnBase(saved, rest) for saved in self.checkpoints))

    def _of_ids(self, ids: Int64[np.ndarray, " n"]) -> "TrainingRun":
        if self.ids is None or not len(self.ids):
            return replace(self, by_row=False)
        known = np.arange(len(ids)) if self.by_row else ids
        unknown = np.setdiff1d(np.concatenate(self.ids), known)
        if len(unknown):
            raise DataError(
                f"The run saw {len(unknown)} examples that are not among these {len(ids)}: "
                f"{'row' if self.by_row else 'id'} {unknown[0]}, for instance.",
                "Give the data that the model was trained on, in the order that the script had it.",
            )
        return replace(self, ids=tuple(ids[each] for each in self.ids) if self.by_row else self.ids, by_row=False)


def open_run(folder: str | Path) -> TrainingRun:
    """The run in a folder. Raises UsageError for a folder without one, DataError for one that is damaged, unfinished
    (its script was stopped) or of a newer format."""
    folder = Path(folder)
    told = folder / "run.json"
    if not told.is_file():
        raise UsageError(
            f"There is no recorded run in {folder}: it has no run.json.",
            "Record one with cache.runs.record(...) or cache.runs.trainer_callback(...), and give its folder.",
        )
    try:
        about = json.loads(told.read_text())
        if not isinstance(about, dict) or not str(about.get("format", "")).startswith("whence-run/"):
            raise UsageError(f"{told} is of another program.", "Give a folder that cache.runs has recorded.")
        if about["format"] != FORMAT:
            raise DataError(f"{told} has the format {about['format']}; this version reads {FORMAT}.", "Update Whence.")
        if not about["finished"]:
            raise DataError(
                f"The run in {folder} was not finished: its script stopped before the end.",
                "Record it again, to the end of the `with` block or of the training.",
            )
        lines = (folder / "steps.jsonl").read_text().splitlines()
        steps = [json.loads(line) for line in lines]
        if len(steps) != about["steps"]:
            raise damaged(folder / "steps.jsonl", f"{len(steps)} steps where {about['steps']} were recorded")
        groups = tuple(Group(tuple(g["names"]), g["settings"]) for g in about["groups"])
        rates = np.array([step["rates"] for step in steps], np.float64).reshape(len(steps), len(groups))
        known = all(step["ids"] is not None for step in steps)
        ids = tuple(np.array(step["ids"], np.int64) for step in steps) if known else None
        saved = tuple(Saved(c["step"], folder / c["file"], c["digest"]) for c in about["checkpoints"])
        run = TrainingRun(
            folder, about["optimiser"], groups, rates, ids, saved, about["averaged"], about["clip"],
            about["by_row"], about.get("frozen", ""),
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(folder, f"{type(error).__name__}: {error}") from error
    broken = next((c for c in saved if not c.whole()), None)
    if broken is not None:
        raise damaged(broken.path, "its contents have changed since it was written, or it is missing")
    if not run.checkpoints:
        raise damaged(folder, "it has no checkpoint")
    return run


def damaged(path: Path, why: str) -> DataError:
    return DataError(f"{path} is damaged: {why}.", "Record the run again, or restore the folder from a copy.")


def digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]
