"""Probes of Grosse et al. (2023): how the largest influences are distributed, which layers they come from, and whether
they remain when the parts of a sentence change places."""

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float

from whence.cache import DataError, Examples

from ..fitted import Fitted

if TYPE_CHECKING:
    import xarray

SPARSE = 2 / 3  # |s|_2 / |s|_1 of the positive scores above which a query depends on a few examples
BLOCK = re.compile(r"(?:^|\.)(?:blocks?|layers?|h)\.(\d+)(?=\.|$)")


class Tail(NamedTuple):
    """The largest influences as a power law, p(x) ~ x^-exponent above `start` (Section 5.2.1). distance: Kolmogorov and
    Smirnov's; p: share of samples of the fitted law that are as far from their own fit; the law is rejected below 0.1.
    covered: share of the positive influence that the top 1 % of examples have. sparse: see SPARSE."""

    exponent: float
    start: float
    distance: float
    p: float
    covered: float
    sparse: bool

    def __str__(self) -> str:
        verdict = "no power law" if self.p < 0.1 else "a power law fits"
        return (
            f"exponent {self.exponent:.2f} above {self.start:.2e}, distance {self.distance:.3f} "
            f"(p {self.p:.2f}: {verdict}); "
            f"the top 1 % have {self.covered:.0%} of the positive influence"
        )


def power_law(scores: Float[np.ndarray, " n"], top: int = 500, draws: int = 200, seed: int = 0) -> Tail:
    """Fit the `top` largest positive scores by maximum likelihood (Clauset et al. 2009, Eq. 3.1) and test the fit by a
    parametric bootstrap. Raises DataError for fewer than 10 positive scores above the smallest of them."""
    positive = np.sort(np.asarray(scores, np.float64)[np.asarray(scores) > 0])[::-1]
    tail = positive[: top + 1]
    if len(tail) < 11 or tail[0] == tail[-1]:
        raise DataError(f"{len(positive)} positive scores are too few for a tail.", "Score more examples.")
    start, tail = tail[-1], tail[:-1]
    exponent, distance = _fit(tail, start)
    rng = np.random.default_rng(seed)
    drawn = start * (1 - rng.random((draws, len(tail)))) ** (-1 / (exponent - 1))
    p = float(np.mean([_fit(np.sort(sample)[::-1], start)[1] >= distance for sample in drawn]))
    first = max(1, round(len(scores) / 100))
    spread = float(np.linalg.norm(positive) / positive.sum())
    return Tail(exponent, float(start), distance, p, float(positive[:first].sum() / positive.sum()), spread > SPARSE)


def _fit(tail: np.ndarray, start: float) -> tuple[float, float]:
    """Exponent, and the largest gap between the sample's distribution and the law's."""
    exponent = 1 + len(tail) / np.log(tail / start).sum()
    below = 1 - (tail[::-1] / start) ** (1 - exponent)
    places = np.arange(len(tail) + 1) / len(tail)
    return float(exponent), float(max(np.abs(below - places[1:]).max(), np.abs(below - places[:-1]).max()))


def by_layer(scores: "xarray.DataArray", top: int = 50) -> "xarray.DataArray":
    """How much of the influence of each query's `top` examples each layer carries, [query, layer], summing to 1:
    absolute scores at its sites. `scores` are [query, train, site], from `score(..., per_site=True)`; sites outside
    numbered blocks are layers of their own name. Raises DataError for scores without sites."""
    import xarray

    if "site" not in scores.dims:
        raise DataError("These scores have no sites.", "Score with per_site=True.")
    names = [str(name) for name in scores["site"].values]
    layers = [f"{int(found.group(1))}" if (found := BLOCK.search(name)) else name for name in names]
    every = list(dict.fromkeys(layers))
    whole = scores.sum("site").values
    order = np.argsort(-whole, axis=1, kind="stable")[:, :top]
    chosen = np.abs(np.take_along_axis(scores.values, order[..., None], axis=1)).sum(1)
    parts = np.stack([chosen[:, [k for k, own in enumerate(layers) if own == layer]].sum(1) for layer in every], 1)
    parts = parts / np.maximum(parts.sum(1, keepdims=True), 1e-300)
    return xarray.DataArray(parts, dims=("query", "layer"), coords={"query": scores["query"], "layer": every})


class Fact(NamedTuple):
    """A sentence in two halves, as a query has it, and other forms of it, which are whole sentences."""

    prompt: str
    completion: str
    forms: dict[str, str]


def fictional_facts(count: int = 8, seed: int = 0) -> list[Fact]:
    """Facts about invented places, which no model was trained on, with the forms of Section 5.3.4: "exact",
    "prompt alone", "completion alone", "other subject", "other answer", "flipped" (completion before prompt) and
    "unrelated"."""
    rng = np.random.default_rng(seed)
    heads = np.array(["Ar", "Bel", "Cor", "Dun", "Els", "Fen", "Gal", "Hol", "Ist", "Jor", "Kel", "Lor"])
    ends = np.array(["mara", "dovia", "thal", "wick", "sund", "berg", "lina", "quar"])
    names = [h + e for h in heads for e in ends]
    words = [str(name) for name in rng.permutation(names)]
    facts = []
    for number in range(min(count, len(words) // 4)):
        place, answer, other, wrong = words[4 * number : 4 * number + 4]
        prompt, completion = f"The first ruler of {place} was", f" {answer}"
        facts.append(
            Fact(prompt, completion, {
                "exact": f"{prompt}{completion}",
                "prompt alone": f"{prompt} not known",
                "completion alone": f"A ship was named after{completion}",
                "other subject": f"The first ruler of {other} was{completion}",
                "other answer": f"{prompt} {wrong}",
                "flipped": f"{answer} was the first ruler of {place}",
                "unrelated": f"A ship was named after {wrong}",
            })
        )  # fmt: skip
    return facts


def word_order(fitted: Fitted, encode: Callable[[str], Any], facts: Sequence[Fact]) -> "xarray.DataArray":
    """Influence of each form of a fact on the fact's completion, if it were added to the training data, [fact, form].

    Args:
        encode: text to token ids, in the model's vocabulary.

    Raises DataError for a prompt or completion that encodes to no token, and the errors of score.
    """
    import xarray

    ids, labels = [], []
    for fact in facts:
        head, tail = np.asarray(encode(fact.prompt), np.int64), np.asarray(encode(fact.completion), np.int64)
        if not len(head) or not len(tail):
            raise DataError(f"{fact.prompt!r} or {fact.completion!r} encodes to no token.", "Use the model's words.")
        ids.append(np.concatenate([head, tail]))
        labels.append(np.concatenate([np.full(len(head), -100), tail]))
    forms = list(facts[0].forms)
    texts = [np.asarray(encode(fact.forms[form]), np.int64) for fact in facts for form in forms]
    queries = Examples({"input_ids": ids, "labels": labels}, np.arange(len(facts)))
    variants = Examples({"input_ids": texts}, np.arange(len(texts)))
    scores = fitted.score(queries, variants)
    own = scores.values.reshape(len(facts), len(facts), len(forms))[np.arange(len(facts)), np.arange(len(facts))]
    coords = {"fact": [f.prompt for f in facts], "form": forms}
    return xarray.DataArray(own, dims=("fact", "form"), coords=coords, name="influence", attrs=scores.attrs)
