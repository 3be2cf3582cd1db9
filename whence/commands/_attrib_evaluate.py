"""`whence attrib evaluate` and `whence attrib probe`: whether scores are right, and their properties."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from whence.cache.errors import UsageError
from whence.options import Count, Device, Dtype

from ._problem import ProblemOptions
from ._queries import QueryOptions
from ._shared import ModelOptions, Stored, Tabled

if TYPE_CHECKING:
    from whence.cache import Examples, Store

Test = Literal["lds", "leave-out", "documents", "qld", "brittleness", "recall", "pbrf", "mislabelled"]


@dataclass(frozen=True)
class Evaluate(ProblemOptions, Stored, Tabled):
    """Evaluate attribution methods by retraining, by optimisation, and by planted answers.

    lds: rank correlation of summed scores with models retrained on half of the data; leave-out: the same, leaving
    out 5 %; documents: leaving out one topic. qld: rise of a query's loss without its top 1 %, above random removal;
    brittleness: fall of its log-probability without its top 5 %. recall: share of planted facts that are found. pbrf:
    correlation with the proximal Bregman response. mislabelled: flipped labels found by self-influence. Retrained
    models stay in the store.

    --scores and --bank, keys of your own scores and of your own retrained models in the store, give their LDS.

    Example:

        whence attrib evaluate --on digits --tests lds mislabelled --methods identity ekfac cg
    """

    on: str = "digits"
    """Embedded data to train and retrain a small model on: digits, finetuned (a small transformer, pretrained on most
    of the Python language reference and fine-tuned on other passages, 4 epochs), finetuned-smooth (with a larger eps of
    Adam), finetuned-long (12 epochs), finetuned-sgd, finetuned-facts (one that has read biographies, fine-tuned on
    others and queried about them), images (memorised), language (trained from scratch: the order of the examples
    changes the model more than most examples do), facts. Or a Python file of your own (docs/models.md)."""
    data: str | None = None
    """Data of a problem of your own, in place of its `data()`."""
    tests: tuple[Test, ...] = ("lds",)
    """Which tests."""
    methods: tuple[str, ...] = ("identity", "ekfac", "cg")
    """Names of methods; "all" for every one that applies."""
    damping: float | None = None
    """Damping of all methods that have one, as a multiple of the mean eigenvalue; by default that of the training where
    its run is recorded (finetuned and its like), else 0.1."""
    subsets: Count = 48
    """Subsets to retrain on, for lds and leave-out."""
    scores: str | None = None
    """Key of pairwise scores in the store, evaluated with --bank."""
    bank: str | None = None
    """Key of a bank in the store that measured the queries, in the order of the scores."""
    curve: Path | None = None
    """Folder for the curves of mislabelled examples."""
    device: Device | None = None
    """The device of the models: cpu, cuda, cuda:1."""
    dtype: Dtype | None = None
    """Type of the model's parameters in attribution; float32 by default."""

    def run(self) -> None:
        from whence.problems.judge import HEAD, judge

        store = self.open_store()
        if (self.scores is None) != (self.bank is None):
            raise UsageError(
                "Scores are evaluated with a bank, and a bank with scores.", "Give both --scores and --bank."
            )
        if self.scores is not None and self.bank is not None:
            self._stored(store, self.scores, self.bank)
            return
        names = None if "all" in self.methods else list(self.methods)
        problem = replace(self.problem(), device=self.device, dtype=self.dtype)
        rows = judge(
            problem, self.tests, names, damping=self.damping, subsets=self.subsets, store=store, curve=self.curve,
            quiet=self.json,
        )  # fmt: skip
        lines = [HEAD, *map(str, rows)]
        if self.curve is not None and "mislabelled" in self.tests:
            lines.append(f"curves: {self.curve}")
        table = [row._asdict() for row in rows]
        self.show_table(table, "\n".join(lines), table)

    def _stored(self, store: "Store", scores: str, bank: str) -> None:
        from whence.attrib.evaluate import lds
        from whence.cache.retrain.retrained import retrained_from

        found = lds(stored_scores(store, scores, bank), retrained_from(store.get(bank)))
        values = {"mean": found.value, **asdict(found), "per_query": found.per_query.tolist()}
        self.show_table(values, str(found), [values])


def stored_scores(store: "Store", scores: str, bank: str):
    """Pairwise scores of the store as [query, train], queries named as the bank's points are."""
    import xarray

    entry, points = store.get(scores), store.get(bank).about["point_ids"]
    values = entry.read("values")
    if values.ndim == 3:  # stored by training example
        values = values.sum(2).T
    queries = entry.about.get("query", points)
    if values.shape != (len(queries), len(entry.about["train"])):
        raise UsageError(
            f"Scores of shape {list(values.shape)} do not fit a bank of {len(points)} points.",
            "Give pairwise scores of the queries that the bank measured.",
        )
    coords = {"query": list(queries), "train": list(entry.about["train"])}
    return xarray.DataArray(values, dims=("query", "train"), coords=coords)


@dataclass(frozen=True, kw_only=True)
class Probe(QueryOptions, ModelOptions, Tabled):
    """Measure properties of influence: its tail, its layers, and its dependence on word order.

    tail: exponent of a power law through the largest influences of each query, and whether it fits. layers: share of
    the influence per layer. wordorder: influence of invented facts in other wordings, the reversed order among them.
    errors: standard errors from sampled labels and from half of the data, and how many of the first ten ranks are
    unstable under them. Only wordorder needs a language model.

    Example:

        whence attrib probe --model demo --data language-reference --probes tail layers
        whence attrib probe --model MODEL --data FILE --queries queries.jsonl --probes tail errors
    """

    probes: tuple[Literal["tail", "layers", "wordorder", "errors"], ...] = ("tail", "layers", "wordorder")
    """The properties to measure."""
    sites: tuple[str, ...] = ("*.mlp.*",)
    """Which linear maps, by glob."""
    first: Count | None = 4
    """How many queries, the first ones."""
    limit: Count = 256
    """Training examples, the first of the data's own."""

    def run(self) -> None:
        from whence.attrib import EKFAC
        from whence.attrib.evaluate import error_bars
        from whence.attrib.evaluate.probes import by_layer, fictional_facts, power_law, word_order

        loaded = self.load_named(self.model, self.sites)
        queries, measure = self.asked_of(loaded)
        words = loaded.corpus.vocabulary
        if "wordorder" in self.probes and (words is None or not loaded.corpus.worded):
            raise UsageError("wordorder asks a language model about facts.", "Give --probes tail layers errors.")
        train = loaded.train.select(slice(0, self.limit))
        trained = loaded.trained.replace(train=train, quiet=self.quiet or self.json)
        factors = EKFAC().fit(trained)
        factors = factors if measure is None else factors.measuring(measure)
        found: dict[str, object] = {}
        rows: list[dict[str, object]] = []
        if {"tail", "layers"} & set(self.probes):
            scores = factors.score(queries, per_site=True)
            if "tail" in self.probes:
                whole = scores.sum("site").values
                tails = {q: power_law(row) for q, row in zip(_titles(queries), whole)}
                found["tail"] = {q: str(tail) for q, tail in tails.items()}
                rows += [{"probe": "tail", "of": q, **tail._asdict()} for q, tail in tails.items()]
            if "layers" in self.probes:
                parts = by_layer(scores).mean("query")
                shares = {str(k): round(float(v), 4) for k, v in zip(parts["layer"].values, parts.values)}
                found["layers"] = shares
                rows += [{"probe": "layers", "of": k, "value": v} for k, v in shares.items()]
        if "wordorder" in self.probes and words is not None:
            forms = word_order(factors, words.encode, fictional_facts()).mean("fact")
            orders = {str(k): float(f"{v:.3g}") for k, v in zip(forms["form"].values, forms.values)}
            found["wordorder"] = orders
            rows += [{"probe": "wordorder", "of": k, "value": v} for k, v in orders.items()]
        if "errors" in self.probes:
            found["errors"] = str(error_bars(EKFAC(), trained.replace(task=measure or trained.task), queries))
        lines = []
        for name, values in found.items():
            pairs = list(values.items()) if isinstance(values, dict) else [("", values)]
            lines += [name, *(f"  {key}: {value}" if key else f"  {value}" for key, value in pairs)]
        self.show_table(found, "\n".join(lines), rows)


def _titles(examples: "Examples") -> list[str]:
    """What each is called, with its id if another is called the same."""
    titles = [str(title) for title in examples.about.get("title", examples.ids)]
    return [t if titles.count(t) == 1 else f"{t} ({i})" for t, i in zip(titles, examples.ids)]


COMMANDS = {"evaluate": Evaluate, "probe": Probe}
