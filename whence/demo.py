"""The demo: which passages of the Python language reference taught a small transformer to say what it says.

Model, continuations, factors, scores and the report's contents are each kept in the store under what they were
computed from. A second run finds the report's contents, opens the entries it stands on, and needs no model.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

import attrib
from attrib.report import Report, Table, coverage, nats, report, shown_passages
from cache import Event, Examples, LanguageModelling, Store, find_sites, say
from cache.store import human

from .corpora import Corpus, language_reference
from .corpora.corpus import query_examples
from .demo_model import REFERENCE_SHAPE, REFERENCE_TRAINING
from .language_model import Shape, Training, continuation, model_inputs, trained_model

FORMAT = 1  # of the stored report; raised when what it holds or how it is computed changes
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

    @property
    def inputs(self) -> dict[str, Any]:
        """The key of the report's contents."""
        return {
            "what": "demo report",
            "format": FORMAT,
            "model": model_inputs(self.shape, self.training, self.corpus.train),
            "prompts": list(self.prompts),
            "sites": self.pattern,
            "method": {"name": self.method.name, **asdict(self.method)},
            "shown": self.shown,
            "tokens": self.tokens,
        }


def embedded_plan() -> Plan:
    """The demo of `whence demo`: everything on embedded data."""
    corpus = language_reference()
    assert corpus.vocabulary is not None  # a corpus of text
    return Plan(corpus, replace(REFERENCE_SHAPE, vocabulary=len(corpus.vocabulary)))


def demo(store: Store, out: str | Path = "out/report.html", plan: Plan | None = None, quiet: bool = False) -> Path:
    """Compute what is not in the store yet, write the report, and return its path."""
    began = time.monotonic()
    plan = plan or embedded_plan()
    if store.has("scores", plan.inputs):
        entry = store.open("scores", plan.inputs)
        for key in entry.about["stands on"]:
            store.get(key)
        contents = Report.from_json(bytes(entry.read("contents")).decode())
    else:
        contents = _contents(store, plan, quiet)
        keys = list(dict.fromkeys(event.key for event in store.events))
        document = np.frombuffer(contents.to_json().encode(), np.uint8)
        store.put("scores", plan.inputs, {"contents": document}, about={"stands on": keys})
    path = contents.with_tables(work_done(store, time.monotonic() - began)).save(out)
    for line in _summary(contents, store, path, time.monotonic() - began):
        say(line)
    return path


def _contents(store: Store, plan: Plan, quiet: bool) -> Report:
    corpus, task = plan.corpus, LanguageModelling()
    model = trained_model(plan.shape, plan.training, corpus.train, store, quiet=quiet)
    queries, likelihoods = _asked(model, plan, task)
    sites = find_sites(model, plan.pattern, quiet=quiet)
    options = attrib.FitOptions(quiet=quiet)
    factors = plan.method.fit(model, task, corpus.train, sites=sites, store=store, options=options)
    scores = attrib.score(factors, model, task, queries, corpus.train, store=store, per_site=True, options=options)
    seen = corpus.train.select(shown_passages(scores, plan.shown))
    size = len(corpus.train)
    tokens = attrib.token_scores(factors, model, task, queries, seen, train_size=size, options=options)
    notes = {
        int(i): f"The model gives these {n} tokens a log-probability of {nats(float(value))} nats."
        for i, n, value in zip(queries.ids, map(len, queries.about["completion tokens"]), likelihoods)
    }
    lead = (
        f"A transformer of {sum(p.numel() for p in model.parameters()) / 1e6:.1f} million parameters has read the "
        f"Python language reference {plan.training.epochs} times: {size:,} passages, {corpus.tokens:,} tokens. Given "
        f"the beginnings of {len(queries)} sentences, it went on with the coloured words. Below each are the passages "
        "that taught it those words, and those that speak for others."
    )
    return report(
        scores,
        replace(corpus, queries=queries),
        tokens=tokens,
        top=plan.shown,
        title="Which passages taught it to say that?",
        lead=lead,
        tables=[_model_table(store, plan, factors), coverage(sites)],
        notes=notes,
    )


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
        source = "from the cache" if event.what == "hit" else "computed now" if event.what == "built" else "resumed"
        rows.append((entry[0], event.key[:10], source, entry[1], f"{event.seconds:.1f} s"))
    computed = sum(row[2] != "from the cache" for row in rows)
    note = f"{computed} computed, {len(rows) - computed} from the cache; {seconds:.1f} s in all. Cache: {store.root}"
    return Table("Computed and cached", tuple(rows), ("artefact", "key", "", "size", "time"), note)


def _once(events: Sequence[Event]) -> list[Event]:
    """One event an artefact: that it was built, or else the first time it was read."""
    found: dict[str, Event] = {}
    for event in events:
        if event.key not in found or event.what != "hit":
            found[event.key] = event
    return list(found.values())


def _named_entry(store: Store, event: Event) -> tuple[str, str]:
    """What an event's artefact is called, and its size."""
    header = store.header(event.kind, event.key)
    inputs = header.inputs
    name = str(inputs.get("stage") or inputs.get("what") or inputs.get("method") or event.kind)
    return (name if name == event.kind else f"{event.kind}: {name}", human(header.nbytes))


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
