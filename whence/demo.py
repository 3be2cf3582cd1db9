"""The demo: which passages of the Python language reference taught a small transformer to say what it says, which atoms
of a dictionary carried that, and, on handwritten digits, what forgetting and condensing come to.

Models, factors, scores, dictionary, retrained networks and what every part of the report shows are each kept in the
store under what they were computed from. A second run finds the parts, opens the entries they stand on, and needs no
model.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from whence import attrib
from whence.attrib.report import Report, Table, coverage, nats, report, shown_passages
from whence.cache import Event, Examples, LanguageModelling, Sites, Store, find_sites, say
from whence.cache.store.store import human

from .corpora import Corpus, language_reference
from .corpora.corpus import query_examples
from .demo_atoms import AtomsPlan, Shown, atoms_of
from .demo_digits import CondensingPlan, ForgettingPlan, condensed, forgotten
from .demo_model import REFERENCE_SHAPE, REFERENCE_TRAINING
from .language_model import Shape, Training, continuation, model_inputs, trained_model
from .story import Atoms, Condensing, Forgetting, Story, plain, rebuilt

FORMAT = 3  # of the stored parts; raised when what they hold or how it is computed changes
# four beginnings in the reference's own words, four in ours
PROMPTS = (
    'In a generator function, the "return"',
    "There are two basic sequence types:",
    "When an exception is not handled",
    'The "not in" and "is" operations',
    "A *mapping* object maps *hashable* values",
    "A class statement defines",
    "Split the string at the first",
    "A function definition defines a function",
)


@dataclass(frozen=True)
class Plan:
    """What the demo computes. shown: passages a query; tokens: longest continuation."""

    corpus: Corpus
    shape: Shape = REFERENCE_SHAPE
    training: Training = REFERENCE_TRAINING
    prompts: Sequence[str] = PROMPTS
    pattern: str = "*.mlp.*"
    method: attrib.EKFAC = attrib.EKFAC()
    shown: int = 8
    tokens: int = 12

    atoms: AtomsPlan = AtomsPlan()
    forgetting: ForgettingPlan = ForgettingPlan()
    condensing: CondensingPlan = CondensingPlan()

    @property
    def inputs(self) -> dict[str, dict[str, Any]]:
        """The key of every part of the report."""
        influence = {
            "model": model_inputs(self.shape, self.training, self.corpus.train),
            "prompts": list(self.prompts),
            "sites": self.pattern,
            "method": {"name": self.method.name, **asdict(self.method)},
            "shown": self.shown,
            "tokens": self.tokens,
        }
        parts = {
            "influence": influence,
            "atoms": {**influence, "atoms": asdict(self.atoms)},
            "forgetting": asdict(self.forgetting),
            "condensing": asdict(self.condensing),
        }
        return {name: {"what": f"demo: {name}", "format": FORMAT, **inputs} for name, inputs in parts.items()}


def embedded_plan() -> Plan:
    """The demo of `whence demo`: everything on embedded data."""
    corpus = language_reference()
    assert corpus.vocabulary is not None  # a corpus of text
    return Plan(corpus, replace(REFERENCE_SHAPE, vocabulary=len(corpus.vocabulary)))


def demo(store: Store, out: str | Path = "out/report.html", plan: Plan | None = None, quiet: bool = False) -> Path:
    """Compute what is not in the store yet, write the report, and return its path."""
    began = time.monotonic()
    plan = plan or embedded_plan()
    bench = _Bench(plan, store, quiet)
    say(_planned(store, plan, out))
    makers: dict[str, Callable[[], Any]] = {
        "influence": bench.influence,
        "atoms": bench.atoms,
        "forgetting": lambda: forgotten(plan.forgetting, store, quiet),
        "condensing": lambda: condensed(plan.condensing, store),
    }
    parts = {name: _kept(store, plan.inputs[name], make) for name, make in makers.items()}
    story = Story(
        Report.from_json(json.dumps(parts["influence"][0])),
        rebuilt(Atoms, parts["atoms"][0]),
        rebuilt(Forgetting, parts["forgetting"][0]),
        rebuilt(Condensing, parts["condensing"][0]),
        {name: seconds for name, (_, seconds) in parts.items()},
    )
    seconds = time.monotonic() - began
    path = replace(story, influence=story.influence.with_tables(work_done(store, seconds))).save(out)
    for line in _summary(story.influence, store, path, time.monotonic() - began):
        say(line)
    return path


def _planned(store: Store, plan: Plan, out: str | Path) -> str:
    """What a run is going to do, in one line."""
    to_do = [name for name, inputs in plan.inputs.items() if not store.has("report", inputs)]
    read = [name for name in plan.inputs if name not in to_do]
    parts = [f"compute {', '.join(to_do)} (some minutes on two cores)"] if to_do else []
    parts += [f"read {', '.join(read)} from the cache"] if read else []
    return f"Plan: {'; '.join(parts)}; write {out}. Cache: {store.root}"


def _kept(store: Store, inputs: Mapping[str, Any], make: Callable[[], Any]) -> tuple[dict[str, Any], float]:
    """A part of the report as plain values, and the seconds that computing it took: from the store, where all that it
    stands on must still be, or made now and kept there."""
    if store.has("report", inputs):
        entry = store.open("report", inputs)
        for key in entry.about["stands on"]:
            store.get(key)
        return json.loads(bytes(entry.read("contents"))), float(entry.about["seconds"])
    began, before = time.monotonic(), len(store.events)
    document = json.dumps(plain(make()))
    seconds = time.monotonic() - began
    keys = list(dict.fromkeys(event.key for event in store.events[before:]))
    contents = np.frombuffer(document.encode(), np.uint8)
    store.put("report", inputs, {"contents": contents}, about={"stands on": keys, "seconds": seconds})
    return json.loads(document), seconds


@dataclass
class _Bench:
    """The model's part of the demo: what is needed is computed once, or read."""

    plan: Plan
    store: Store
    quiet: bool
    task: LanguageModelling = field(default_factory=LanguageModelling)

    @cached_property
    def model(self) -> nn.Module:
        plan = self.plan
        return trained_model(plan.shape, plan.training, plan.corpus.train, self.store, quiet=self.quiet)

    @cached_property
    def asked(self) -> tuple[Examples, np.ndarray]:
        return _asked(self.model, self.plan, self.task)

    @cached_property
    def sites(self) -> Sites:
        return find_sites(self.model, self.plan.pattern, quiet=self.quiet)

    @cached_property
    def factors(self) -> attrib.Factors:
        train = self.plan.corpus.train
        return self.plan.method.fit(
            self.model, self.task, train, sites=self.sites, store=self.store, options=self.options
        )

    @property
    def options(self) -> attrib.FitOptions:
        return attrib.FitOptions(quiet=self.quiet)

    def influence(self) -> Report:
        plan, corpus, (queries, likelihoods) = self.plan, self.plan.corpus, self.asked
        of = (self.factors, self.model, self.task, queries)
        scores = attrib.score(*of, corpus.train, store=self.store, per_site=True, options=self.options)
        seen = corpus.train.select(shown_passages(scores, plan.shown))
        size = len(corpus.train)
        tokens = attrib.token_scores(*of, seen, train_size=size, options=self.options)
        notes = {
            int(i): f"The model gives these {n} tokens a log-probability of {nats(float(value))} nats."
            for i, n, value in zip(queries.ids, map(len, queries.about["completion tokens"]), likelihoods)
        }
        millions = sum(p.numel() for p in self.model.parameters()) / 1e6
        lead = (
            f"A transformer of {millions:.1f} million parameters has read the "
            f"Python language reference {plan.training.epochs} times: {size:,} passages, {corpus.tokens:,} tokens. "
            f"Given the beginnings of {len(queries)} sentences, it went on with the coloured words. Below each are the "
            "passages that taught it those words, and those that speak for others."
        )
        return report(
            scores,
            replace(corpus, queries=queries),
            tokens=tokens,
            top=plan.shown,
            title="Which passages taught it to say that?",
            lead=lead,
            tables=[_model_table(self.store, plan, self.factors), coverage(self.sites)],
            notes=notes,
        )

    def atoms(self) -> Atoms:
        contents = self.store.open("report", self.plan.inputs["influence"]).read("contents")
        shown = Shown(
            Report.from_json(bytes(contents).decode()), self.factors, self.model, self.task, self.asked[0],
            self.plan.corpus, self.store, self.quiet,
        )  # fmt: skip
        return atoms_of(self.plan.atoms, shown)


def _asked(model: nn.Module, plan: Plan, task: LanguageModelling) -> tuple[Examples, np.ndarray]:
    """Prompts with the model's own continuations as queries, and the log-probabilities of those."""
    words = plan.corpus.vocabulary
    assert words is not None
    said = [continuation(model, words, prompt, plan.tokens) for prompt in plan.prompts]
    queries = query_examples(list(plan.prompts), said, words)
    pieces = [words.pieces(words.encode(text)) for text in said]
    queries = replace(queries, about={**queries.about, "completion tokens": pieces})
    with_grad = task.measurement(model, queries.batch(np.arange(len(queries))))
    return queries, with_grad.detach().numpy()


def _model_table(store: Store, plan: Plan, factors: attrib.Factors) -> Table:
    about = store.open("model", model_inputs(plan.shape, plan.training, plan.corpus.train)).about
    shape, training = plan.shape, plan.training
    damping = factors.damping
    rows = (
        ("Model", f"TransformerLens native, {shape.layers} layers, width {shape.width}, {shape.heads} heads"),
        ("Parameters", f"{about['parameters']:,}"),
        ("Vocabulary", f"{shape.vocabulary:,} byte pairs"),
        ("Trained", f"{training.epochs} epochs, AdamW, rate {training.rate:g}, {about['seconds']:.0f} s"),
        ("Loss", f"{about['losses'][0]:.2f} → {about['losses'][-1]:.2f} nats a token"),
        ("Weights", about["fingerprint"][:12]),
        (
            "Data",
            f"{len(plan.corpus.train):,} passages, {plan.corpus.tokens:,} tokens, {plan.corpus.train.fingerprint[:12]}",
        ),
        ("Curvature", f"{factors.method}, labels {plan.method.labels}, {human(factors.nbytes)}"),
        ("Damping", f"{damping.value:g} × mean eigenvalue" if damping.rule == "relative" else f"{damping.value:g}"),
    )
    return Table("Model and method", rows)


def work_done(store: Store, seconds: float) -> Table:
    """What this run computed and what came from the cache, from the store's log."""
    rows = []
    for event in _once(store.events):
        entry = _named_entry(store, event)
        source = {"hit": "cached", "built": "computed", "resumed": "resumed"}[event.what]
        rows.append((entry.name, event.key[:10], source, entry.size, f"{entry.seconds:.1f} s"))
    computed = sum(row[2] != "cached" for row in rows)
    note = f"{computed} computed, {len(rows) - computed} from the cache; {seconds:.1f} s in all. Cache: {store.root}"
    return Table("Computed and cached", tuple(rows), ("artefact", "key", "", "size", "time"), note)


def _once(events: Sequence[Event]) -> list[Event]:
    """One event an artefact: that it was built, or else the first time it was read."""
    found: dict[str, Event] = {}
    for event in events:
        if event.key not in found or event.what != "hit":
            found[event.key] = event
    return list(found.values())


class _Told(NamedTuple):
    name: str
    size: str
    seconds: float


def _named_entry(store: Store, event: Event) -> _Told:
    """What an event's artefact is called, its size, and the time it took: to compute, where the entry says so and
    that was now; else from its first byte to its last."""
    header = store.header(event.kind, event.key)
    inputs = header.inputs
    name = str(inputs.get("stage") or inputs.get("what") or inputs.get("method") or event.kind)
    seconds = event.seconds if event.what == "hit" else float(header.about.get("seconds", event.seconds))
    return _Told(name if name == event.kind else f"{event.kind}: {name}", human(header.nbytes), seconds)


def _summary(contents: Report, store: Store, path: Path, seconds: float) -> list[str]:
    lines = []
    for asked in contents.asked[:3]:
        best = asked.helping[0] if asked.helping else None
        lines.append(f"  {asked.prompt} |{asked.completion}")
        if best is not None:
            lines.append(f"      {nats(best.nats)} nats  {best.title}")
    hits = sum(event.what == "hit" for event in _once(store.events))
    total = len(_once(store.events))
    return [*lines, f"{path}: {hits} of {total} artefacts from the cache, {seconds:.1f} s"]
