"""What every group of commands shares: common options, the loaded model with its data, sizes, and printed results."""

import json as json_module
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from whence.cache.display.files import save_table
from whence.cache.errors import UsageError
from whence.cache.jobs.progress import say
from whence.options import AGES, SIZES, Columns, Count, Loading, Positive, Size, Table, Workers, amount

if TYPE_CHECKING:
    import numpy as np

    from whence.cache import Examples, Store, TrainedModel
    from whence.corpora import Corpus

EMBEDDED = ("demo", "biographies", "language-reference", "digits")
Precision = Literal["float32", "tf32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class Printed:
    """A command that prints text, or JSON."""

    json: bool = False
    """Print JSON."""

    def show(self, facts: Any, text: str) -> None:
        """Print the facts as JSON if --json is given, else the text."""
        print(json_module.dumps(plain(facts), indent=1, default=str) if self.json else text)


@dataclass(frozen=True, kw_only=True)
class Tabled(Printed):
    """A command that prints a table, and writes it."""

    kept: ClassVar[str] = "intermediate results are stored in"  # what the store has of it; "" for nothing
    out: Table | None = None
    """Write the table too: .csv, .parquet or .json."""

    def show_table(self, facts: Any, text: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """As `show`; the rows go to the file if one is named. The last line of the text says where the result is."""
        if self.out is not None:
            save_table(self.out, rows)
        self.show(facts, f"{text}\n{place_of(self, self.kept)}")


def place_of(command: Any, stored: str) -> str:
    """Where the result of a command is: the file that was written, or how to get one after the store with what is
    `stored` there."""
    if command.out is not None:
        return f"written: {command.out}"
    store = [f"{stored} {command.open_store().root}"] if stored and isinstance(command, Stored) else []
    return "; ".join([*store, "--out FILE writes a file"])


def plain(facts: Any) -> Any:
    """The same with null for numbers that are not finite, which JSON has not."""
    if isinstance(facts, dict):
        return {name: plain(value) for name, value in facts.items()}
    if isinstance(facts, (list, tuple)):
        return [plain(value) for value in facts]
    return None if isinstance(facts, float) and not math.isfinite(facts) else facts


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A command that reads or writes a store."""

    store: str | None = None
    """The store: a folder or URL; $WHENCE_CACHE or your cache folder by default."""

    def open_store(self) -> "Store":
        from whence.cache import Store

        return Store(self.store)


@dataclass(frozen=True, kw_only=True)
class DataOptions(Loading, Columns, Stored):
    """Training data, and how and where models run."""

    data: str = "language-reference"
    """language-reference, biographies, a file (.jsonl, .txt, .csv, .parquet, .npy, .bin), a folder of files or of
    images, or a hub name."""
    length: Count | None = None
    """Tokens at which texts are cut: 128, or as many as the model reads if these are fewer, by default."""
    document_end: int | None = None
    """Token that ends documents, of a file of tokens; the tokenizer's end of text by default."""
    memory: Size | None = None
    """Most memory to use at once, such as 4GB; half of what is free by default."""
    positions: Count | None = None
    """Positions in a batch; from the memory by default."""
    cluster: Workers = "inline"
    """inline, local:2, dask:ADDRESS or slurm:FILE."""
    log: Path | None = None
    """Append a line of JSON for every partition that is computed."""
    quiet: bool = False
    """Show no progress bars."""
    reference: str | None = None
    """The model before training on preferences, for data with prompt, chosen and rejected (DPO)."""
    beta: Positive = 0.1
    """DPO's inverse temperature in that training."""
    no_check: bool = False
    """Do not check the model on a few examples first; results then say that they are unchecked."""

    def load_named(self, name: str, sites: tuple[str, ...] = ("*",)) -> "Loaded":
        """A model by name with its data. Raises ModelError, DataError or UsageError when one cannot be loaded."""
        import torch

        from whence.cache import Classification, LanguageModelling, TrainedModel, tasks
        from whence.inputs import load_data, load_model
        from whence.pretrained import context_of, form_of, image_reader

        if name in EMBEDDED and self.data not in EMBEDDED:
            say(f"The model is the embedded {name}, which has not read {self.data}; --model names your own.")
        elif name not in EMBEDDED and self.data in EMBEDDED:
            say(f"The data are the embedded {self.data}; --data names what {name} was trained on.")
        store, unchecked = self.open_store(), cast(Any, {"check": False} if self.no_check else {})
        model, vocabulary = load_model(name, store, quiet=self.quiet, loading=self)
        reader = image_reader(name, self) if form_of(model) == "images" else vocabulary
        corpus = load_data(
            self.data, reader, length=self.length, context=context_of(model), columns=self.data_columns,
            form=form_of(model), end=self.document_end,
        )  # fmt: skip
        of_form: dict[str, Any] = {
            "masked": tasks.MaskedLanguageModelling(), "pairs": tasks.EncoderDecoder(), "classes": Classification()
        }  # fmt: skip
        task = Classification() if corpus.vocabulary is None else of_form.get(corpus.form, LanguageModelling())
        train = corpus.train
        if "input_ids_1" in train.columns:
            task, train = tasks.DPO(self.beta), self._against_reference(train, store)
        trained = TrainedModel(
            model, train, task,
            sites=list(sites), store=store, device=self.device,
            dtype=None if self.dtype is None else getattr(torch, self.dtype), memory=read_bytes(self.memory),
            positions=self.positions, quiet=self.quiet, cluster=self.cluster,
            log=None if self.log is None else str(self.log), **unchecked,
        )  # fmt: skip
        place, where = Path(name), Path(self.data)
        store.labels[trained.fingerprint()] = str(place.resolve()) if place.exists() else name
        store.labels[train.fingerprint] = str(where.resolve()) if where.exists() else self.data
        return Loaded(trained, corpus)

    def _against_reference(self, pairs: "Examples", store: "Store") -> "Examples":
        from whence.cache import tasks
        from whence.inputs import load_model

        if self.reference is None:
            raise UsageError(
                f"{self.data} has preferences, which are trained against a reference.",
                "Give --reference MODEL, the model before that training, or texts.",
            )
        return tasks.with_reference(pairs, load_model(self.reference, store, quiet=self.quiet, loading=self)[0])


@dataclass(frozen=True, kw_only=True)
class ModelOptions(DataOptions):
    """Model, data, and where they run."""

    model: str = "demo"
    """demo, biographies, a folder with a model or with adapters (PEFT), a .gguf file, or a hub name."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """A trained model and its data."""

    trained: "TrainedModel"
    corpus: "Corpus"

    @property
    def train(self) -> "Examples":
        return self.trained.train

    @property
    def store(self) -> "Store":
        assert self.trained.store is not None  # a command has one
        return self.trained.store

    @cached_property
    def titled(self) -> "Titled":
        """What is known about the training examples."""
        return Titled(self.train.ids, self.train.about)

    @property
    def tokens(self) -> dict[str, Any]:
        """How places in the data become text: tokens and their column; those of images have none."""
        words = self.corpus.vocabulary
        return {
            "decode": None if words is None else words.decode,
            "column": "input_ids" if "input_ids" in self.train.columns else "x",
        }


@dataclass(frozen=True, eq=False)
class Titled:
    """What results say about examples: document, title and the beginning of the text, by id."""

    ids: "np.ndarray"
    about: Mapping[str, Sequence[Any]]

    @cached_property
    def rows(self) -> dict[int, int]:
        return {int(i): row for row, i in enumerate(self.ids)}

    @cached_property
    def documents(self) -> dict[int, str]:
        """The data's own names of the texts that examples are or are pieces of, by id, where they are others."""
        own = self.about.get("document", self.ids)
        return {int(i): str(name) for i, name in zip(self.ids, own) if name != i}

    def title(self, identity: int) -> str:
        """The title of an example, or the beginning of its text, or its id."""
        for name in ("title", "text"):
            if name in self.about:
                return beginning(self.about[name][self.rows[identity]], 60)
        return f"example {identity}"

    def line(self, identity: int, nats: float) -> dict[str, Any]:
        """An example with a value: what a list has of it. `document`, the file's own id, if it is another."""
        about, row = self.about, self.rows[identity]
        own = about["document"][row] if "document" in about else identity
        text = {"text": beginning(about["text"][row], 80)} if "text" in about else {}
        named = {"document": own} if own != identity else {}
        return {"id": identity, **named, "title": self.title(identity), **text, "nats": nats}

    def columns(self, ids: Any) -> dict[str, list[Any]]:
        """Document, title and beginning of the text of these ids, where they are known."""
        rows = [self.rows[int(i)] for i in ids]
        known = [name for name in ("document", "title", "text") if name in self.about]
        found: dict[str, list[Any]] = {name: [self.about[name][row] for row in rows] for name in known}
        return {n: v if n == "document" else [beginning(text, 80) for text in v] for n, v in found.items()}


def beginning(text: Any, characters: int) -> str:
    """The beginning of a text, in one line."""
    return " ".join(str(text)[: 4 * characters].split())[:characters]


def read_bytes(text: str | None, option: str = "--memory") -> int | None:
    """4GB, 500 MiB or 1e9 as a number of bytes; None stays None. Raises UsageError for other texts."""
    found = None if text is None else amount(text, SIZES)
    if text is not None and found is None:
        raise UsageError(f"{option} cannot be {text!r}.", "Write it as 4GB or 500MB.")
    return None if found is None else int(found)


def read_seconds(text: str | None, option: str) -> float | None:
    """30d, 12h or 90s as seconds; None stays None. Raises UsageError for other texts."""
    found = None if text is None else amount(text, AGES)
    if text is not None and found is None:
        raise UsageError(f"{option} cannot be {text!r}.", "Write it as 30d or 12h.")
    return found
