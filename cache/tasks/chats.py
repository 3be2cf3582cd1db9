"""Conversations as examples: written by the tokenizer's own template, with the loss on the assistant's turns."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import DataError, UsageError
from ..jobs.progress import say
from ..model.examples import Examples
from ..model.ids import as_ids, id_texts
from ..model.task import IGNORED

Message = Mapping[str, Any]


def chats(
    conversations: Sequence[Sequence[Message]],
    tokenizer: Any,
    *,
    length: int | None = None,
    ids: Any = None,
    about: Mapping[str, Sequence[Any]] | None = None,
    **template: Any,
) -> Examples:
    """Conversations as tokens, written by the tokenizer's chat template; labels are -100 but on the assistant's turns:
    what the model is to write, its end of turn included.

    The turns are those that the template marks with `{% generation %}`. Of a template without these marks a turn is
    what it adds to the conversation before it, which must stand unchanged.

    Args:
        conversations: lists of {"role": ..., "content": ...}.
        tokenizer: a fast tokenizer of transformers with a chat template.
        length: tokens at which conversations are cut; what is cut is said.
        ids: of the examples; 0, 1, 2, ... by default.
        about: name -> one value a conversation.
        template: further arguments of `apply_chat_template`, such as `tools`.

    Raises UsageError for a tokenizer without a template, DataError for a conversation that the template refuses or
    rewrites, or without an assistant's turn within `length`.

    >>> train = chats([[{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]], tokenizer)
    ... # doctest: +SKIP
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UsageError(
            "The tokenizer has no chat template.",
            "Use the tokenizer of a chat model, set tokenizer.chat_template, or give prompts and completions "
            "(tasks.prompted).",
        )
    known = as_ids(np.arange(len(conversations)) if ids is None else ids)
    marked = "{% generation" in str(tokenizer.chat_template) or "{%- generation" in str(tokenizer.chat_template)
    tokens, labels, texts, cut = [], [], [], 0
    for name, messages in zip(known, conversations, strict=True):
        found, counted, text = (_marked if marked else _by_prefix)(messages, tokenizer, template, name)
        cut += length is not None and len(found) > length
        found, counted = found[:length], counted[:length]
        if not counted[1:].any():
            raise DataError(
                f"Conversation {name} has no assistant's turn{'' if length is None else f' in {length} tokens'}.",
                'Give messages of the role "assistant", leave it out, or allow more tokens.',
            )
        tokens.append(found)
        labels.append(np.where(counted, found, IGNORED))
        texts.append(text)
    if cut:
        say(f"{cut} of {len(tokens)} conversations are longer than {length} tokens and are cut there.")
    titles = [next((str(m["content"])[:60] for m in c if m["role"] == "user"), "") for c in conversations]
    shown = {"title": titles, "text": texts, **(about or {})}
    written = id_texts(ids) if ids is not None else []
    return Examples({"input_ids": tokens, "labels": labels}, known, shown | ({"id": written} if written else {}))


def _marked(
    messages: Sequence[Message], tokenizer: Any, template: Mapping[str, Any], name: Any
) -> tuple[np.ndarray, np.ndarray, str]:
    """Tokens, whether each is the assistant's, and the text, of a template that says so itself."""
    out = _written(
        messages, tokenizer, name, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, **template
    )
    ids = np.asarray(out["input_ids"], np.int64)
    return ids, np.asarray(out["assistant_masks"], bool), tokenizer.decode(ids)


def _by_prefix(
    messages: Sequence[Message], tokenizer: Any, template: Mapping[str, Any], name: Any
) -> tuple[np.ndarray, np.ndarray, str]:
    """The same from what the template adds for every turn of the assistant."""
    whole = _written(messages, tokenizer, name, tokenize=False, **template)
    spans = []
    for at, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        # without a message before it there is nothing to prompt the first turn with
        before = (
            _written(messages[:at], tokenizer, name, tokenize=False, add_generation_prompt=True, **template)
            if at
            else ""
        )
        after = _written(messages[: at + 1], tokenizer, name, tokenize=False, **template)
        if not after.startswith(before) or not whole.startswith(after):
            raise DataError(
                f"The chat template writes message {at} of conversation {name} in another way than in the whole.",
                "Mark the assistant's words with {% generation %} in tokenizer.chat_template (some templates leave out "
                "earlier turns' reasoning), or give prompts and completions (tasks.prompted).",
            )
        spans.append((len(before), len(before) + len(after[len(before) :].rstrip())))
    out = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    starts, ends = np.asarray(out["offset_mapping"], np.int64).reshape(-1, 2).T
    counted = np.zeros(len(starts), bool)
    for start, end in spans:
        counted |= (starts >= start) & (starts < end) & (ends > starts)
    return np.asarray(out["input_ids"], np.int64), counted, whole


def _written(messages: Sequence[Message], tokenizer: Any, name: Any, **options: Any) -> Any:
    try:
        return tokenizer.apply_chat_template(list(messages), **options)
    except Exception as error:  # jinja's own, and what a template raises
        raise DataError(
            f"The chat template cannot write conversation {name}: {type(error).__name__}: {error}",
            'Give messages {"role": ..., "content": ...} in the order that the model was trained on.',
        ) from error
