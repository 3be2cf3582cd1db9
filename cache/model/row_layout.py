"""How the output of a hook point becomes rows, found by running a few examples alone, together and cut shorter.

Which axis is the example and which the position is not guessed from one shape: an axis is the position if its size is
the padded width in batches of different widths. The rows of an example alone must equal its rows in a batch.
"""

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor, nn

from ..errors import DataError, ModelError
from .batches import BATCH_POSITIONS
from .borrowing import borrowed
from .bridge import to_numpy
from .capture import batch_row, cut_short
from .examples import Examples
from .names import full_name
from .outputs import outputs_at, tensor_of
from .task import Classification, LanguageModelling, Regression, Task
from .tolerances import tolerance_of
from .trained import TrainedModel

CHECKED = 4  # examples that are run alone and together
CHANNELS_FIRST = (  # where an output has three axes
    nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d, nn.InstanceNorm1d, nn.GroupNorm,
    nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveMaxPool1d, nn.AdaptiveAvgPool1d,
)  # fmt: skip


class Layout(NamedTuple):
    """What the axes of an output are.

    kind: "position" [b s ...], a row a real position; "joined" [b*s ...], the same with the first two axes in one;
        "several" [b m d], m rows an example; "one" [b ...], a row an example. Further axes are flattened.
    each: rows an example; None for a row a position.
    """

    kind: Literal["position", "joined", "several", "one"]
    each: int | None

    def rows(self, value: Tensor, real: Bool[Tensor, "b s"] | None) -> Tensor:
        """[rows width] of a batch, examples in order, positions in order, padding left out."""
        if self.kind == "position":
            value = value[real]
        elif self.kind == "joined":
            assert real is not None
            value = value[real.flatten()]
        elif self.kind == "several":
            value = value.flatten(0, 1)
        return value.reshape(len(value), -1)


def channels_last(module: nn.Module, x: Tensor) -> Tensor:
    """What a layer over one dimension returns, [b c l], as [b l c]; other outputs as they are. Its own inverse."""
    return x.transpose(1, 2) if x.ndim == 3 and isinstance(module, CHANNELS_FIRST) else x


def real_positions(batch: dict[str, Tensor]) -> Bool[Tensor, "b s"] | None:
    """Which positions of a batch are no padding; None where its examples are no sequences."""
    mask = batch.get("attention_mask")
    if mask is not None and mask.ndim == 2:
        return mask.bool()
    tokens = batch.get("input_ids")
    return None if tokens is None else torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)


def forward(trained: TrainedModel, batch: dict[str, Tensor]) -> Any:
    """The model on a batch as its task runs it; data without the task's own column are run by the column they have."""
    task: Task = trained.task
    if "x" not in batch and "input_ids" in batch and isinstance(task, (Classification, Regression)):
        task = LanguageModelling()
    elif "input_ids" not in batch and "x" in batch and isinstance(task, LanguageModelling):
        task = Classification()
    return task.logits(trained.model, batch)


def outputs(trained: TrainedModel, names: Sequence[str], batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Outputs of the hook points on a batch, the forward pass cut short after the deepest; of layers that are channels
    first, the channels last.

    Raises DataError with the id of the first example that the model cannot run.
    """
    try:
        seen = outputs_at(trained.model, names, partial(forward, trained, batch))
        model = trained.model
        return {n: channels_last(model.get_submodule(full_name(model, n)), x) for n, x in seen.items()}
    except (IndexError, RuntimeError, ValueError) as error:
        if "example_id" in batch and len(batch["example_id"]) > 1:
            for row in range(len(batch["example_id"])):  # one of them raises with its id
                outputs(trained, names, _alone(batch, row))
            raise
        size = "" if _size(batch)[1] is None else f" of {_size(batch)[1]} positions"
        raise DataError(
            f"The model cannot run example {_id(batch)}{size}: {type(error).__name__}: {str(error).splitlines()[0]}",
            "Look at this example: a token beyond the vocabulary, more positions than the model has, or a column of "
            "another type or shape. Leave it out (Examples.without) or cut it.",
        ) from error


def _alone(batch: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    """One example of a batch, without its padding."""
    real = real_positions(batch)
    one = batch_row(batch, row)
    if real is None:
        return one
    return {n: t[:, real[row]] if t.ndim > 1 and t.shape[1] == real.shape[1] else t for n, t in one.items()}


def _id(batch: dict[str, Tensor]) -> Any:
    return batch["example_id"][0].item() if "example_id" in batch else 0


def layouts(trained: TrainedModel, examples: Examples, names: Sequence[str]) -> dict[str, Layout]:
    """The layout of each hook point, checked: an example alone gives the rows that it gives in a batch.

    Raises ModelError with the shape for an output that has no row per position or example, for a module that is called
    several times with different outputs, for rows that depend on the other examples of the batch, and for hook points
    that give different numbers of rows.
    """
    order = np.argsort(examples.lengths, kind="stable")
    places = [0, len(order) // 2, len(order) // 4, len(order) // 8]
    wide = int(examples.lengths[order[len(order) // 2]])
    chosen = list(dict.fromkeys(order[places].tolist()))[: max(1, min(CHECKED, BATCH_POSITIONS // max(wide, 1)))]
    single = [trained.batch(examples, [row]) for row in chosen]
    check_calls(trained, names, single[0])
    together = trained.batch(examples, chosen if len(chosen) > 1 else chosen * 2)
    alone = [outputs(trained, names, batch) for batch in single]
    all_outputs = outputs(trained, names, together)
    shapes = {name: [(*_size(b), tuple(seen[name].shape)) for b, seen in zip(single, alone)] for name in names}
    for name in names:
        shapes[name].append((*_size(together), tuple(all_outputs[name].shape)))
    for name, size in _cut_short(trained, names, single[-1]).items():
        shapes[name].append(size)
    found = {name: layout_of(name, shapes[name]) for name in names}
    for name, layout in found.items():
        if layout.each != found[names[0]].each:
            raise ModelError(
                f"{names[0]} gives {_counted(found[names[0]])}, {name} gives {_counted(layout)}.",
                "Observe hook points with different numbers of rows one at a time.",
            )
        _check_rows(trained, examples, chosen, name, layout, (single, alone), (together, all_outputs))
    return found


def _size(batch: dict[str, Tensor]) -> tuple[int, int | None]:
    real = real_positions(batch)
    return len(next(iter(batch.values()))), None if real is None else real.shape[1]


def _counted(layout: Layout) -> str:
    return "a row per position" if layout.each is None else f"{layout.each} rows per example"


def layout_of(name: str, seen: Sequence[tuple[int, int | None, tuple[int, ...]]]) -> Layout:
    """From (examples, padded width or None, shape of the output) of several batches. Raises ModelError."""
    shapes = [shape for _, _, shape in seen]
    count, width, shape = max(seen, key=lambda one: (one[0], one[1] or 0))
    wrong = f"{name} has shape {list(shape)} for {count} examples" + ("" if width is None else f" of {width} positions")
    cure = "Choose a hook point whose output is [b s d], [b s h d] or [b d], such as the output of a block."
    if not shape or len({len(s) for s in shapes}) != 1:
        raise ModelError(f"{wrong}: no row per position or example.", cure)
    fixed = [len({s[axis] for s in shapes}) == 1 for axis in range(1, len(shape))]
    if any(s[0] != b for b, _, s in seen):
        if width is not None and all(s[0] == b * w for b, w, s in seen if w is not None) and all(fixed):
            return Layout("joined", None)
        why = "Its first axis is not the example."
        if all(s[0] == w for _, w, s in seen) or (len({s[0] for s in shapes}) == 1 and len(shape) > 2):
            why = "Its first axis is the position or is the same for every batch, not the example."
        raise ModelError(f"{wrong}. {why}", cure)
    vary = len({w for _, w, _ in seen}) > 1
    follow = [axis for axis in range(1, len(shape)) if all(s[axis] == w for _, w, s in seen) and (vary or axis == 1)]
    if any(not fixed[axis - 1] and axis not in follow for axis in range(1, len(shape))) or follow not in ([], [1]):
        raise ModelError(f"{wrong}: no row per position (an attention pattern has one per pair of positions).", cure)
    if follow:
        return Layout("position", None)
    return Layout("several", shape[1]) if len(shape) == 3 else Layout("one", 1)


def check_calls(trained: TrainedModel, names: Sequence[str], batch: dict[str, Tensor]) -> None:
    """Raises ModelError for a module that one forward pass calls several times with different outputs."""
    seen: dict[str, list[Tensor]] = {name: [] for name in names}

    def hook(name: str, _module: nn.Module, _args: Any, out: Any) -> None:
        seen[name].append(tensor_of(out, name).clone())

    with ExitStack() as hooks, borrowed(trained.model), torch.no_grad():
        for name in names:
            module = trained.model.get_submodule(full_name(trained.model, name))
            hooks.callback(module.register_forward_hook(partial(hook, name)).remove)
        with suppress(Exception):  # what follows the hook points need not run: activations never run it
            forward(trained, batch)
    for name, calls in seen.items():
        if any(c.shape != calls[0].shape or not torch.allclose(c, calls[0], equal_nan=True) for c in calls[1:]):
            raise ModelError(
                f"{name} is called {len(calls)} times in one forward pass and gives different outputs.",
                "Choose a hook point that is called once, such as the module that calls this one.",
            )


def _cut_short(
    trained: TrainedModel, names: Sequence[str], batch: dict[str, Tensor]
) -> dict[str, tuple[int, int, tuple[int, ...]]]:
    """The shapes for one example without its last position; nothing where the model takes its own width only."""
    count, width = _size(batch)
    if width is None or width < 2:
        return {}
    try:
        seen = outputs(trained, names, cut_short(batch, width))
    except Exception:  # whatever a model of a fixed width raises
        return {}
    return {name: (count, width - 1, tuple(seen[name].shape)) for name in names}


def _check_rows(
    trained: TrainedModel,
    examples: Examples,
    chosen: Sequence[int],
    name: str,
    layout: Layout,
    single: tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]],
    together: tuple[dict[str, Tensor], dict[str, Tensor]],
) -> None:
    """Rows of the examples alone against their rows in a batch; `single` and `together` are (batches, outputs)."""
    parts = [layout.rows(seen[name], real_positions(batch)) for batch, seen in zip(*single)]
    batch, seen = together
    whole = to_numpy(layout.rows(seen[name], real_positions(batch)).double())
    largest = float(np.max(np.abs(whole), initial=0.0, where=np.isfinite(whole)))
    tolerance = tolerance_of(seen[name].dtype, trained.dtype).output
    start = 0
    for row, part in zip(chosen, parts):
        rows = to_numpy(part.double())
        same = whole[start : start + len(rows)]
        start += len(rows)
        if same.shape != rows.shape or not np.allclose(same, rows, 0, tolerance * largest, equal_nan=True):
            off = float(np.nanmax(np.abs(same - rows))) if same.shape == rows.shape else float("nan")
            raise ModelError(
                f"At {name}, example {examples.ids[row]} gives other activations alone than in a batch of "
                f"{_size(batch)[0]}: they differ by {off:.3g}, the largest is {largest:.3g} (allowed {tolerance:g} of "
                "it).",
                "Something mixes the examples of a batch: a padding mask that does not reach the model (its forward "
                "must take attention_mask), batch statistics, random numbers, or examples on another axis than the "
                "first. Give examples of one length, mend the model, or choose another hook point.",
            )
