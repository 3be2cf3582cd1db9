"""Files of token ids, read as needed: flat ones as nanoGPT writes them, .npy files, and those of Megatron."""

from pathlib import Path
from typing import Any

import numpy as np

from whence.cache import DataError, Examples
from whence.cache.jobs.progress import say
from whence.cache.model.ragged import Derived, NumberFile, Ragged

from .corpus import Corpus
from .shown import TextOf, TitleOf
from .vocabulary import Vocabulary

BLOCK = 1 << 22  # tokens that are searched at once


def token_file(
    source: str | Path,
    vocabulary: Vocabulary | None,
    *,
    length: int = 128,
    end: int | None = None,
    dtype: str | None = None,
    limit: int | None = None,
) -> Corpus:
    """A corpus from a file of token ids, whose rows are read as needed: a flat .bin file as nanoGPT writes it, a .npy
    file, or a .bin file with an .idx file beside it, as Megatron and GPT-NeoX write them.

    Documents end at the token `end`, which stays with them, or where the .idx file says; without either, the file is
    one document. A document longer than `length` is cut into pieces; `about["document"]` has its number.

    Args:
        source: the file.
        vocabulary: of the model, for text that is shown.
        length: most tokens of an example.
        end: the token at which documents end; by default the vocabulary's own end-of-text token, if it has one.
        dtype: of a flat file; by default uint16 if the vocabulary fits it, else uint32.
        limit: read only so many documents.

    Raises DataError for a file that is not whole, or whose tokens look like those of another dtype.
    """
    path = Path(source)
    words = vocabulary
    end = _end_of_text(words) if end is None else end
    if path.suffix == ".npy":
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        numbers, index = NumberFile(str(path), found.dtype.str, int(found.offset)), None
    elif path.with_suffix(".idx").is_file():
        kind, index = _megatron_index(path.with_suffix(".idx"))
        numbers = NumberFile(str(path), kind)
    else:
        kind = dtype or ("<u2" if words is None or len(words) <= 1 << 16 else "<u4")
        numbers, index = NumberFile(str(path), kind), None
        _check_dtype(path, numbers)
    if index is not None:
        starts, stops = index
    else:
        stops = _ends(numbers, end)
        starts = np.concatenate([[0], stops[:-1]]).astype(np.int64)
        if len(stops) == 1:
            why = "the tokenizer names no end of text" if end is None else f"token {end} is not in it"
            say(f"{path} is read as one document: {why}. Name the token that ends documents with --document-end.")
    whole = Ragged(numbers, starts[:limit], stops[:limit])
    if not len(whole) or whole.stops.max() > len(numbers):
        raise DataError(f"{path} has {len(numbers)} tokens, not what its index says.", "Copy both files again.")
    rows, of = whole.pieces(length)
    about: dict[str, Any] = {"document": of.tolist()}
    if words is not None:
        every = np.arange(len(rows))
        about |= {"title": Derived(TitleOf(words, rows), every), "text": Derived(TextOf(words, rows), every)}
    train = Examples({"input_ids": rows}, np.arange(len(rows), dtype=np.int64), about)
    return Corpus(path.stem, train, train.select([]), words)


def _end_of_text(vocabulary: Vocabulary | None) -> int | None:
    """The token that ends a text, of a tokenizer that names one."""
    return None if vocabulary is None else getattr(vocabulary.tokenizer, "eos_token_id", None)


def _ends(numbers: NumberFile, end: int | None) -> np.ndarray:
    """Where documents end in a flat file: after every `end`, and at the end of the file."""
    found = [np.zeros(0, np.int64)]
    if end is not None:
        for start in range(0, len(numbers), BLOCK):
            found.append(np.flatnonzero(numbers[start : start + BLOCK] == end) + start + 1)
    stops = np.concatenate(found)
    last = len(numbers)
    return stops if len(stops) and stops[-1] == last else np.append(stops, last)


def _check_dtype(path: Path, numbers: NumberFile) -> None:
    if path.stat().st_size % np.dtype(numbers.dtype).itemsize:
        raise DataError(f"{path} does not hold whole {np.dtype(numbers.dtype)} numbers.", "Give its dtype.")
    first = numbers[0:4096]
    if np.dtype(numbers.dtype).itemsize == 2 and len(first) > 8 and not first[1::2].any() and first[::2].any():
        raise DataError(
            f"Every second number of {path} is zero, as if it were uint32, not uint16.", 'Give dtype="uint32".'
        )


def _megatron_index(path: Path) -> tuple[str, tuple[np.ndarray, np.ndarray]]:
    """The dtype of the tokens, and where documents begin and end, of an .idx file."""
    head = np.fromfile(path, "u1", 34).tobytes()
    kinds = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
    if head[:9] != b"MMIDIDX\x00\x00" or len(head) < 34 or head[17] not in kinds:
        raise DataError(f"{path} is no index of Megatron's format.", "Give the .idx that was written with the file.")
    kind = kinds[head[17]]
    count, documents = (int.from_bytes(head[at : at + 8], "little") for at in (18, 26))
    sizes = np.fromfile(path, "<i4", count, offset=34)
    ends = np.fromfile(path, "<i8", documents, offset=34 + 12 * count)
    if len(sizes) < count or len(ends) < documents:
        raise DataError(f"{path} ends in the middle.", "Copy it again.")
    places = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    return kind, (places[ends[:-1]], places[ends[1:]])
