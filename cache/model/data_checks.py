"""What data must be for a task and a model, checked before anything long is run.

Every pass over data starts here. Tables of numbers are compared with what the model can look up and with the outputs
that it has. The longest example is run once; whatever a layer looks up then is checked first, so an index that is out
of range is an error with ids and not a failure of the device.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import DataError, ModelError, WhenceError
from .batches import check_examples
from .borrowing import borrowed
from .examples import Examples
from .stateless import own_type, unwrapped
from .task import IGNORED, Classification, LanguageModelling, Regression, Task, takes_mask

NOT_RUN = (IndexError, RuntimeError, TypeError, ValueError)  # of a model on data that do not fit it
TOLERANCE = 1e-2  # of the largest logit: far above rounding in half precision, far below another prediction
CAUSAL = 5e-5  # the same for float32, in which earlier predictions of a causal model are equal but for rounding


def check_data(examples: Examples, task: Task, model: nn.Module) -> None:
    """Raise DataError or ModelError, with ids, for data that the task and the model cannot be run on.

    Args:
        examples: training data or queries.
        task: of the tasks that are included, labels are checked; of others, what every task needs.
        model: run on the longest example, without gradients.
    """
    check_examples(examples)
    if isinstance(task, LanguageModelling):
        _check_language_model(model)
        _check_tokens(examples)
    if isinstance(task, (Classification, Regression)):
        _check_targets(examples, whole=isinstance(task, Classification))
    if not isinstance(task, (LanguageModelling, Classification, Regression)):
        return
    if "segments" in examples.columns and isinstance(task, LanguageModelling):
        _check_packed(examples, task, model)
    logits = _probe(examples, task, model)
    if isinstance(task, LanguageModelling):
        _check_range(examples, "labels" if "labels" in examples.columns else "input_ids", int(logits.shape[-1]))
        _check_causal(examples, task, model)
    elif isinstance(task, Classification):
        _check_range(examples, "y", int(logits.shape[-1]))
    elif np.asarray(examples.columns["y"][0]).size != logits[0].numel():
        raise DataError(
            f"Every y has {np.asarray(examples.columns['y'][0]).size} numbers for {logits[0].numel()} outputs.",
            "Give one number an output, or a model with as many outputs.",
        )
    if not isinstance(task, LanguageModelling):
        _check_padding(examples, task, model)


def _ids(examples: Examples, rows: Any) -> str:
    """Some ids, as people know them."""
    chosen = examples.select(rows)
    shown = list(chosen.about.get("id", chosen.ids.tolist()))
    return f"{shown[:5]}{f' and {len(shown) - 5} more' if len(shown) > 5 else ''}"


# columns


def _check_language_model(model: nn.Module) -> None:
    config = getattr(unwrapped(model), "config", None)
    names = [kind.__name__ for kind in type(unwrapped(model)).__mro__]
    if getattr(config, "is_encoder_decoder", False) is True:
        kind, own = "an encoder-decoder", "EncoderDecoder"
    elif any("MaskedLM" in name for name in names):
        kind, own = "a masked language model", "MaskedLanguageModelling"
    else:
        return
    raise ModelError(
        f"{names[0]} is {kind}; LanguageModelling is the loss of causal language models.",
        f"Use {own} of whence.cache.tasks, or write a Task: loss, sampled_loss, measurement, positions and logits.",
    )


def _check_tokens(examples: Examples) -> None:
    if "input_ids" not in examples.columns:
        raise DataError(
            f"There is no column 'input_ids'; there is {', '.join(sorted(examples.columns))}.",
            "Name the column of tokens input_ids, or use the task that fits these data.",
        )
    for name in ("input_ids", "labels"):
        if name in examples.columns:
            kinds = {np.asarray(row).dtype.kind for row in examples.columns[name]}
            if not kinds <= set("iu"):
                raise DataError(f"Column {name!r} has no whole numbers.", "Give token numbers.")
    if "attention_mask" in examples.columns:
        pairs = zip(examples.columns["attention_mask"], examples.columns["input_ids"])
        bad = np.array([np.shape(mask) != np.shape(tokens) for mask, tokens in pairs])
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise DataError(
                f"The attention_mask has another shape than the tokens, ids {_ids(examples, bad)}: the first has "
                f"{list(np.shape(examples.columns['attention_mask'][row]))} for "
                f"{list(np.shape(examples.columns['input_ids'][row]))}.",
                "Give one number a token: 1 for every token and 0 for padding.",
            )
    if "labels" in examples.columns:
        lengths = np.array([np.size(row) for row in examples.columns["labels"]])
        tokens = np.array([len(row) for row in examples.columns["input_ids"]])
        if (lengths != tokens).any():
            row = int(np.flatnonzero(lengths != tokens)[0])
            raise DataError(
                f"Labels and tokens differ in number, ids {_ids(examples, lengths != tokens)}: the first has "
                f"{lengths[row]} labels for {tokens[row]} tokens.",
                f"Give one label a token, the token itself or {IGNORED}; labels are shifted here.",
            )


def _check_targets(examples: Examples, whole: bool) -> None:
    for name in ("x", "y"):
        if name not in examples.columns:
            raise DataError(
                f"There is no column {name!r}; there is {', '.join(sorted(examples.columns))}.",
                "Name the inputs x and the labels y, or use the task that fits these data.",
            )
    y = examples.columns["y"]
    if not isinstance(y, np.ndarray):
        raise DataError("The labels y differ in number from example to example.", "Give every example as many.")
    finite = np.isfinite(y.reshape(len(y), -1)).all(1)
    if not finite.all():
        raise DataError(f"Labels y are not finite, ids {_ids(examples, ~finite)}.", "Fix them, or leave these out.")
    if not whole:
        return
    if y.ndim > 1:
        hot = y.ndim == 2 and y.shape[1] > 1 and np.isin(y, (0, 1)).all() and (y.sum(1) == 1).all()
        raise DataError(
            f"The labels y have the shape {y.shape}, where Classification needs one class number an example.",
            "They look one-hot: give y.argmax(1)." if hot else "Give y.reshape(-1) if there is one number an example.",
        )
    broken = y != np.trunc(y)
    if broken.any():
        raise DataError(
            f"Labels y are no whole numbers, ids {_ids(examples, broken)}.", "Number the classes, or use Regression."
        )


def _check_range(examples: Examples, name: str, count: int) -> None:
    """Labels between 0 and the number of outputs; those of tokens may be -100."""
    values = examples.columns[name]
    rows = values.reshape(len(values), -1) if isinstance(values, np.ndarray) else values
    bad = np.array([_out_of_range(np.asarray(row), count, name != "y") for row in rows])
    if bad.any():
        first = np.asarray(rows[int(np.flatnonzero(bad)[0])])
        value = first[(first < 0) & ((first != IGNORED) | (name == "y")) | (first >= count)][0]
        masked = "" if name == "y" else f", or {IGNORED} where nothing is to be predicted"
        if name == "y" and count == 2 and set(np.unique(np.asarray(values)).tolist()) <= {-1, 1}:
            raise DataError(
                f"The labels y are -1 and 1, ids {_ids(examples, bad)}; classes are numbered 0 and 1.",
                "Give (y + 1) // 2: the model's one output is then the logit of class 1.",
            )
        raise DataError(
            f"{name} has {value} for a model with {count} outputs, ids {_ids(examples, bad)}.",
            f"Number from 0 to {count - 1}{masked}.",
        )


def _out_of_range(row: np.ndarray, count: int, masked: bool) -> bool:
    wrong = (row < 0) | (row >= count)
    return bool((wrong & (row != IGNORED) if masked else wrong).any())


# the model, on few examples


def _probe(examples: Examples, task: Task, model: nn.Module) -> Tensor:
    """The logits of the longest example, with what every table is indexed with checked first."""
    longest = int(np.argmax(examples.lengths))
    _check_tables(examples, model)
    try:
        with _quiet(model), ExitStack() as hooks:
            for name, table in model.named_modules():
                if isinstance(table, nn.Embedding):
                    hooks.enter_context(_guarded(name, table))
            return task.logits(model, _batch(examples, [longest], model))  # type: ignore[no-any-return]
    except _BeyondTable as error:
        name, index, size = error.args
        length = int(examples.lengths[longest])
        table = f"row {index} of the model's table {name or 'the embedding'}, which has {size}"
        raise DataError(
            f"The example with id {_ids(examples, [longest])} has {length} positions"
            + (f", and the model reads at most {size}." if size <= length else f" and needs {table}."),
            "Shorten it: data by --length, a query by a shorter prompt or completion."
            if size <= length
            else "Its tokens are of another vocabulary: take the tokenizer of the model.",
        ) from None
    except NOT_RUN as error:
        raise _not_run(examples, task, model, longest, error) from error


def _not_run(examples: Examples, task: Task, model: nn.Module, longest: int, error: Exception) -> WhenceError:
    """What is wrong with a model or data of which the longest example cannot be run."""
    said, shortest = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}", int(np.argmin(examples.lengths))
    if "more than 1 value per channel" in said:
        return ModelError(
            "The model normalises by the statistics of its batch, also in evaluation mode, and cannot run one example.",
            "Use the running statistics (track_running_stats=True), or group or layer normalisation.",
        )
    if examples.lengths[shortest] < examples.lengths[longest]:
        with suppress(*NOT_RUN), _quiet(model):
            task.logits(model, _batch(examples, [shortest], model))
            return DataError(
                f"The model cannot be run on {examples.lengths[longest]} positions, ids {_ids(examples, [longest])}: "
                f"{said}",
                f"Cut the texts to the model's length; {examples.lengths[shortest]} positions can be run.",
            )
    batch = _batch(examples, [longest], model)
    columns = [f"{name} {list(batch[name].shape)} of {batch[name].dtype}" for name in examples.columns]
    return DataError(
        f"The model cannot be run on the example with id {_ids(examples, [longest])} ({', '.join(columns)}): {said}",
        "Give columns of the shape and type that its first layer takes (images channels first, numbers as floats); a "
        "forward with other arguments needs a Task.",
    )


class _BeyondTable(Exception):
    """(name of the table, index, rows of the table)"""


@contextmanager
def _guarded(name: str, table: nn.Embedding) -> Iterator[None]:
    def check(_module: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor) and args[0].numel():
            for index in (int(args[0].max()), int(args[0].min())):
                if not 0 <= index < table.num_embeddings:
                    raise _BeyondTable(name, index, table.num_embeddings)

    handle = table.register_forward_pre_hook(check)
    try:
        yield
    finally:
        handle.remove()


def _check_tables(examples: Examples, model: nn.Module) -> None:
    """All tokens against the table that the model looks them up in, where it names one."""
    name = "input_ids" if "input_ids" in examples.columns else ""
    size = vocabulary_of(model)
    if not name or size is None:
        return
    bad = np.array([_out_of_range(np.asarray(row), size, False) for row in examples.columns[name]])
    if bad.any():
        values = np.ravel(examples.columns[name][int(np.flatnonzero(bad)[0])])
        value = values[(values < 0) | (values >= size)][0]
        raise DataError(
            f"Token {value} is beyond the model's vocabulary of {size}, ids {_ids(examples, bad)}.",
            "Tokenize with the model's own tokenizer.",
        )


def vocabulary_of(model: nn.Module) -> int | None:
    """Rows of the model's table of tokens: that which it gives as its own, of its configuration, or its only one."""
    model = unwrapped(model)
    try:
        table = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        table = None
    if isinstance(table, nn.Embedding):
        return table.num_embeddings
    size = getattr(getattr(model, "cfg", None), "d_vocab", None)
    if isinstance(size, int):
        return size
    tables = [part for part in model.modules() if isinstance(part, nn.Embedding)]
    return tables[0].num_embeddings if len(tables) == 1 else None


def _check_causal(examples: Examples, task: LanguageModelling, model: nn.Module) -> None:
    """A language model of transformers must not see the token that it is to predict."""
    if not hasattr(getattr(unwrapped(model), "config", None), "model_type"):
        return
    row = int(np.argmax(examples.lengths))
    tokens = np.asarray(examples.columns["input_ids"][row])[:8]
    if len(tokens) < 2 or len(set(tokens.tolist())) < 2:
        return
    other = tokens.copy()
    other[-1] = tokens[tokens != tokens[-1]][0]
    with _quiet(model):
        first, second = (
            task.logits(model, _batch(Examples.of({"input_ids": [each]}), [0], model)).float()
            for each in (tokens, other)
        )
    change = (first - second)[:, :-1].abs().max()
    half = own_type(model)[1] in (torch.float16, torch.bfloat16)
    if change > (TOLERANCE if half else CAUSAL) * first.abs().max():
        raise ModelError(
            f"{type(unwrapped(model)).__name__} sees the tokens that it is to predict: changing the last one changes "
            f"its predictions before it by {float(change):.2g}.",
            "LanguageModelling is for causal models. Make it a decoder, or write a Task with this model's own loss.",
        )


def _check_packed(examples: Examples, task: LanguageModelling, model: nn.Module) -> None:
    """Texts of one row must not see each other: the row's loss is the sum of its texts' own."""
    row = int(np.argmax([np.max(each) for each in examples.columns["segments"]]))
    segments = np.asarray(examples.columns["segments"][row])
    if segments.max() < 2:
        return
    names = ("input_ids", "labels")
    texts = [
        {name: [np.asarray(examples.columns[name][row])[segments == n]] for name in names if name in examples.columns}
        for n in np.unique(segments)
    ]
    try:
        with _quiet(model):
            together = float(task.loss(model, _batch(examples, [row], model))[0])
            alone = sum(float(task.loss(model, _batch(Examples.of(text), [0], model))[0]) for text in texts)
    except NOT_RUN as error:
        together, alone, said = 1.0, 0.0, f"{type(error).__name__}: {str(error).splitlines()[0]}"
    else:
        said = f"their losses sum to {alone:.6g} alone and are {together:.6g} in one row"
    if abs(together - alone) > TOLERANCE * max(abs(alone), 1e-3):
        raise ModelError(
            f"The model does not keep the packed texts of example {_ids(examples, [row])} apart: {said}.",
            "Its forward must take attention_mask [b 1 s s], added to the scores, and position_ids; else give the "
            "texts one by one, not packed.",
        )


def _check_padding(examples: Examples, task: Task, model: nn.Module) -> None:
    """Sequences of unequal length need a model that takes the mask, or is not changed by padding."""
    ragged = not isinstance(examples.columns["x"], np.ndarray)
    if not ragged or takes_mask(model):
        return
    short, long = int(np.argmin(examples.lengths)), int(np.argmax(examples.lengths))
    if examples.lengths[short] == examples.lengths[long]:
        return
    with _quiet(model):
        alone = task.logits(model, _batch(examples, [short], model)).float()
        beside = task.logits(model, _batch(examples, [short], model, pad_to=int(examples.lengths[long]))).float()
    if not torch.allclose(alone, beside, rtol=TOLERANCE, atol=1e-5 * float(alone.abs().max())):
        raise ModelError(
            f"The example with id {_ids(examples, [short])} has other outputs when it is padded, and the model's "
            "forward takes no attention_mask.",
            "Let forward take attention_mask [b s] and leave padding out, or give sequences of one length.",
        )


def _batch(examples: Examples, rows: Any, model: nn.Module, pad_to: int | None = None) -> dict[str, Tensor]:
    return examples.batch(rows, pad_to, *own_type(model))


@contextmanager
def _quiet(model: nn.Module) -> Iterator[None]:
    """A borrowed model, without gradients."""
    with borrowed(model), torch.no_grad():
        yield
