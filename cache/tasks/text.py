"""Examples of tokens from texts: prompts and completions, labelled texts, choices, samples with rewards.

A tokenizer is one of transformers or of the `tokenizers` library, or a `Vocabulary`. Nothing is added to a text but
where a function says so. Several completions of one prompt are columns of one example: `input_ids`, `labels` and
`attention_mask` of the first, `input_ids_1`, `labels_1`, `attention_mask_1` of the next, and so on.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from ..errors import DataError
from ..model.examples import Examples
from ..model.task import IGNORED

Tokens = Int64[np.ndarray, " s"]


def encoded(tokenizer: Any, text: str, *, special: bool = False) -> Tokens:
    """The tokens of a text. special: with those that the tokenizer adds, such as [CLS] and [SEP]."""
    inner = getattr(tokenizer, "tokenizer", tokenizer)  # of a Vocabulary
    found = inner.encode(text, add_special_tokens=special)
    return np.asarray(found.ids if hasattr(found, "ids") else found, np.int64)


def prompted(
    prompts: Sequence[str],
    completions: Sequence[str],
    tokenizer: Any,
    *,
    ids: Any = None,
    about: Mapping[str, Sequence[Any]] | None = None,
    places: Sequence[str] = (),
) -> Examples:
    """Prompts with their completions, one sequence an example; the loss and the measurement are the completion's.

    Args:
        prompts: texts whose tokens are not predicted.
        completions: what follows each. A completion begins with the space that it needs: its first token may grow out
            of the prompt's last.
        tokenizer: of the model.
        ids: of the examples; 0, 1, 2, ... by default.
        about: name -> one value an example, beside title, text, prompt and completion.
        places: where each pair was read, for errors.

    Raises DataError for a prompt or a completion without a token: nothing would predict it, or be predicted.
    """
    tokens, labels = [], []
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        head, tail = encoded(tokenizer, prompt), encoded(tokenizer, completion)
        if len(head) == 0 or len(tail) == 0:
            raise DataError(
                f"{f'{places[row]}: t' if places else 'T'}he query {prompt!r} -> {completion!r} has an empty half.",
                "Give both a prompt and a completion.",
            )
        tokens.append(np.concatenate([head, tail]))
        labels.append(np.concatenate([np.full(len(head), IGNORED), tail]))
    text = [p + c for p, c in zip(prompts, completions)]
    known = {"title": list(prompts), "text": text, "prompt": list(prompts), "completion": list(completions)}
    columns = {"input_ids": tokens, "labels": labels}  # lists, even where all lengths agree: padding is always masked
    return _numbered(columns, len(tokens), ids, {**known, **(about or {})})


def classified(
    texts: Sequence[str], labels: Sequence[int], tokenizer: Any, *, length: int | None = None, ids: Any = None
) -> Examples:
    """Texts with a class each, for `Classification` and a sequence classifier: columns `x` (tokens, with the special
    ones that the tokenizer adds) and `y`. Padding is masked where the model's forward takes `attention_mask`.

    Args:
        texts, labels: a text and a whole number from 0 each.
        tokenizer: of the model.
        length: tokens at which texts are cut, special ones included.
        ids: of the examples; 0, 1, 2, ... by default.
    """
    tokens = [encoded(tokenizer, text, special=True)[:length] for text in texts]
    about = {"title": [text[:60] for text in texts], "text": list(texts)}
    return _numbered({"x": tokens, "y": np.asarray(labels)}, len(tokens), ids, about)


def choices(
    prompts: Sequence[str],
    options: Sequence[Sequence[str]],
    right: Sequence[int] | None,
    tokenizer: Any,
    *,
    ids: Any = None,
) -> Examples:
    """Questions with options, for `Choice`, and pairs of answers, the preferred one named first, for `DPO`.

    Args:
        prompts: one a question.
        options: two or more completions of each, not as many everywhere.
        right: the place of the right option of each; None means the first.
        tokenizer: of the model.
        ids: of the examples; 0, 1, 2, ... by default.

    Raises DataError for a question with fewer than two options, a place that is none, and an empty half.
    """
    right = [0] * len(prompts) if right is None else right
    columns: dict[str, list[np.ndarray]] = {}
    most = max(map(len, options), default=0)
    for row, (prompt, given, place) in enumerate(zip(prompts, options, right, strict=True)):
        if len(given) < 2 or not 0 <= place < len(given):
            raise DataError(
                f"Question {row} has {len(given)} options and option {place} as the right one.",
                "Give two options or more, and the place of the right one, from 0.",
            )
        ordered = [given[place], *(each for at, each in enumerate(given) if at != place)]
        found = prompted([prompt] * len(given), ordered, tokenizer).columns
        for k in range(most):  # a missing option is the first again, with no token that counts
            tokens, labels = (found[name][k if k < len(given) else 0] for name in ("input_ids", "labels"))
            labels = labels if k < len(given) else np.full_like(labels, IGNORED)
            for name, value in (("input_ids", tokens), ("labels", labels), ("attention_mask", np.ones_like(tokens))):
                columns.setdefault(f"{name}{_suffix(k)}", []).append(value)
    del columns["attention_mask"]  # a batch has it
    about = {
        "title": list(prompts),
        "text": [p + o[r] for p, o, r in zip(prompts, options, right)],
        "prompt": list(prompts),
        "completion": [o[r] for o, r in zip(options, right)],
    }
    return _numbered(columns, len(prompts), ids, about)


def samples(
    prompts: Sequence[str],
    completions: Sequence[Sequence[str]],
    rewards: Sequence[Sequence[float]],
    tokenizer: Any,
    *,
    baseline: bool = True,
) -> Examples:
    """Completions that the model sampled, with what each earned, for `Reward`: an example a sample, in order.

    `reward` is (r - b)/k for a prompt of k samples, b the mean reward of its other samples (zero if there is none, or
    without `baseline`), so that the sum over a prompt's samples estimates the gradient of its expected reward without
    bias (Kool, van Hoof and Welling 2019). `about["prompt"]` groups them: `group_scores` adds up.

    Args:
        prompts: one text a group of samples.
        completions: the samples of each prompt.
        rewards: a number for each sample.
        tokenizer: of the model.
        baseline: subtract the mean of the others.

    Raises DataError if a prompt has no sample, or not one reward for each of them.
    """
    heads, tails, values = [], [], []
    for row, (prompt, drawn, earned) in enumerate(zip(prompts, completions, rewards, strict=True)):
        r = np.asarray(earned, np.float64)
        if r.shape != (len(drawn),) or not len(drawn) or not np.isfinite(r).all():
            raise DataError(
                f"Prompt {row} has {len(drawn)} samples and the rewards {list(earned)}.",
                "Give one finite number for every sample, and at least one sample.",
            )
        others = (r.sum() - r) / (len(r) - 1) if baseline and len(r) > 1 else 0.0
        heads += [prompt] * len(drawn)
        tails += list(drawn)
        values += list((r - others) / len(r))
    found = prompted(heads, tails, tokenizer)
    return Examples({**found.columns, "reward": np.array(values)}, found.ids, found.about)


def one_token_each(examples: Examples) -> Examples:
    """Queries of one token: an example for every token of these that counts, whose other labels are -100. `about` gets
    `of`, the id of the whole, and `position`. Their scores sum to the scores of the whole."""
    rows, labels, places = [], [], []
    for row, tokens in enumerate(examples.columns["input_ids"]):
        own = np.asarray(examples.columns["labels"][row] if "labels" in examples.columns else tokens)
        for at in np.flatnonzero(own != IGNORED):
            if at > 0:  # nothing predicts the first
                rows.append(row)
                places.append(int(at))
                labels.append(np.where(np.arange(len(own)) == at, own, IGNORED))
    columns = {name: [values[row] for row in rows] for name, values in examples.columns.items()} | {"labels": labels}
    about = {name: [values[row] for row in rows] for name, values in examples.about.items() if name != "id"}
    known = {**about, "of": examples.ids[rows].tolist(), "position": places}
    return _numbered(columns, len(rows), None, known)


def options_of(batch: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The completions of a batch, each a batch with the columns `input_ids`, `labels` and `attention_mask`."""
    names = ("input_ids", "labels", "attention_mask")
    k = 0
    while f"input_ids{_suffix(k)}" in batch:
        yield {name: batch[f"{name}{_suffix(k)}"] for name in names if f"{name}{_suffix(k)}" in batch}
        k += 1


def _suffix(k: int) -> str:
    return f"_{k}" if k else ""


def _numbered(columns: Mapping[str, Any], count: int, ids: Any, about: Mapping[str, Sequence[Any]]) -> Examples:
    if ids is None:
        return Examples(columns, np.arange(count, dtype=np.int64), about)
    return Examples.of(Examples(columns, np.arange(count, dtype=np.int64)), ids, about)
