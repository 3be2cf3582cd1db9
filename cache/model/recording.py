"""Recording a training run: what a plain loop, or a callback of transformers' Trainer, writes while a model trains. The
docstring of `cache.runs` shows both in use."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import UsageError
from .fingerprint import model_fingerprint
from .ids import as_ids
from .runs import FORMAT, MOMENTS, SETTINGS, Averaged, digest_of
from .stateless import named_parameters, unwrapped


class Recorder:
    """Writes a run into a folder. `record` and `trainer_callback` make one.

    Args:
        folder: where it is written; a run that is there already is an error.
        model: the model that is trained.
        optimiser: torch's optimiser that trains it.
        every: steps between checkpoints; the start and the end are kept in any case.
        averaged: what the loss of a step is a mean over, as for TrainingRun.
        clip: largest norm of a gradient, if the script clips gradients.
        by_row: whether examples are named by their row in the training data, and not by their ids.
    """

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        optimiser: Any,
        *,
        every: int,
        averaged: Averaged = "targets",
        clip: float | None = None,
        by_row: bool = False,
    ):
        if averaged not in get_args(Averaged) or every < 1:
            raise UsageError(
                f"A run with a checkpoint every {every} steps, of a loss averaged over {averaged!r}, is undefined.",
                f"Give every= at least 1, and averaged= one of {', '.join(get_args(Averaged))}.",
            )
        if (folder / "run.json").exists():
            raise UsageError(f"There is a run in {folder} already.", "Give an empty folder, or delete that one.")
        self.folder, self.model, self.every = folder, unwrapped(model), every
        self.optimiser = getattr(optimiser, "optimizer", optimiser)  # accelerate wraps it
        self.steps = 0
        self._saved: list[dict[str, Any]] = []
        by_id = {id(p): name for name, p in named_parameters(self.model).items()}
        groups: list[dict[str, Any]] = []
        for group in self.optimiser.param_groups:
            names = [by_id[id(p)] for p in group["params"] if id(p) in by_id]
            groups.append({"names": names, "settings": {n: group[n] for n in SETTINGS if n in group}})
        if not any(group["names"] for group in groups):
            raise UsageError(
                "The optimiser has no parameter of this model.", "Give the model and the optimiser that trains it."
            )
        given = {name for group in groups for name in group["names"]}
        self._trained = given | {name for name, p in named_parameters(self.model).items() if p.requires_grad}
        self._about: dict[str, Any] = {
            "format": FORMAT, "optimiser": type(self.optimiser).__name__, "groups": groups, "averaged": averaged,
            "clip": clip, "by_row": by_row, "frozen": self._frozen(),
        }  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        self._lines = (folder / "steps.jsonl").open("w")
        self._write(finished=False)
        self._checkpoint()

    def step(self, ids: Any = None) -> None:
        """Record a step of the optimiser, right after it was taken and before the schedule moves on.

        ids: of the examples that it saw: numbers or texts, as in the Examples; None if they are not known.
        """
        rates = [float(group["lr"]) for group in self.optimiser.param_groups]
        seen = None if ids is None else as_ids(ids).tolist()
        self._lines.write(json.dumps({"rates": rates, "ids": seen}) + "\n")
        self.steps += 1
        if self.steps % self.every == 0:
            self._checkpoint()

    def finish(self) -> None:
        """Write the last checkpoint and close the run. Raises UsageError if a frozen parameter has changed."""
        if self._frozen() != self._about["frozen"]:
            raise UsageError(
                "Parameters that were frozen when the run began have been changed.",
                "Give the optimiser all that is trained before the run is recorded.",
            )
        if not self._saved or self._saved[-1]["step"] != self.steps:
            self._checkpoint()
        self.close()
        self._write(finished=True)

    def close(self) -> None:
        self._lines.close()

    def _checkpoint(self) -> None:
        tensors: dict[str, Tensor] = {}
        own = dict(named_parameters(self.model))
        trained = {name: p for name, p in own.items() if name in self._trained}
        for name, tensor in [*trained.items(), *nn.Module.named_buffers(self.model)]:
            tensors[f"model/{name}"] = tensor.detach().to("cpu", copy=True).contiguous()
        for name, parameter in own.items():
            for kind in MOMENTS.get(self._about["optimiser"], ()):
                average = self.optimiser.state.get(parameter, {}).get(kind)
                if isinstance(average, Tensor):
                    tensors[f"{kind}/{name}"] = average.detach().to("cpu", copy=True).contiguous()
        path = self.folder / f"checkpoint-{self.steps:08d}.safetensors"
        save_file(tensors, path)
        self._saved.append({"step": self.steps, "file": path.name, "digest": digest_of(path)})

    def _frozen(self) -> str:
        """The fingerprint of the parameters that checkpoints leave out; "" if there is none."""
        frozen = {name: p for name, p in named_parameters(self.model).items() if name not in self._trained}
        return model_fingerprint(frozen).hex if frozen else ""

    def _write(self, finished: bool) -> None:
        told = self._about | {"steps": self.steps, "checkpoints": self._saved, "finished": finished}
        (self.folder / "run.json").write_text(json.dumps(told, indent=1))


@contextmanager
def record(
    folder: str | Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    every: int = 100,
    averaged: Averaged = "targets",
    clip: float | None = None,
) -> Iterator[Recorder]:
    """Record the run of a plain training loop: call `step(ids)` on what this yields after every `optimizer.step()`.

    Args:
        folder: where the run is written.
        model, optimizer: what is trained, and torch's optimiser that trains it.
        every: steps between checkpoints. Each has the weights and the optimiser's averages.
        averaged: what the loss of a step is a mean over: "targets" (the predicted tokens of the batch, as transformers
            computes it; for one label per example that is the mean over examples), "positions" (labels of -100
            too), "examples" (of losses summed over their tokens), or "nothing" (a sum).
        clip: largest norm of a gradient, if the loop clips gradients.

    A loop that ends in an exception leaves an unfinished run, which is refused when it is opened. Raises UsageError for
    a folder with a run in it, or for an optimiser of another model.
    """
    recorder = Recorder(Path(folder), model, optimizer, every=every, averaged=averaged, clip=clip)
    try:
        yield recorder
        recorder.finish()
    finally:
        recorder.close()


class Order:
    """A sampler that remembers the row numbers that it gave since the current pass began."""

    def __init__(self, sampler: Any):
        self.sampler = sampler
        self.given: list[int] = []

    def __iter__(self) -> Iterator[int]:
        self.given = []
        for row in self.sampler:
            self.given.append(int(row))
            yield row

    def __len__(self) -> int:
        return len(self.sampler)

    def set_epoch(self, epoch: int) -> None:
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)


def _innermost(loader: Any) -> Any:
    """The batch sampler of a loader, inside what accelerate puts around it for the share of a process."""
    batches: Any = getattr(loader, "batch_sampler", None)
    while hasattr(batches, "batch_sampler"):
        batches = batches.batch_sampler
    return batches


def trainer_callback(folder: str | Path, *, every: int | None = None) -> Any:
    """A callback that records a run of transformers' Trainer, or of a trainer of TRL, into a folder. Examples are named
    by their row in the training data set.

    Args:
        folder: where the run is written.
        every: steps between checkpoints; by default an eighth of the run.

    A data set without a length has no order that could be recorded: the run then lacks it. `train` raises UsageError
    for a folder with a run in it, and for training that resumes from a checkpoint, whose start was not seen.
    """
    from transformers import TrainerCallback

    class RunCallback(TrainerCallback):
        recorder: Recorder | None = None
        order: Order | None = None

        def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            if state.global_step:
                raise UsageError(
                    f"This training resumes at step {state.global_step}, whose start was not recorded.",
                    "Record a run from its first step.",
                )
            if not state.is_world_process_zero:
                return
            clip = args.max_grad_norm if args.max_grad_norm and args.max_grad_norm > 0 else None
            self.recorder = Recorder(
                Path(folder), more["model"], more["optimizer"], every=every or max(1, state.max_steps // 8),
                clip=clip, by_row=True,
            )  # fmt: skip
            batches = self.batches = _innermost(more["train_dataloader"])
            if getattr(batches, "sampler", None) is not None and getattr(batches, "batch_size", None):
                self.order = batches.sampler = Order(batches.sampler)
                self.size = int(batches.batch_size) * args.world_size
            self.rows: list[int] = []

        def on_epoch_begin(self, *args: Any, **more: Any) -> None:
            self.taken = 0

        def on_substep_end(self, *args: Any, **more: Any) -> None:
            if self.order is not None:
                self.rows += self.order.given[self.taken : self.taken + self.size]
                self.taken += self.size

        def on_optimizer_step(self, *args: Any, **more: Any) -> None:
            self.on_substep_end()
            if self.recorder is not None:
                self.recorder.step(None if self.order is None else np.array(self.rows, np.int64))
            self.rows = []

        def on_train_end(self, *args: Any, **more: Any) -> None:
            if self.order is not None:
                self.batches.sampler = self.order.sampler
            if self.recorder is not None:
                self.recorder.finish()

    return RunCallback()
