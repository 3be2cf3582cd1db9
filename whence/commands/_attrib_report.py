"""`whence attrib report`: the influence report of a model and its data as one HTML file."""

from dataclasses import dataclass, replace
from pathlib import Path

from whence.cache.display.pages import write_page
from whence.options import Page

from ._answers import Answer, Answered
from ._attrib_job import Job
from ._queries import QueryOptions


@dataclass(frozen=True, kw_only=True)
class Report(Answered, QueryOptions, Job):
    """Write the influence report: one self-contained HTML page.

    It shows, for every query, the passages with the largest and the smallest influence, token by token, by layer, and
    the tail of the scores.

    Example:

        whence attrib report --first 3 --out out/influence.html
    """

    out: Page = Path("out/influence.html")
    """The page to write."""
    top: int = 8
    """Passages shown that raise a query's log-probability."""
    bottom: int = 3
    """Passages shown that lower a query's log-probability."""

    def answer(self) -> Answer:
        from whence.attrib.reporting import checks, coverage, report
        from whence.attrib.show import shown_passages

        loaded, queries = self.asked(self.load())
        scores = loaded.factors.score(queries, loaded.train)  # read from the store if `attrib score` has computed them
        seen = loaded.train.select(shown_passages(scores, self.top, self.bottom))
        split = loaded.factors.score(queries, seen, per_site=True)
        tokens = loaded.factors.token_scores(queries, seen) if loaded.corpus.worded else None
        words = loaded.corpus.vocabulary if loaded.corpus.worded else None
        docs = replace(loaded.corpus, train=loaded.train, queries=queries, vocabulary=words)
        page = report(
            scores, docs, by_site=split, tokens=tokens, top=self.top, bottom=self.bottom,
            lead=f"{self.model} on {self.data}", tables=[coverage(loaded.factors.sites), checks(loaded.trained)],
        )  # fmt: skip
        return Answer({"queries": len(queries), "examples": len(loaded.train)}, page=page.html())

    def present(self, answer: Answer) -> None:
        found = answer.facts
        print(f"{write_page(answer.page, self.out)}: {found['queries']} queries, {found['examples']} training examples")
