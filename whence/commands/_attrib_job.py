"""What the commands of `attrib` share: the trained model, the fitted method, queries, and how results are shown."""

import json as json_module
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro

from whence.cache.errors import UsageError

from ._methods import MethodOptions

if TYPE_CHECKING:
    from whence.attrib import Factors, Fitted
    from whence.cache import Examples, Store, TrainedModel
    from whence.corpora import Corpus

StorePath = Annotated[str | None, tyro.conf.arg(help="The store; $WHENCE_CACHE or your cache folder by default.")]
Dtype = Literal["float32", "bfloat16", "float16", "float64"]
Precision = Literal["float32", "tf32", "bfloat16"]
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Model, data, and where they run."""

    model: str = "demo"
    """demo, biographies, a hub name, or a folder with a model."""
    data: str = "language-reference"
    """language-reference, biographies, a .txt, .jsonl or .parquet file, or a hub name."""
    sites: tuple[str, ...] = ("*.mlp.*",)
    """Layers that are attributed, by name; "*" for every linear layer."""
    memory: str | None = None
    """Most memory to use at once, such as 4GB; half of what is free by default."""
    positions: int | None = None
    """Positions in a batch; from the memory by default."""
    device: str | None = None
    """Where the model runs: cpu, cuda, cuda:1."""
    dtype: Dtype | None = None
    """Type of the model's parameters; as loaded by default."""
    cluster: str = "inline"
    """inline, local:2, dask:ADDRESS or slurm:FILE."""
    log: Path | None = None
    """Append a line of JSON for every partition that is computed."""
    skip_nan: bool = False
    """Leave out examples whose gradients are not finite, after naming them."""
    store: StorePath = None
    quiet: bool = False
    """No progress bars."""

    def trained(self) -> "tuple[TrainedModel, Corpus]":
        import torch

        from whence.attrib import finite_examples
        from whence.cache import Classification, LanguageModelling, Store, TrainedModel
        from whence.inputs import load_data, load_model

        store = Store(self.store)
        model, vocabulary = load_model(self.model, store, quiet=self.quiet)
        corpus = load_data(self.data, vocabulary)
        trained = TrainedModel(
            model, corpus.train, Classification() if corpus.vocabulary is None else LanguageModelling(),
            sites=list(self.sites), store=store, device=self.device,
            dtype=None if self.dtype is None else getattr(torch, self.dtype), memory=read_bytes(self.memory),
            positions=self.positions, quiet=self.quiet, cluster=self.cluster,
            log=None if self.log is None else str(self.log),
        )  # fmt: skip
        if self.skip_nan:
            trained = trained.replace(train=finite_examples(trained))
        return trained, corpus


@dataclass(frozen=True, kw_only=True)
class Job(MethodOptions, ModelOptions):
    """A trained model and an attribution method."""

    def load(self) -> "Loaded":
        trained, corpus = self.trained()
        return Loaded(self, trained, corpus)


@dataclass(frozen=True)
class Loaded:
    """A job's trained model and its data."""

    job: Job
    trained: "TrainedModel"
    corpus: "Corpus"

    @property
    def train(self) -> "Examples":
        return self.trained.train

    @property
    def store(self) -> "Store":
        assert self.trained.store is not None  # a job has one
        return self.trained.store

    @cached_property
    def fitted(self) -> "Fitted":
        """The method on the training examples: from the store, resumed, or fitted now."""
        return self.job.build().fit(self.trained)

    @property
    def factors(self) -> "Factors":
        """The fitted method as curvature. Raises UsageError for a method that fits none."""
        from whence.attrib import Factors

        if isinstance(self.fitted, Factors):
            return self.fitted
        raise UsageError(
            f"{self.job.method} fits no curvature, which this needs.",
            "Use --method ekfac, kfac, shampoo, diagonal, identity, cg, astra, lissa or datainf.",
        )

    def title(self, identity: int) -> str:
        return title_of(self.train, identity)


@dataclass(frozen=True, kw_only=True)
class Questions:
    """The queries."""

    prompt: str | None = None
    """A query of your own: its prompt."""
    completion: str | None = None
    """... and its completion. Begin it with the space that it needs."""
    queries: Path | None = None
    """A .jsonl file of {"prompt": ..., "completion": ...}. By default the data's own queries."""
    first: int | None = None
    """Only the first queries."""

    def read_queries(self, corpus: "Corpus") -> "Examples":
        """Raises UsageError for half a query, or if there is none."""
        found = self._given(corpus) or corpus.queries
        if len(found) == 0:
            raise UsageError("There is no query.", "Give --prompt and --completion, or --queries FILE.")
        return found.select(slice(0, self.first)) if self.first else found

    def _given(self, corpus: "Corpus") -> "Examples | None":
        from whence.corpora.corpus import query_examples

        if self.prompt is None and self.completion is None and self.queries is None:
            return None
        if corpus.vocabulary is None:
            raise UsageError("These data are not text.", "Use the data's own queries.")
        if self.queries is not None:
            pairs = read_pairs(self.queries)
        elif self.prompt is None or self.completion is None:
            raise UsageError("A query has a prompt and a completion.", "Give both --prompt and --completion.")
        else:
            pairs = [(self.prompt, self.completion)]
        prompts, completions = zip(*pairs)
        return query_examples(prompts, completions, corpus.vocabulary)


def read_pairs(path: Path) -> list[tuple[str, str]]:
    """Prompts and completions of a .jsonl file. Raises UsageError naming the line that is wrong."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}).", "Give a .jsonl file.") from error
    pairs = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json_module.loads(line)
            pairs.append((str(row["prompt"]), str(row["completion"])))
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"{path}, line {number} is no query: {error!r}.", 'Write {"prompt": "...", "completion": " ..."}.'
            ) from error
    if not pairs:
        raise UsageError(f"{path} has no query.", 'Write one {"prompt": "...", "completion": " ..."} per line.')
    return pairs


def read_bytes(text: str | None) -> int | None:
    """4GB, 500 MB, 1e9 as a number of bytes. Raises UsageError."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([kmgt]?)i?b?\s*", text.lower())
    try:
        return int(float(match[1]) * UNITS[match[2]])  # type: ignore[index]
    except (TypeError, ValueError) as error:
        raise UsageError(f"{text!r} is not an amount of memory.", "Write it as 4GB or 500MB.") from error


def title_of(examples: "Examples", identity: int) -> str:
    """What people call an example."""
    row = int(examples.rows_of([identity])[0])
    for name in ("title", "text"):
        if name in examples.about:
            return " ".join(str(examples.about[name][row]).split())[:60]
    return f"example {identity}"


def query_text(queries: "Examples", row: int) -> str:
    about = queries.about
    if "prompt" in about and "completion" in about:
        return f"{about['prompt'][row]} [{str(about['completion'][row]).strip()}]"
    return title_of(queries, int(queries.ids[row]))


def lists(loaded: Loaded, queries: "Examples", best: dict[str, tuple[np.ndarray, np.ndarray]]) -> list[dict[str, Any]]:
    """name -> (ids [q k], values [q k]) as one entry per query, with titles."""
    found = []
    for row in range(len(queries)):
        entry: dict[str, Any] = {"query": int(queries.ids[row]), "asked": query_text(queries, row)}
        for name, (ids, values) in best.items():
            entry[name] = [
                {"id": int(i), "title": loaded.title(int(i)), "nats": float(v)}
                for i, v in zip(ids[row], values[row])
                if np.isfinite(v)
            ]
        found.append(entry)
    return found


def top_of(scores: Any, k: int, names: tuple[str, ...] = ("helpful", "harmful")) -> dict[str, Any]:
    """name -> (ids, values) [q k]: the k largest and smallest scores of each query."""
    order = np.argsort(-scores.values, axis=1, kind="stable")
    rows = {"helpful": order[:, :k], "harmful": order[:, ::-1][:, :k]}
    ids = scores["train"].values
    return {name: (ids[rows[name]], np.take_along_axis(scores.values, rows[name], 1)) for name in names}


def show_lists(entries: list[dict[str, Any]]) -> None:
    """Lists as text: the query, then the examples that help and harm it."""
    for entry in entries:
        print(f"\n{entry['asked']}")
        for name in (n for n in entry if n not in ("query", "asked")):
            print(f"  {name}")
            for line in entry[name]:
                print(f"    {line['nats']:+.3e}  {line['id']:>10}  {line['title']}".rstrip())
                for part in line.get("atoms", ()):
                    print(f"        {part['nats']:+.3e}  {part['id']:>6}  {part['title']}")


def save_scores(path: Path, scores: Any) -> None:
    """A DataArray as .npz (values, coordinates and attributes), .csv or .parquet (one row per query and example)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = scores.rename(scores.name or "value")
    if path.suffix == ".npz":
        coords: dict[str, Any] = {str(name): np.asarray(scores[name].values) for name in scores.coords}
        attrs = np.array(json_module.dumps(dict(scores.attrs), default=str))
        np.savez(path, values=scores.values, attrs=attrs, **coords)
    elif path.suffix == ".csv":
        table.to_dataframe().reset_index().to_csv(path, index=False)
    elif path.suffix == ".parquet":
        table.to_dataframe().reset_index().to_parquet(path, index=False)
    else:
        raise UsageError(f"{path} has no known ending.", "Name it .npz, .csv or .parquet.")


def print_json(value: Any) -> None:
    print(json_module.dumps(value, indent=1, default=str))


def first_of(examples: "Examples", count: int) -> "Examples":
    return examples.select(range(min(count, len(examples))))
