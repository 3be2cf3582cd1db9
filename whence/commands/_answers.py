"""Answers that are in the store already are shown without importing torch and without building the model.

An answer is found by what decides it: the options, the contents of the files that they name (weights, configuration,
tokenizer, data, queries), the code of Whence, and the versions of the libraries. If one of them cannot be known from
files (a hub name that is not in the local cache, code that a model brings), the command computes as ever; so it does if
one of them has changed.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from whence.cache.errors import WhenceError
from whence.cache.jobs.progress import say

from ._shared import EMBEDDED, Stored, place_of

if TYPE_CHECKING:
    import xarray

SHOWN = ("json", "out", "quiet", "store", "cluster", "log", "positions")  # options that change no answer
FILES = ("model", "data", "base", "reference", "queries", "dictionary", "checkpoints")  # options that name files
LIBRARIES = ("torch", "transformers", "transformer-lens", "jax", "tokenizers", "peft", "gguf", "pillow", "numpy")
MOST = 1 << 27  # bytes of an answer that is kept


@dataclass(frozen=True)
class Answer:
    """What a command found. facts: as JSON has it. scores: with labels, if there are any. page: of HTML, likewise."""

    facts: dict[str, Any]
    scores: "xarray.DataArray | None" = None
    page: str = ""

    def parts(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and the rest, as a store keeps them."""
        arrays: dict[str, np.ndarray] = {"page": np.frombuffer(self.page.encode(), np.uint8)}
        about: dict[str, Any] = {"facts": json.dumps(self.facts, default=str)}  # as text: a store sorts names
        if self.scores is not None:
            scores, texts = self.scores, dict[str, Any]()
            arrays["values"] = np.asarray(scores.values)
            for name, coord in scores.coords.items():
                plain = coord.values.dtype.kind in "biuf"
                (arrays if plain else texts)[f"coord.{name}" if plain else str(name)] = (
                    coord.values if plain else coord.values.tolist()
                )
            dims = {str(name): list(map(str, coord.dims)) for name, coord in scores.coords.items()}
            attrs = {str(name): plain_attr(value) for name, value in scores.attrs.items()}
            about |= {"dims": list(map(str, scores.dims)), "coords": dims, "texts": texts, "attrs": attrs}
            about["name"] = str(scores.name or "value")
        return arrays, about

    @staticmethod
    def of(entry: Any) -> "Answer":
        about, scores = entry.about, None
        if "dims" in about:
            import xarray

            coords = {
                name: (dims, about["texts"][name] if name in about["texts"] else entry.read(f"coord.{name}"))
                for name, dims in about["coords"].items()
            }
            scores = xarray.DataArray(
                entry.read("values"), coords, about["dims"], name=about["name"], attrs=about["attrs"]
            )
        return Answer(json.loads(about["facts"]), scores, entry.read("page").tobytes().decode())


def plain_attr(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value if isinstance(value, (int, float)) else str(value)


@dataclass(frozen=True, kw_only=True)
class Answered(Stored, ABC):
    """A command whose answer is kept."""

    @property
    def free(self) -> tuple[str, ...]:
        """Options that are applied when an answer is shown."""
        return ()

    @abstractmethod
    def answer(self) -> Answer:
        """What the command finds."""

    @abstractmethod
    def present(self, answer: Answer) -> None:
        """Print it, and write what is to be written."""

    @property
    def place(self) -> str:
        """Where the result is, as the last line says."""
        return place_of(self, "stored in")

    def precheck(self) -> None:
        """An answer that is stored was checked when it was computed."""
        if self._stored is None:
            check: Any = super()
            getattr(check, "precheck", lambda: None)()

    def run(self) -> None:
        found = self._stored
        if found is None:
            found = self.answer()
            arrays, about = found.parts()
            found = replace(found, facts=json.loads(about["facts"]))
            size = sum(array.nbytes for array in arrays.values()) + len(json.dumps(about, default=str))
            if self._inputs is not None and size <= MOST:
                self.open_store().put("report", self._inputs, arrays, about=about)
        else:
            say("Model, data and code are those of an answer in the store: it is shown.")
        self.present(found)

    @cached_property
    def _stored(self) -> Answer | None:
        inputs = self._inputs
        if inputs is None:
            return None
        store = self.open_store()
        return Answer.of(store.open("report", inputs)) if store.has("report", inputs) else None

    @cached_property
    def _inputs(self) -> dict[str, Any] | None:
        """What decides the answer; None if files do not say."""
        options = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in (*SHOWN, *self.free)}
        if options.get("trust_remote_code"):
            return None
        try:
            revision = options.get("revision")
            for name in ("data", "queries"):
                _check_whole(options.get(name), options.get("image_column"))
            named = {name: _contents(name, options.pop(name), revision) for name in FILES if options.get(name)}
        except (OSError, ValueError, LookupError, WhenceError):
            return None
        group = type(self).__module__.rpartition(".")[2].strip("_").partition("_")[0]
        return {
            "what": f"answer of {group} {type(self).__name__.lower()}",
            "options": {name: _plain(value) for name, value in options.items()},
            "files": named,
            "code": code(),
            "python": list(sys.version_info[:2]),
            "libraries": {name: _version(name) for name in LIBRARIES},
        }


def _plain(value: Any) -> Any:
    return [_plain(each) for each in value] if isinstance(value, (tuple, list)) else _text(value)


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _contents(option: str, value: Any, revision: str | None = None) -> Any:
    """What stands for the value of an option that names files. Raises LookupError for one that does not."""
    if isinstance(value, tuple):
        return [_contents(option, each, revision) for each in value]
    if value in EMBEDDED:
        return str(value)
    path = Path(value) if Path(value).exists() else _downloaded(option, str(value), revision)
    found = {name: _digest(file) for name, file in _files(path)}
    adapter = path / "adapter_config.json"
    if adapter.is_file():
        base = json.loads(adapter.read_text("utf-8")).get("base_model_name_or_path")
        if base:
            beside = path / base
            own = str(beside if not Path(base).is_dir() and beside.is_dir() else base)
            found["base"] = _contents("base", own, revision)
    return found


def _check_whole(value: Any, image_column: str | None) -> None:
    """Raise LookupError for a table that names files of images, whose contents decide too."""
    from whence.files import IMAGE_COLUMNS, READABLE, read_rows

    if value is None or Path(value).suffix not in READABLE or not Path(value).is_file():
        return
    names = (*IMAGE_COLUMNS, *([image_column] if image_column else []))
    for row in itertools.islice(read_rows(Path(value)), 1):
        if any(isinstance(row.values.get(name), str) for name in names):
            raise LookupError(str(value))


def _downloaded(option: str, name: str, revision: str | None) -> Path:
    """The folder of a hub model in the local cache, which a library that reads the name offline opens. Raises
    LookupError for what is not there, and if the hub may be asked for a newer one."""
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    pinned = constants.HF_HUB_OFFLINE or re.fullmatch("[0-9a-f]{40}", revision or "")
    if option not in ("model", "base", "reference") or not pinned:
        raise LookupError(name)
    for file in ("config.json", "adapter_config.json"):
        with contextlib.suppress(HFValidationError):
            if isinstance(found := try_to_load_from_cache(name, file, revision=revision), str):
                return Path(found).parent
    raise LookupError(name)


def _files(path: Path) -> Iterator[tuple[str, Path]]:
    if path.is_file():
        beside = path.with_suffix(".idx")  # of a file of tokens
        yield path.name, path
        if path.suffix == ".bin" and beside.is_file():
            yield beside.name, beside
        if path.suffix == ".gguf":
            yield from ((f.name, f) for f in sorted(path.parent.glob("*.json")))
        return
    for file in sorted(path.rglob("*")):
        if file.is_file():
            yield str(file.relative_to(path)), file


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@functools.cache
def code() -> str:
    """A hash of the source of Whence."""
    root, digest = Path(__file__).parents[1], hashlib.sha256()
    parts = [root, *(root / name for name in ("cache", "attrib", "decomp", "unlearn"))]  # links to folders
    files = sorted({file.resolve() for part in parts for file in part.resolve().rglob("*.py")})
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
