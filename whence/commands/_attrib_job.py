"""What the commands of `attrib` share: model, data, sites, factors, queries, and how results are shown."""

import json as json_module
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro

from whence.cache.errors import UsageError

if TYPE_CHECKING:
    from whence.attrib import Factors, FitOptions
    from whence.cache import Examples, Sites, Store, Task
    from whence.corpora import Corpus

Root = Annotated[str | None, tyro.conf.arg(help="The store; $WHENCE_CACHE or your cache folder by default.")]
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


@dataclass(frozen=True, kw_only=True)
class Job:
    """Model, data and curvature."""

    model: str = "demo"
    """demo, biographies, a hub name, or a folder with a model."""
    data: str = "language-reference"
    """language-reference, biographies, a .txt, .jsonl or .parquet file, or a hub name."""
    sites: tuple[str, ...] = ("*.mlp.*",)
    """Layers to look at, by clean name; "*" for every linear map."""
    damping: float = 0.1
    """Times each site's mean eigenvalue."""
    seed: int = 0
    """Of the labels drawn for the curvature."""
    memory: str | None = None
    """Most to hold at once, such as 4GB; half of what is free by default."""
    positions: int | None = None
    """Positions in a batch; from the memory by default."""
    device: str | None = None
    """Where the model runs: cpu, cuda, cuda:1."""
    cluster: str = "inline"
    """inline, local:2, dask:ADDRESS or slurm:FILE."""
    log: Path | None = None
    """Append a line of JSON for every partition that is computed."""
    skip_nan: bool = False
    """Leave out examples whose gradients are not finite, after naming them."""
    root: Root = None
    quiet: bool = False
    """No progress bars."""

    def load(self) -> "Loaded":
        from whence.cache import Classification, LanguageModelling, Store, find_sites
        from whence.inputs import load_data, load_model

        store = Store(self.root)
        model, vocabulary = load_model(self.model, store, quiet=self.quiet)
        if self.device is not None:
            model.to(self.device)
        corpus = load_data(self.data, vocabulary)
        task: Any = Classification() if corpus.vocabulary is None else LanguageModelling()
        sites = find_sites(model, list(self.sites), quiet=self.quiet)
        loaded = Loaded(self, store, model, corpus, task, sites, corpus.train)
        return loaded.without_nan() if self.skip_nan else loaded

    @property
    def options(self) -> "FitOptions":
        from whence.attrib import FitOptions

        return FitOptions(
            memory=read_bytes(self.memory), positions=self.positions, quiet=self.quiet, device=self.device,
            cluster=self.cluster, log=None if self.log is None else str(self.log),
        )  # fmt: skip


@dataclass(frozen=True)
class Loaded:
    """A job's model and data."""

    job: Job
    store: "Store"
    model: Any
    corpus: "Corpus"
    task: "Task"
    sites: "Sites"
    train: "Examples"

    def without_nan(self) -> "Loaded":
        from dataclasses import replace

        from whence import attrib

        kept = attrib.finite_examples(self.model, self.task, self.train, self.sites, options=self.job.options)
        return replace(self, train=kept)

    @cached_property
    def factors(self) -> "Factors":
        """EK-FAC on the training examples: from the store, resumed, or fitted now."""
        from whence import attrib

        method = attrib.EKFAC(damping=attrib.Damping(self.job.damping), seed=self.job.seed)
        return method.fit(
            self.model, self.task, self.train, sites=self.sites, store=self.store, options=self.job.options
        )

    @property
    def scoring(self) -> tuple["Factors", Any, "Task"]:
        """The three that every score begins with."""
        return self.factors, self.model, self.task

    def title(self, identity: int) -> str:
        return title_of(self.train, identity)


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What is asked about."""

    prompt: str | None = None
    """Ask about one completion of your own: its prompt."""
    completion: str | None = None
    """... and the completion. Begin it with the space it needs."""
    queries: Path | None = None
    """A .jsonl file of {"prompt": ..., "completion": ...}. By default the data's own queries."""
    first: int | None = None
    """Only the first queries."""

    def asked(self, corpus: "Corpus") -> "Examples":
        """Raises UsageError for half a question, or where there is none."""
        found = self._given(corpus) or corpus.queries
        if len(found) == 0:
            raise UsageError("There is nothing to ask.", "Give --prompt and --completion, or --queries FILE.")
        return found.select(slice(0, self.first)) if self.first else found

    def _given(self, corpus: "Corpus") -> "Examples | None":
        from whence.corpora.corpus import query_examples

        if self.prompt is None and self.completion is None and self.queries is None:
            return None
        if corpus.vocabulary is None:
            raise UsageError("These data are no text to ask about.", "Ask about the data's own queries.")
        if self.queries is not None:
            pairs = read_pairs(self.queries)
        elif self.prompt is None or self.completion is None:
            raise UsageError("A question has two halves.", "Give both --prompt and --completion.")
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
        raise UsageError(f"{path} holds no query.", 'Write one {"prompt": "...", "completion": " ..."} a line.')
    return pairs


def read_bytes(text: str | None) -> int | None:
    """4GB, 500 MB, 1e9 as a number of bytes. Raises UsageError."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([kmgt]?)i?b?\s*", text.lower())
    try:
        return int(float(match[1]) * UNITS[match[2]])  # type: ignore[index]
    except (TypeError, ValueError) as error:
        raise UsageError(f"{text!r} is no amount of memory.", "Write it as 4GB or 500MB.") from error


def title_of(examples: "Examples", identity: int) -> str:
    """What people call an example."""
    row = int(examples.rows_of([identity])[0])
    for name in ("title", "text"):
        if name in examples.about:
            return " ".join(str(examples.about[name][row]).split())[:60]
    return f"example {identity}"


def asked_text(queries: "Examples", row: int) -> str:
    about = queries.about
    if "prompt" in about and "completion" in about:
        return f"{about['prompt'][row]} [{str(about['completion'][row]).strip()}]"
    return title_of(queries, int(queries.ids[row]))


def lists(loaded: Loaded, queries: "Examples", ends: dict[str, tuple[np.ndarray, np.ndarray]]) -> list[dict[str, Any]]:
    """name -> (ids [q k], values [q k]) as one entry a query, with titles."""
    found = []
    for row in range(len(queries)):
        entry: dict[str, Any] = {"query": int(queries.ids[row]), "asked": asked_text(queries, row)}
        for name, (ids, values) in ends.items():
            entry[name] = [
                {"id": int(i), "title": loaded.title(int(i)), "nats": float(v)}
                for i, v in zip(ids[row], values[row])
                if np.isfinite(v)
            ]
        found.append(entry)
    return found


def show_lists(entries: list[dict[str, Any]]) -> None:
    """Lists as text: what was asked, then who helped and who hindered."""
    for entry in entries:
        print(f"\n{entry['asked']}")
        for name in (n for n in entry if n not in ("query", "asked")):
            print(f"  {name}")
            for line in entry[name]:
                print(f"    {line['nats']:+.3e}  {line['id']:>10}  {line['title']}".rstrip())
                for part in line.get("atoms", ()):
                    print(f"        {part['nats']:+.3e}  {part['id']:>6}  {part['title']}")


def save_scores(path: Path, scores: Any) -> None:
    """A DataArray as .npz (its values, coordinates and attributes) or .csv (one row a query and example)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        coords: dict[str, Any] = {str(name): np.asarray(scores[name].values) for name in scores.coords}
        np.savez(
            path, values=scores.values, attrs=np.array(json_module.dumps(dict(scores.attrs), default=str)), **coords
        )
    elif path.suffix == ".csv":
        scores.rename(scores.name or "value").to_dataframe().reset_index().to_csv(path, index=False)
    else:
        raise UsageError(f"{path} has no known ending.", "Name it .npz or .csv.")


def print_json(value: Any) -> None:
    print(json_module.dumps(value, indent=1, default=str))


Precision = Literal["float32", "tf32", "bfloat16"]
