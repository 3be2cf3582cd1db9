"""Which training data: influence of every training example on a model's output: planned, stored and reported."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from whence.cache.display.files import ENDINGS, rows_of_lists, save_table
from whence.cache.errors import UsageError
from whence.options import Array, Count

from ._answers import Answer, Answered
from ._attrib_evaluate import Evaluate, Probe
from ._attrib_index import Index, Query
from ._attrib_job import Attribution, Job
from ._attrib_report import Report
from ._attrib_select import Select
from ._attrib_tokens import Tokens
from ._names import Sites
from ._queries import (
    QueryOptions,
    described,
    entries_of,
    entry_of,
    line_text,
    lists,
    lists_text,
    logprob_of,
    save_scores,
    titles_of,
    top_of,
)
from ._settings import methods_command
from ._shared import Precision, Printed, Tabled


@dataclass(frozen=True, kw_only=True)
class Plan(Job, Tabled):
    """Estimate what a fit, and scoring, cost here: passes, operations, memory, disk, coverage, and time.

    Time comes from a short measurement of this model on this machine. If the job does not fit, the error names the
    setting to change, and the exit code is 1.

    Example:

        whence attrib plan --score 64 --memory 4GB
    """

    kept = ""
    score: int = 0
    """Plan to score as many queries too."""
    rank: Count | None = None
    """Rank of the stored query gradients; by default they are exact if they fit, else of rank 32."""
    precision: Precision = "float32"
    """Precision of the products with the training examples' gradients."""
    index: int = 0
    """Plan an index of this width."""
    measure: bool = True
    """Do not run a batch of the model; no time is estimated then."""

    def run(self) -> None:
        from whence.attrib.plan import make_plan, refuse

        loaded = self.load()
        plan = make_plan(
            loaded.trained, queries=self.score, rank="auto" if self.rank is None else self.rank,
            precision=self.precision, index_width=self.index, measure=self.measure,
            damping=self.chosen_damping(),
        )  # fmt: skip
        facts = plan.to_json()
        self.show_table(facts, str(plan), facts["stages"])
        refuse(plan)


@dataclass(frozen=True, kw_only=True)
class Fit(Job, Printed):
    """Fit an attribution method. Later commands read the result from the store.

    A job that was killed resumes when it is run again. One that needs more memory than there is is refused before it
    starts; the error names the setting to change.

    Example:

        whence attrib fit --method ekfac --sites "*.mlp.*" --damping 0.1
    """

    def run(self) -> None:
        from whence.attrib import Factors

        loaded = self.load()
        began = time.perf_counter()
        fitted = loaded.fitted
        seconds = time.perf_counter() - began
        events = [event.what for event in loaded.store.events if event.kind == "factors"]
        facts: dict[str, Any] = {"method": fitted.method, "examples": len(loaded.train), "units": fitted.units}
        facts |= {"seconds": round(seconds, 2), "from_store": bool(events) and set(events) == {"hit"}}
        if isinstance(fitted, Factors):
            facts |= {
                "key": fitted.key, "sites": len(fitted.sites), "coverage": fitted.sites.coverage,
                "damping": str(fitted.damping), "bytes": fitted.nbytes,
            }  # fmt: skip
        head = f"{fitted}\n{fitted.sites.summary}" if isinstance(fitted, Factors) else f"{fitted.method}, fitted"
        key = f"key {facts['key'][:12]}, " if facts.get("key") else ""
        how = "read from the store" if facts["from_store"] else "fitted"
        self.show(facts, f"{head}\n{key}{how}, {seconds:.1f} s, in {loaded.store.root}")


Methods = methods_command("attribution", "whence attrib methods", "whence.attrib")


@dataclass(frozen=True, kw_only=True)
class Score(Answered, QueryOptions, Job, Printed):
    """Score every training example for every query, and list the most helpful and the most harmful ones.

    Influence is the predicted change of the query's log-probability, in nats, when the example is added to the
    training data once more. One pass over the data serves all queries.

    Example:

        whence attrib score --prompt "The yield expression is used when" --completion " defining a generator"
    """

    top: int = 8
    """How many of the most helpful and most harmful examples to list."""
    only_top: bool = False
    """List the highest and lowest only and keep no other score: memory does not grow with the data."""
    rank: Count | None = None
    """Rank of the stored query gradients; by default they are exact if they fit, else of rank 32."""
    precision: Precision = "float32"
    """Precision of the products with the training examples' gradients."""
    relative: Literal["loss", "parameters"] | None = None
    """Divide by how far the example alone moves the model's predictions, or its parameters (RelatIF)."""
    group_by: str | None = None
    """Sum over the training examples that share this, such as title."""
    one_query: bool = False
    """Sum over all queries."""
    heads: Count | None = None
    """Split by attention head: the number of heads (with --sites "*.attn.*")."""
    key_value_heads: Count | None = None
    """Heads of keys and values, if fewer."""
    prefilter: Literal["tfidf-query", "tfidf-document", "bm25"] | None = None
    """Score only the examples that share words with a query."""
    keep: Count = 100
    """Examples that the prefilter keeps for each query."""
    dictionary: Path | None = None
    """Split the influence by the atoms of this dictionary of a site's inputs (`whence decomp build --at SITE.hook_in`),
    or, with --atom, score the examples that an atom's activation depends on."""
    atom: int | None = None
    """Measure this atom's mean activation over each prompt instead of the completion."""
    site: str | None = None
    """The site whose inputs the dictionary decomposes, if its hook point does not determine it."""
    recall: bool = False
    """Score everything and report what share of the exact top 10 each prefilter would have found."""
    out: Array | None = None
    """Write the scores, or with --only-top the lists: .npz (scores only), .csv, .parquet or .json."""

    @property
    def free(self) -> tuple[str, ...]:
        return ("top",) if self._whole else ()

    @property
    def _whole(self) -> bool:
        """Whether scores [query, train] are computed, of which lists of any length are made."""
        return not (self.only_top or self.group_by or self.one_query or self.heads or self.dictionary)

    def precheck(self) -> None:
        if self.only_top and self.out is not None and self.out.suffix not in ENDINGS:
            raise UsageError(f"{self.out} cannot hold lists.", f"Name it {', '.join(ENDINGS)}.")
        super().precheck()

    def answer(self) -> Answer:
        loaded, queries = self.asked(self.load())
        if self.atom is not None and self.dictionary is None:
            raise UsageError("--atom needs a dictionary.", "Give --dictionary FOLDER.")
        ways = ("only_top", "group_by", "heads", "dictionary", "prefilter", "relative")
        special = [name for name in ways if getattr(self, name)]
        if len(special) > 1 and special != ["prefilter", "relative"]:
            raise UsageError(f"{' and '.join(special)} exclude each other.", "Give one at a time.")
        if self.only_top:
            return self._top(loaded, queries)
        if self.group_by is not None or self.one_query:
            return self._groups(loaded, queries)
        if self.heads is not None:
            return self._heads(loaded, queries)
        if self.dictionary is not None:
            return self._atoms(loaded, queries, self.dictionary)
        return self._scores(loaded, queries)

    def _scores(self, loaded: Attribution, queries: Any) -> Answer:
        from whence.attrib.index.prefilter import RULES, candidates, lexical_scores
        from whence.attrib.index.recall import recall_by_share

        train = loaded.train
        if self.prefilter is not None and not self.recall:
            rows = candidates(lexical_scores(queries, train, self.prefilter), self.keep)
            train = train.select(np.unique(rows))
        scores = loaded.fitted.score(queries, train, **self._ranked(loaded))
        curves = []
        if self.recall:
            curves = [recall_by_share(lexical_scores(queries, train, rule), scores, rule=rule) for rule in RULES]
        if self.relative is not None:
            scores = loaded.factors.relative(scores, train, self.relative)
        return self._found(
            loaded, entries_of(queries, logprob_of(scores)), scores, [str(curve) for curve in curves],
            recall={x.rule: dict(zip(map(str, x.shares.tolist()), x.recall.tolist())) for x in curves},
            scanned=len(train) / len(loaded.train),
        )  # fmt: skip

    def _ranked(self, loaded: Attribution) -> dict[str, Any]:
        """Rank and precision of the queries, for methods with curvature."""
        from whence.attrib import Factors

        if not isinstance(loaded.fitted, Factors):
            return {}
        return {"rank": "auto" if self.rank is None else self.rank, "precision": self.precision}

    def _top(self, loaded: Attribution, queries: Any) -> Answer:
        found = loaded.fitted.top(queries, self.top, loaded.train, **self._ranked(loaded))
        best = {
            name: tuple(
                found[f"{name}{part}"].values for part in ("_id", "", "_impossible") if f"{name}{part}" in found
            )
            for name in ("helpful", "harmful")
        }
        warning = {"warning": found.attrs.get("warning", "")}
        return self._found(loaded, lists(loaded.titled, entries_of(queries, logprob_of(found)), best), None, **warning)

    def _groups(self, loaded: Attribution, queries: Any) -> Answer:
        from whence.attrib.scoring.groups import groups_by

        groups = groups_by(loaded.train, self.group_by) if self.group_by else None
        each = None if self.one_query else {str(i): [i] for i in queries.ids}
        scores = loaded.factors.group_scores(queries, loaded.train, query_groups=each, train_groups=groups)
        entries = []
        for place, name in enumerate(scores["query"].values):
            order = np.argsort(-scores.values[place], kind="stable")[: self.top]
            names, values = scores["train"].values[order], scores.values[place, order]
            found = [{"id": str(n), "title": "", "nats": float(v)} for n, v in zip(names, values)]
            if each is None:
                entries.append({"query": str(name), "asked": "all queries", "groups": found})
            else:
                entries.append(entry_of(queries, place, groups=found))
        return self._found(loaded, entries, scores)

    def _heads(self, loaded: Attribution, queries: Any) -> Answer:
        heads = loaded.factors.heads(self.heads or 1, self.key_value_heads)
        scores = loaded.factors.head_scores(queries, heads, loaded.train)
        entries = []
        for place in range(len(queries)):
            strength = np.abs(scores.values[place]).sum(0)
            order = np.argsort(-strength, kind="stable")[: self.top]
            found = [{"id": heads[h].name, "title": "sum of |influence|", "nats": float(strength[h])} for h in order]
            entries.append(entry_of(queries, place, logprob_of(scores), heads=found))
        return self._found(loaded, entries, scores)

    def _atoms(self, loaded: Attribution, queries: Any, folder: Path) -> Answer:
        from ._attrib_atoms import atom_scores, atom_text, by_atoms, opened

        dictionary = opened(folder, loaded)
        if self.atom is None:
            return self._found(loaded, *by_atoms(loaded, queries, dictionary, self.site, self.top))
        active, scores = atom_scores(loaded, queries, dictionary, self.atom)
        about = atom_text(dictionary, self.atom)
        entries = lists(loaded.titled, entries_of(active), top_of(scores, self.top, ("helpful",)))
        return self._found(
            loaded, entries, scores, [f"measured: mean activation of atom {self.atom}, {about}"]
        )  # fmt: skip

    def _found(
        self, loaded: Attribution, entries: list[dict[str, Any]], scores: Any, notes: Any = (), **more: Any
    ) -> Answer:
        """An answer of entries, one a query, and of scores if they are kept."""
        if scores is not None:
            more["warning"] = scores.attrs.get("warning", "")
            scores = described(scores, loaded.titled)
        more = {name: value for name, value in more.items() if value}
        return Answer({"queries": entries, "notes": list(notes), "more": more}, scores)

    def present(self, answer: Answer) -> None:
        scores, more = answer.scores, answer.facts["more"]
        entries = answer.facts["queries"]
        if self._whole:
            assert scores is not None
            entries = lists(titles_of(scores), entries, top_of(scores, self.top))
        if self.out is not None and scores is None:
            save_table(self.out, rows_of_lists(entries))
        elif self.out is not None:
            save_scores(self.out, scores)
        lines = [lists_text(entries)]
        if "warning" in more:
            lines.append(f"warning: {more['warning']}")
        if more.get("scanned", 1.0) < 1.0:
            lines.append(f"{more['scanned']:.1%} of the training examples scored, by {self.prefilter}")
        self.show({"queries": entries, **more}, "\n\n".join([*lines, *answer.facts["notes"], self.place]))


@dataclass(frozen=True, kw_only=True)
class Self(Answered, Job, Printed):
    """Self-influence: how much each training example changes its own loss. High values are rare or mislabelled.

    Example:

        whence attrib self --top 20
    """

    top: int = 10
    """How many to list."""
    out: Array | None = None
    """Write all of them: .npz, .csv, .parquet or .json."""

    @property
    def free(self) -> tuple[str, ...]:
        return ("top",)

    def answer(self) -> Answer:
        loaded = self.load()
        return Answer({}, described(loaded.fitted.self_influence(loaded.train), loaded.titled))

    def present(self, answer: Answer) -> None:
        found: Any = answer.scores
        titled, ids = titles_of(found), found["train"].values
        order = np.argsort(-found.values, kind="stable")[: self.top]
        rows = [titled.line(int(ids[n]), float(found.values[n])) for n in order]
        if self.out is not None:
            save_scores(self.out, found)
        facts = {"examples": len(ids), "mean": float(found.values.mean()), "top": rows}
        lines = [f"self-influence of {facts['examples']} examples, mean {facts['mean']:.3e} nats"]
        lines += [f"  {line_text(row)}" for row in rows]
        lines += [f"warning: {found.attrs['warning']}"] if found.attrs.get("warning") else []
        self.show(facts, "\n".join([*lines, self.place]))


COMMANDS = {
    "methods": Methods,
    "sites": Sites,
    "plan": Plan,
    "fit": Fit,
    "score": Score,
    "self": Self,
    "select": Select,
    "tokens": Tokens,
    "index": Index,
    "query": Query,
    "evaluate": Evaluate,
    "probe": Probe,
    "report": Report,
}
