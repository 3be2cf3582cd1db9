"""The demo: which passages of the Python language reference raise the probability of what a small transformer writes,
which atoms of a dictionary carry that influence, and, on handwritten digits, unlearning and condensation.

Models, factors, scores, dictionary, retrained networks and every part of the report are stored under what they were
computed from. A second run reads the parts, opens the entries that they depend on, and needs no model. A part is plain
values: the step returns them, and the page's template reads them.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from whence import attrib
from whence.attrib.reporting import Report, Table, checks, coverage, report
from whence.attrib.show import shown_passages
from whence.cache import Examples, LanguageModelling, Store, TrainedModel
from whence.cache.display import signed, write_page
from whence.cache.jobs.progress import say
from whence.cache.store.store import human
from whence.unlearn.report import chart
from whence.unlearn.results import from_json, shown

from .corpora import Corpus, language_reference
from .corpora.corpus import query_examples
from .corpora.models import REFERENCE_SHAPE, REFERENCE_TRAINING
from .demo_atoms import AtomsPlan, Subject, atoms_of
from .demo_digits import CondensingPlan, ForgettingPlan, condensed, forgotten
from .language_model import Shape, Training, continuation, model_inputs, trained_model

FORMAT = 5  # of the stored parts; raised when their values or how they are computed change
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
    """What the demo computes. shown: passages per query; tokens: longest continuation."""

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
    shape = replace(REFERENCE_SHAPE, vocabulary=len(corpus.vocabulary))
    return Plan(corpus, shape, atoms=AtomsPlan(built=len(PROMPTS)))  # as many queries as prompts: the same programs


def demo(
    store: Store,
    out: str | Path = "out/report.html",
    plan: Plan | None = None,
    *,
    device: str = "cpu",
    quiet: bool = False,
) -> Path:
    """Compute what is not in the store yet, write the report, and return its path.

    Args:
        store: artefacts and parts of the report; a second run reads them.
        out: the page to write.
        plan: what to compute; by default everything on embedded data.
        device: of the models: cpu, cuda, cuda:1.
        quiet: show no progress bars.
    """
    began = time.monotonic()
    plan = plan or embedded_plan()
    bench = _Steps(plan, store, device, quiet)
    steps: dict[str, Callable[[], dict[str, Any]]] = {
        "influence": lambda: asdict(bench.influence()),
        "atoms": bench.atoms,
        "forgetting": lambda: forgotten(plan.forgetting, store, device, quiet),
        "condensing": lambda: condensed(plan.condensing, store, device),
    }
    missing = [name for name in steps if not store.has("report", plan.inputs[name])]
    stored = [name for name in steps if name not in missing]
    to_do = [f"compute {', '.join(missing)} (some minutes on two cores)"] if missing else []
    to_do += [f"read {', '.join(stored)} from the cache"] if stored else []
    say(f"Plan: {'; '.join(to_do)}; write {out}. Cache: {store.root}")
    parts = {name: _stored(store, plan.inputs[name], step) for name, step in steps.items()}
    path = write_page(page(parts, store, time.monotonic() - began), out)
    for query in parts["influence"]["queries"][:3]:
        say(f"  {query['prompt']} |{query['completion']}")
        for best in query["helping"][:1]:
            say(f"      {signed(best['nats'])} nats  {best['title']}")
    work = store.work().text.splitlines()[0]
    say(f"{path}: {work}; {time.monotonic() - began:.1f} s")
    return path


def _stored(store: Store, inputs: Mapping[str, Any], step: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A part's values, and the `seconds` that computing it took: read from the store, which must still have every
    entry that it depends on, or computed now and stored."""
    if not store.has("report", inputs):
        began, before = time.monotonic(), len(store.events)
        document = json.dumps(step()).encode()
        keys = list(dict.fromkeys(event.key for event in store.events[before:]))
        about = {"depends on": keys, "seconds": time.monotonic() - began}
        entry = store.put("report", inputs, {"contents": np.frombuffer(document, np.uint8)}, about=about)
    else:
        entry = store.open("report", inputs)
        for key in entry.about["depends on"]:
            store.get(key)
    return json.loads(bytes(entry.read("contents"))) | {"seconds": float(entry.about["seconds"])}


def page(parts: Mapping[str, Any], store: Store, seconds: float) -> str:
    """The report: influence, atoms, forgetting, condensing and the cache on one page, linked to one another. A passage
    links to the atoms that carried its influence; an atom to the passages whose influence it carried, where it is
    active, and that its activation depends on."""
    influence = _report(parts["influence"])
    taken = [(name, f"{part['seconds']:.1f} s") for name, part in parts.items()]
    head = ("part", "when it was computed")
    influence.tables.append(Table(title="How long each part took", rows=taken, head=head, note=""))
    evaluation = from_json(parts["forgetting"]["evaluation"])
    title = "Whence: which data, what it is made of, and without some of it"
    return influence.render(
        "story.html", "whence", title=title, scripts=True, parts=parts["atoms"]["parts"], atoms=parts["atoms"],
        examples=parts["forgetting"]["examples"], evaluation=evaluation, evaluated=shown(evaluation),
        chart=chart(evaluation), condensing=parts["condensing"], work=store.work(), seconds=seconds, root=store.root,
    )  # fmt: skip


def _report(part: Mapping[str, Any]) -> Report:
    return Report(**{name: value for name, value in part.items() if name != "seconds"})


@dataclass
class _Steps:
    """The model's part of the demo: each property is computed or read when it is first needed."""

    plan: Plan
    store: Store
    device: str
    quiet: bool

    @cached_property
    def trained(self) -> TrainedModel:
        plan = self.plan
        model = trained_model(plan.shape, plan.training, plan.corpus.train, self.store, quiet=self.quiet)
        return TrainedModel(
            model, plan.corpus.train, LanguageModelling(), sites=plan.pattern, store=self.store, device=self.device,
            quiet=self.quiet,
        )  # fmt: skip

    @cached_property
    def queries(self) -> tuple[Examples, np.ndarray]:
        return _queries(self.trained, self.plan)

    @cached_property
    def factors(self) -> attrib.Factors:
        return self.plan.method.fit(self.trained)

    def influence(self) -> Report:
        plan, corpus, (queries, likelihoods) = self.plan, self.plan.corpus, self.queries
        scores = self.factors.score(queries, per_site=True)
        tokens = self.factors.token_scores(queries, corpus.train.select(shown_passages(scores, plan.shown)))
        notes = {
            int(i): f"The model gives these {n} tokens a log-probability of {signed(float(value))} nats."
            for i, n, value in zip(queries.ids, map(len, queries.about["completion tokens"]), likelihoods)
        }
        millions = sum(p.numel() for p in self.trained.model.parameters()) / 1e6
        lead = (
            f"A transformer of {millions:.1f} million parameters has read the "
            f"Python language reference {plan.training.epochs} times: {len(corpus.train):,} passages, "
            f"{corpus.tokens:,} tokens. "
            f"Given the beginnings of {len(queries)} sentences, it continued with the coloured words. Below each are "
            "the passages that raise the probability of these words most, and those that lower it."
        )
        return report(
            scores,
            replace(corpus, queries=queries),
            tokens=tokens,
            top=plan.shown,
            title="Which passages taught it to say that?",
            lead=lead,
            tables=[_model_table(self.store, plan, self.factors), coverage(self.factors.sites), checks(self.trained)],
            notes=notes,
        )

    def atoms(self) -> dict[str, Any]:
        shown = _report(_stored(self.store, self.plan.inputs["influence"], lambda: asdict(self.influence())))
        subject = Subject(shown, self.factors, self.queries[0], self.plan.corpus)
        return atoms_of(self.plan.atoms, subject)


def _queries(trained: TrainedModel, plan: Plan) -> tuple[Examples, np.ndarray]:
    """Prompts with the model's own continuations as queries, and the log-probabilities of those."""
    words = plan.corpus.vocabulary
    assert words is not None
    said = [continuation(trained.model, words, prompt, plan.tokens) for prompt in plan.prompts]
    queries = query_examples(list(plan.prompts), said, words)
    pieces = [words.pieces(words.encode(text)) for text in said]
    queries = replace(queries, about={**queries.about, "completion tokens": pieces})
    values = trained.task.measurement(trained.model, trained.batch(queries, np.arange(len(queries))))
    return queries, values.detach().cpu().numpy()


def _model_table(store: Store, plan: Plan, factors: attrib.Factors) -> Table:
    about = store.open("model", model_inputs(plan.shape, plan.training, plan.corpus.train)).about
    shape, training, optimiser = plan.shape, plan.training, type(plan.training.optimiser).__name__
    damping, data = factors.damping, plan.corpus
    rows = [
        ("Model", f"TransformerLens native, {shape.layers} layers, width {shape.width}, {shape.heads} heads"),
        ("Parameters", f"{about['parameters']:,}"),
        ("Vocabulary", f"{shape.vocabulary:,} byte pairs"),
        ("Trained", f"{training.epochs} epochs, {optimiser}, rate {training.rate:g}, {about['seconds']:.0f} s"),
        ("Loss", f"{about['losses'][0]:.2f} → {about['losses'][-1]:.2f} nats per token"),
        ("Weights", about["fingerprint"][:12]),
        ("Data", f"{len(data.train):,} passages, {data.tokens:,} tokens, {data.train.fingerprint[:12]}"),
        ("Curvature", f"{factors.method}, labels {plan.method.labels}, {human(factors.nbytes)}"),
        ("Damping", f"{damping.value:g} × mean eigenvalue" if damping.rule == "relative" else f"{damping.value:g}"),
    ]
    return Table(title="Model and method", rows=rows, head=(), note="")
