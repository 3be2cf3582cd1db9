"""Factors: fitted curvature, and every question that it answers."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float

from whence.cache import Entry, Examples, Sites, TrainedModel, UsageError

from .chosen import chosen
from .curvature import Curvature, Damping, PerSite, StoredSite, sites_from_json
from .fitted import Train
from .scoring import groups, heads, relative, tokens, top
from .scoring.atoms import Encoder, through_atoms
from .scoring.heads import Head, find_heads
from .scoring.larger import from_more, query_prints
from .scoring.precision import Precision
from .scoring.queries import Rank, resolved_rank
from .scoring.rows import over_rows
from .scoring.scores import Pairwise, squared_norms

if TYPE_CHECKING:
    import xarray

TOKEN_VIEWS = {
    "layer": tokens.layer_token_scores,
    "output": tokens.output_token_scores,
    "input": tokens.input_token_scores,
}


class Factors(Curvature):
    """Fitted curvature that answers questions about training examples; `Curvature` has its fields.

    Influence is the predicted change of the query's measurement when the example is added to the training data once
    more, in nats (Grosse et al. 2023, Eq. 5): a positive one raises the measurement. In every method `train` is
    examples, ids of the training data, or by default all of it. With a store, scores are stored shard by shard, resumed
    after a kill, and read when they are there.

    Every method raises ModelError if the weights are not those that were fitted; DataError for a query without a
    position that counts; NumericalError for a loss or gradient that is not finite, with the example's id;
    ResourceError, with what would fit, if the queries' gradients do not fit the memory limit.
    """

    def __reduce_ex__(self, protocol: Any) -> Any:  # factors in a store travel to other processes by their key
        if type(self) is Factors and self.trained.store is not None and self.key and self.method == "ekfac":
            return _reloaded, (self.trained, self.key, self.damping, self.sites, self.size)
        return super().__reduce_ex__(protocol)

    def score(
        self,
        queries: Examples,
        train: Train = None,
        *,
        rank: Rank = "auto",
        precision: Precision = "float32",
        per_site: bool = False,
        through: Encoder | None = None,
        site: str | None = None,
    ) -> "xarray.DataArray":
        """Influence of every training example on every query's measurement, [query, train], in nats.

        Args:
            queries: the examples whose measurement is explained.
            train: the examples that are scored, or ids of the training data.
            rank: of the preconditioned query gradients (Grosse et al. 2023, Section 3.2.2); None is exact; "auto" is
                exact if they fit half the memory limit, else rank 32.
            precision: of the products with the training examples' gradients.
            per_site: split by site, [query, train, site]; the sum over sites is the influence.
            through: a dictionary of the inputs of one site: split by its atoms, [query, train, atom]. The atom axis
                has the atoms that occur, then -1, the residual that no atom explains, and -2, the constant; its sum is
                the influence at the site.
            site: the site whose input `through` decomposes; by default the one that it was built at.

        Raises UsageError for a rank below 1, or for `through` together with `per_site`.

        >>> scores = factors.score(queries)
        >>> scores.dims, scores.shape
        (('query', 'train'), (3, 12))
        """
        train = chosen(self.trained.train, train)
        if through is not None:
            if per_site:
                raise UsageError("A split by atoms is at one site.", "Give through= or per_site=, not both.")
            return through_atoms(self, queries, train, through, site)
        self.check_model()
        rank = resolved_rank(self, len(queries), rank, precision)
        work = Pairwise(self, queries, rank, precision, self.sites.names if per_site else ())
        inputs = {**work.inputs(train), "per_site": per_site, "what": "pairwise"}
        shape = (len(queries), len(self.sites) if per_site else 1)
        passes: Precision = "tf32" if precision == "tf32" else "float32"  # bfloat16 is for the contraction alone
        store, prints = self.trained.store, query_prints(queries)
        more = None if store is None or store.has("scores", inputs) else from_more(store, inputs, prints)
        if more is not None:
            values = more[0].read("values")[:, more[1]].transpose(1, 0, 2)
        else:
            about, groups = {"query_prints": prints}, work.groups(train)
            values = over_rows(self, train, inputs, shape, groups, "scores", passes, about).transpose(1, 0, 2)
        array = self.labelled(values / np.float32(self.train_size), queries, train)
        return array.assign_coords(site=list(self.sites.names)) if per_site else array[..., 0]

    def pairwise(self, queries: Examples, train: Examples) -> Float[np.ndarray, "q n"]:
        return self.score(queries, train).values

    def self_influence(self, train: Train = None) -> "xarray.DataArray":
        """(1/N) grad L_n^T (G + damping I)^-1 grad L_n, [train], in nats: how much an example changes its own loss.

        >>> bool((factors.self_influence() > 0).all())
        True
        """
        norms = squared_norms(self, chosen(self.trained.train, train), 1)
        array = self.labelled_alone(norms / np.float32(self.train_size), train)
        return array.assign_attrs(damping=str(self.damping))

    def top(
        self,
        queries: Examples,
        k: int = 10,
        train: Train = None,
        *,
        rank: Rank = "auto",
        precision: Precision = "float32",
    ) -> "xarray.Dataset":
        """The k most helpful and k most harmful examples of each query, in memory that does not grow with the data.

        Returns a Dataset with `helpful` and `harmful` [query, place] in nats, and the ids `helpful_id` and
        `harmful_id`; k is cut to the number of examples. Arguments are those of `score`. Raises UsageError for k
        below 1.

        >>> best = factors.top(queries, k=2)
        >>> best["helpful"].shape, bool((best["helpful"] >= best["harmful"]).all())
        ((3, 2), True)
        """
        return top.top(self, queries, chosen(self.trained.train, train), k, rank=rank, precision=precision)

    def token_scores(
        self,
        queries: Examples,
        train: Train = None,
        *,
        by: Literal["layer", "output", "input"] = "layer",
        **options: Any,
    ) -> "xarray.DataArray":
        """Influence split over the training examples' positions, [query, train, position], in nats; NaN past the end of
        an example. Meant for the few examples that one looks at.

        Args:
            queries, train: as for `score`.
            by: "layer" splits by the positions of the layers' rows (the sum is the influence); "output" by the tokens
                as they are predicted (the sum is the influence; option how="difference" if the model has no
                forward-mode derivative); "input" by the tokens as they are embedded (a first-order share; option
                embedding= names the token embedding).

        Raises DataError for a task without tokens; ModelError for sites whose rows are not the sequence's positions,
        or if a derivative or an embedding is missing.
        """
        if by not in TOKEN_VIEWS:
            raise UsageError(f"There are no token scores by {by!r}.", f"Choose from {', '.join(TOKEN_VIEWS)}.")
        return TOKEN_VIEWS[by](self, queries, chosen(self.trained.train, train), **options)

    def heads(self, heads: int, key_value_heads: int | None = None, width: int | None = None) -> list[Head]:
        """The heads of every attention map among the sites, by the maps' usual names (TransformerLens, Hugging Face).

        Args:
            heads: query heads of a layer.
            key_value_heads: heads of keys and values, if fewer.
            width: of one head, if it is not the map's width over its heads.

        Raises ModelError if there is no attention map, or if its width does not divide into the heads.
        """
        return find_heads(self.sites, heads, key_value_heads, width)

    def head_scores(self, queries: Examples, attention: Sequence[Head], train: Train = None) -> "xarray.DataArray":
        """Influence by attention head, [query, train, head], in nats; `heads` lists them. Raises ModelError
        for a head at a site that was not fitted."""
        return heads.head_scores(self, queries, chosen(self.trained.train, train), attention)

    def group_scores(
        self,
        queries: Examples,
        train: Train = None,
        *,
        query_groups: Mapping[str, Any] | None = None,
        train_groups: Mapping[str, Any] | None = None,
    ) -> "xarray.DataArray":
        """Influence of groups of training examples on groups of queries, in nats: sums over the members.

        Args:
            queries, train: as for `score`.
            query_groups, train_groups: name -> boolean mask or ids of its members; groups may overlap. A side without
                groups is one group "all".

        Raises DataError for a mask that does not match the data, an unknown id or an empty group.

        >>> halves = {"first": train.ids[:6], "second": train.ids[6:]}
        >>> factors.group_scores(queries, train_groups=halves).shape
        (1, 2)
        """
        return groups.group_scores(
            self, queries, chosen(self.trained.train, train), query_groups=query_groups, train_groups=train_groups
        )

    def relative(
        self, influence: "xarray.DataArray", train: Train = None, per: relative.Per = "loss"
    ) -> "xarray.DataArray":
        """Scores [query, train, ...] divided by how far each training example alone moves the model (RelatIF, Barshan
        et al. 2020): per "loss" or per "parameters". Raises DataError if the scores are of other examples."""
        return relative.relative(influence, self, chosen(self.trained.train, train), per)


def factors_of_entry(trained: TrainedModel, entry: Entry, damping: Damping) -> Factors:
    """Factors as a fit stored them: arrays `<site>/<part>`, in the entry or in those of its groups of sites. They are
    read now if they fit a quarter of the memory limit, else whenever they are used."""
    sites = sites_from_json(entry.about["sites"])
    stored = {site: StoredSite(part, site) for site, part in _entries(trained, entry, sites).items()}
    fits = sum(one.nbytes for one in stored.values()) <= trained.memory_limit() // 4
    per_site: PerSite = {site: one.read() for site, one in stored.items()} if fits else stored
    count = int(entry.about["count"])
    return Factors(trained, entry.inputs["method"], entry.inputs, sites, per_site, count, damping, entry.key)


def _entries(trained: TrainedModel, entry: Entry, sites: Sites) -> dict[str, Entry]:
    """site -> the entry that has its arrays."""
    assert trained.store is not None
    if "groups" not in entry.about:
        return dict.fromkeys(sites.names, entry)
    found: dict[str, Entry] = {}
    for group in (sites.only(names) for names in entry.about["groups"]):
        part = trained.store.open("factors", {**entry.inputs, "sites": group.settings})
        found |= _entries(trained, part, group)
    return found


def _reloaded(trained: TrainedModel, key: str, damping: Damping, sites: Sites, size: int | None) -> Factors:
    return replace(load(trained, key, damping), sites=sites, size=size)


def load(trained: TrainedModel, key: str, damping: Damping | None = None) -> Factors:
    """The fitted factors with this key (or its beginning) in the trained model's store.

    Raises UsageError without a store, NotCached for an unknown key.
    """
    if trained.store is None:
        raise UsageError("This trained model has no store to load from.", "Give TrainedModel(..., store=Store()).")
    return factors_of_entry(trained, trained.store.get(key), damping or Damping())
