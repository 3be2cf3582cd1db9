"""`whence attrib evaluate` and `whence attrib probe`: are the scores right, and what are they like."""

import json as json_module
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from whence.cache import Examples, Store, UsageError

from ._attrib_job import StorePath, first_of

Test = Literal["lds", "leave-out", "qld", "brittleness", "recall", "pbrf", "mislabelled"]


@dataclass(frozen=True)
class Evaluate:
    """Judge attribution methods by retraining, by optimisation, and by planted answers.

    lds: rank correlation of summed scores with models retrained on half of the data; leave-out: the same, leaving
    out 5 %. qld: rise of a query's loss without its top 1 %, above random removal; brittleness: fall of its
    log-probability without its top 5 %. recall: planted facts found. pbrf: correlation with the proximal Bregman
    response. mislabelled: flipped labels found by self-influence. Models that were retrained once stay in the store.

    With --scores and --bank, keys of your own scores and your own retrained models in the store, their LDS.

    Example:

        whence attrib evaluate --on digits --tests lds mislabelled --methods identity ekfac cg
    """

    on: Literal["digits", "language", "facts"] = "digits"
    """Embedded data to train and retrain a small model on."""
    tests: tuple[Test, ...] = ("lds",)
    """What to hold the scores against."""
    methods: tuple[str, ...] = ("identity", "ekfac", "cg")
    """Names of methods; "all" for every one that applies."""
    subsets: int = 48
    """Subsets to retrain on, for lds and leave-out."""
    scores: str | None = None
    """Key of pairwise scores in the store, to be judged with --bank."""
    bank: str | None = None
    """Key of a bank in the store that measured the queries, in the order of the scores."""
    curve: Path | None = None
    """Folder for the curves of mislabelled examples."""
    json: bool = False
    """Print JSON."""
    device: str | None = None
    """Where the model runs: cpu, cuda, cuda:1."""
    store: StorePath = None

    def run(self) -> None:
        from whence.problems.judge import HEAD, judge
        from whence.problems.problem import PROBLEMS

        store = Store(self.store)
        if (self.scores is None) != (self.bank is None):
            raise UsageError("Scores are judged with a bank, and a bank with scores.", "Give both --scores and --bank.")
        if self.scores is not None and self.bank is not None:
            self._stored(store, self.scores, self.bank)
            return
        names = None if "all" in self.methods else list(self.methods)
        rows = judge(
            PROBLEMS[self.on](), self.tests, names, subsets=self.subsets, store=store, curve=self.curve, quiet=self.json
        )
        if self.json:
            print(json_module.dumps([row._asdict() for row in rows], indent=1))
            return
        print(HEAD)
        for row in rows:
            print(row)
        if self.curve is not None and "mislabelled" in self.tests:
            print(f"curves: {self.curve}")

    def _stored(self, store: Store, scores: str, bank: str) -> None:
        from whence.attrib.evaluate import lds
        from whence.cache.retrain.retrained import retrained_from

        found = lds(stored_scores(store, scores, bank), retrained_from(store.get(bank)))
        values = {"mean": found.value, **asdict(found), "per_query": found.per_query.tolist()}
        print(json_module.dumps(values) if self.json else found)


def stored_scores(store: Store, scores: str, bank: str):
    """Pairwise scores of the store as [query, train], queries named as the bank's points are."""
    import xarray

    entry, points = store.get(scores), store.get(bank).about["point_ids"]
    values = entry.read("values")
    if values.ndim == 3:  # kept by training example
        values = values.sum(2).T
    queries = entry.about.get("query", points)
    if values.shape != (len(queries), len(entry.about["train"])):
        raise UsageError(
            f"Scores of shape {list(values.shape)} do not fit a bank of {len(points)} points.",
            "Give pairwise scores of the very queries that the bank measured.",
        )
    coords = {"query": list(queries), "train": list(entry.about["train"])}
    return xarray.DataArray(values, dims=("query", "train"), coords=coords)


@dataclass(frozen=True)
class Probe:
    """Look at what influence is like: its tail, its layers, and whether it sees past word order.

    tail: exponent of a power law through the largest influences of each query, and whether it fits. layers: share of
    the influence that each layer carries. wordorder: influence of invented facts in other wordings, among them
    the same words the other way round. errors: standard errors from drawn labels and from half of the data, and how
    many places among the first ten they leave unstable.

    Example:

        whence attrib probe --model demo --data language-reference --probes tail layers
    """

    probes: tuple[Literal["tail", "layers", "wordorder", "errors"], ...] = ("tail", "layers", "wordorder")
    """What to look at."""
    model: str = "demo"
    """demo, biographies, a hub name or a folder."""
    data: str = "language-reference"
    """language-reference, biographies, a file or a hub data set."""
    sites: tuple[str, ...] = ("*.mlp.*",)
    """Which linear maps, by glob."""
    queries: int = 4
    """Queries, the first of the data's own."""
    limit: int = 256
    """Training examples, the first of the data's own."""
    json: bool = False
    """Print JSON."""
    device: str | None = None
    """Where the model runs: cpu, cuda, cuda:1."""
    store: StorePath = None

    def run(self) -> None:
        from whence.attrib import EKFAC, error_bars
        from whence.attrib.evaluate.probes import by_layer, fictional_facts, power_law, word_order
        from whence.cache import LanguageModelling, TrainedModel
        from whence.inputs import load_data, load_model

        store = Store(self.store)
        model, words = load_model(self.model, store, quiet=self.json)
        corpus = load_data(self.data, words)
        train, queries = first_of(corpus.train, self.limit), first_of(corpus.queries, self.queries)
        if words is None or not len(queries):
            raise UsageError("Probes need a language model and queries.", "Give text with queries of its own.")
        trained = TrainedModel(
            model, train, LanguageModelling(), sites=list(self.sites), store=store, device=self.device, quiet=self.json
        )
        factors = EKFAC().fit(trained)
        found: dict[str, object] = {}
        if {"tail", "layers"} & set(self.probes):
            scores = factors.score(queries, per_site=True)
            if "tail" in self.probes:
                whole = scores.sum("site").values
                found["tail"] = {q: str(power_law(row)) for q, row in zip(_titles(queries), whole)}
            if "layers" in self.probes:
                parts = by_layer(scores).mean("query")
                found["layers"] = {str(k): round(float(v), 4) for k, v in zip(parts["layer"].values, parts.values)}
        if "wordorder" in self.probes:
            forms = word_order(factors, words.encode, fictional_facts()).mean("fact")
            found["wordorder"] = {str(k): float(f"{v:.3g}") for k, v in zip(forms["form"].values, forms.values)}
        if "errors" in self.probes:
            found["errors"] = str(error_bars(EKFAC(), trained, queries))
        if self.json:
            print(json_module.dumps(found, indent=1))
            return
        for name, values in found.items():
            lines = values.items() if isinstance(values, dict) else [("", values)]
            print("\n".join([name, *(f"  {key}: {value}" if key else f"  {value}" for key, value in lines)]))


def _titles(examples: Examples) -> list[str]:
    return [str(title) for title in examples.about.get("title", examples.ids)]


COMMANDS = {"evaluate": Evaluate, "probe": Probe}
