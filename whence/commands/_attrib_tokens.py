"""`whence attrib tokens`: which tokens of the training examples carried their influence."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from whence.cache.display.files import ENDINGS, save_table
from whence.cache.display.pages import page, write_page
from whence.cache.errors import UsageError
from whence.options import Count, ending

from ._answers import Answer, Answered
from ._attrib_job import Attribution, Job
from ._queries import QueryOptions, entry_of, line_text, logprob_of
from ._shared import Printed

HEADS = {
    "output": "Influence of the examples that help most, in nats, and of their tokens as they are predicted.",
    "input": "Influence of the examples that help most, in nats, to first order in the tokens that are read.",
    "position": "Influence of the examples that help most, in nats, and of the tokens each position predicts.",
}


@dataclass(frozen=True, kw_only=True)
class Tokens(Answered, QueryOptions, Job, Printed):
    """Split the influence of the examples that help most over their tokens.

    By the token that became likelier ("output", which sums to the influence), the token that was read ("input", to
    first order), or the position the gradient flowed through ("position", shown on the token it predicts).

    Example:

        whence attrib tokens --prompt "The yield expression is used when" --completion " defining a generator" --top 3
    """

    view: Literal["output", "input", "position"] = "output"
    """The role of a token."""
    top: Count = 3
    """Examples of each query."""
    strongest: int = 6
    """Tokens listed of each."""
    out: Annotated[Path, ending(".html", *ENDINGS)] | None = None
    """Write the passages, shaded, as an HTML page; or the listed tokens as .csv, .parquet or .json."""

    def answer(self) -> Answer:
        from whence import attrib

        loaded, queries = self.asked(self.load())
        if not loaded.corpus.worded:
            raise UsageError("These examples are no texts whose tokens are predicted.", "Use `whence attrib score`.")
        scores = loaded.factors.score(queries, loaded.train)  # read from the store if `attrib score` has computed them
        best = scores["train"].values[np.argsort(-scores.values, axis=1, kind="stable")[:, : self.top]]
        entries: list[dict[str, Any]] = []
        pages: list[Any] = []
        for place in range(len(queries)):
            query = queries.select([place])
            train = loaded.train.select(loaded.train.rows_of(best[place]))
            tokens = loaded.factors.token_scores(query, train, by="layer" if self.view == "position" else self.view)
            docs: Any = replace(loaded.corpus, train=train, queries=query)
            pages += [attrib.show.token_map(tokens, docs, 0, n) for n in range(len(train))]
            passages = [self._passage(loaded, train, tokens.values[0], n) for n in range(len(train))]
            entries.append(entry_of(query, 0, logprob_of(scores.isel(query=[place])), passages=passages))
        return Answer({"view": self.view, "queries": entries}, page=page("Tokens", *pages))

    def present(self, answer: Answer) -> None:
        if self.out is not None and self.out.suffix in ENDINGS:
            save_table(self.out, tokens_table(answer.facts["queries"]))
        elif self.out is not None:
            write_page(answer.page, self.out)
        lines = [HEADS[self.view]]
        for entry in answer.facts["queries"]:
            lines.append(f"\n{entry['asked']}")
            for passage in entry["passages"]:
                lines.append(f"  {line_text(passage)}")
                lines += [f"      {t['nats']:+.3e}  {t['at']:>4}  {t['token']!r}" for t in passage["tokens"]]
        lines.append(f"\n{self.place}")
        self.show(answer.facts, "\n".join(lines))

    def _passage(self, loaded: Attribution, train: Any, values: np.ndarray, n: int) -> dict[str, Any]:
        """The example's influence (of "input", its first-order share) and the tokens with most of it."""
        ids = train.columns["input_ids"][n]
        row = values[n, : len(ids)]
        if self.view == "position":  # on the token that the position predicts
            row = np.concatenate([[0.0], row[:-1]])
        pieces = loaded.corpus.vocabulary.pieces(ids)  # type: ignore[union-attr]  # a corpus of text
        order = np.argsort(-np.abs(row), kind="stable")[: self.strongest]
        tokens = [{"at": int(t), "token": pieces[t], "nats": float(row[t])} for t in order]
        return {**loaded.titled.line(int(train.ids[n]), float(row.sum())), "tokens": tokens}


def tokens_table(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a token: its query, its example, its place and its influence."""
    return [
        {"query": entry["query"], "train": passage["id"], **token}
        for entry in entries
        for passage in entry["passages"]
        for token in passage["tokens"]
    ]
