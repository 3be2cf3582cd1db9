"""Sites: the linear maps of a model that a job looks at, chosen by name, with the share of parameters covered.

A site is one weight. Modules that share the weight (tied embeddings) are one site, and so are repeated calls of
one module: their gradients add. Each group of a grouped convolution is a site of its own, because groups
are different weights on different inputs. Names are the clean ones: `blocks.0.mlp.fc_in`, not
`blocks.0._original_component.mlp._original_component.fc_in._original_component`.
"""

import fnmatch
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from ..display import table
from ..errors import ModelError, near_names
from ..jobs.progress import say
from .layers import KINDS, Layer, Multiplied, layer_at, layers_in, packed, packed_layers
from .names import clean_name as clean_name
from .names import site_names
from .stateless import call_with as call_with
from .stateless import copied as copied
from .stateless import distinct, memory_of, unwrapped
from .stateless import named_parameters as named_parameters

Pattern = str | re.Pattern[str]
EXPERT = re.compile(r"(^|\.)experts\.[^.]*\d")  # a member of a list or dictionary of experts


@dataclass(frozen=True)
class Site:
    """One weight seen as a linear map.

    name: clean name. kind: linear, conv, embedding or norm. shape: (o, i), i counting the bias.
    modules: full names of the layers that use the weight. group: which group of a grouped convolution, which expert.
    parameters: attribute ("weight", "bias") -> the model's own parameter name. count: numbers covered.
    partial: "weight" or "bias" if only that one of the two is covered, because the other is frozen.
    inside: the site whose matrix, in memory, contains this one's.
    rows: where the layer's calls have the example: on the first axis, the second, or none ("alone": the examples of a
        batch run one at a time).
    routed: an expert, which some positions reach; an example of which none does has the gradient zero.
    """

    name: str
    kind: str
    shape: tuple[int, int]
    modules: tuple[str, ...]
    group: int
    groups: int
    parameters: tuple[tuple[str, str], ...]
    count: int
    partial: str = ""
    inside: str = ""
    rows: Literal["first", "second", "alone"] = "first"
    routed: bool = False

    @property
    def alone(self) -> bool:
        return self.rows == "alone"

    @property
    def settings(self) -> dict[str, Any]:
        """What of this site enters a key."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "modules": list(self.modules),
            "group": self.group,
        } | ({"partial": self.partial} if self.partial else {})

    def columns(self, model: nn.Module) -> slice:
        """The columns of the layer's whole matrix that this site covers."""
        module, layer = layer_at(model, self.modules[0])
        bias = layer.bias_columns(module)
        whole = layer.shape(module)[1]
        return {"weight": slice(0, whole - bias), "bias": slice(whole - bias, whole)}.get(self.partial, slice(None))


@dataclass(frozen=True)
class Sites(Sequence[Site]):
    """The chosen sites in the model's order, and what they leave out."""

    sites: tuple[Site, ...]
    total: int  # parameters in the model
    left_out: tuple[tuple[str, int], ...]  # parameter name, numbers in it
    note: str = ""  # what else the summary says: frozen parameters, computed weights

    @overload
    def __getitem__(self, index: int) -> Site: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Site]: ...
    def __getitem__(self, index: int | slice) -> Site | Sequence[Site]:
        return self.sites[index]

    def __len__(self) -> int:
        return len(self.sites)

    def __iter__(self) -> Iterator[Site]:
        return iter(self.sites)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(site.name for site in self.sites)

    @property
    def alone(self) -> tuple[str, ...]:
        """Sites for which the examples of a batch run one at a time."""
        return tuple(site.name for site in self.sites if site.alone)

    @property
    def covered(self) -> int:
        """Parameters that the sites cover; what two of them share in memory counts once."""
        return sum(site.count for site in self.sites if not site.inside or site.inside not in self.names)

    @property
    def coverage(self) -> float:
        """Share of the model's parameters that the sites cover, 0 to 1."""
        return self.covered / max(self.total, 1)

    @property
    def settings(self) -> list[dict[str, Any]]:
        return [site.settings for site in self.sites]

    def only(self, names: Sequence[str]) -> "Sites":
        """These sites alone; the others' parameters count as left out."""
        gone = [site for site in self.sites if site.name not in set(names)]
        return Sites(
            tuple(site for site in self.sites if site.name in set(names)),
            self.total,
            self.left_out + tuple((site.name, site.count) for site in gone),
            self.note,
        )

    def having(self, sites: Sequence[Site]) -> "Sites":
        """The same with these in place of its sites."""
        return replace(self, sites=tuple(sites))

    def __repr__(self) -> str:
        return f"Sites({self.summary})"

    def __str__(self) -> str:
        rows = [(s.name, s.kind, f"{s.shape[0]} x {s.shape[1]}", f"{s.count:,}") for s in self.sites]
        return table(("site", "kind", "out x in", "parameters"), rows).text + f"\n{self.summary}"

    @property
    def summary(self) -> str:
        text = f"{len(self)} sites cover {self.covered:,} of {self.total:,} parameters ({self.coverage:.1%})"
        return text + (f"; {len(self.left_out)} tensors of parameters left out" if self.left_out else "") + self.note

    def _repr_html_(self) -> str:
        rows = [(s.name, s.kind, f"{s.shape[0]} × {s.shape[1]}", s.count) for s in self.sites]
        return table(("site", "kind", "out × in", "parameters"), rows, self.summary).html


def find_sites(
    model: nn.Module,
    pattern: Pattern | Sequence[Pattern] = "*",
    *,
    exclude: Pattern | Sequence[Pattern] = (),
    kinds: Sequence[str] = ("linear", "conv"),
    frozen: bool = False,
    quiet: bool = False,
) -> Sites:
    """The sites of a model, chosen by name. States what share of the parameters they cover, on standard error.

    Parameters that do not require a gradient were not trained, and are not covered: of a layer with a frozen weight
    and a trained bias, the site is the bias. If no parameter requires a gradient (a copy for inference), all count.

    Args:
        model: the model; of a compiled or data-parallel one, the model inside.
        pattern: over the clean names: a glob (`"*.mlp.*"`), a compiled regular expression, or several of them; if no
            clean name matches, over the model's other names (of its own library, of TransformerLens).
        exclude: the same, for sites to leave out.
        kinds: which layers: linear, conv, embedding, norm.
        frozen: cover frozen parameters too.
        quiet: state nothing.

    Raises ModelError if a pattern matches nothing, with the nearest names, or only frozen, computed or quantised
    weights, and for a model compiled by torch.jit.

    >>> sites = find_sites(model, quiet=True)
    >>> [(site.name, site.shape) for site in sites]  # the bias is one more input
    [('0', (8, 5)), ('2', (3, 9))]
    """
    unknown = [kind for kind in kinds if kind not in {layer.kind for layer in KINDS}]
    if unknown:
        raise ModelError(
            f"There is no kind of site called {unknown[0]!r}.",
            f"Kinds are {', '.join(sorted({layer.kind for layer in KINDS}))}.",
        )
    model = unwrapped(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            "The model is compiled by torch.jit: its layers run inside the compiled graph, where no hook sees them.",
            "Give the module that was scripted or traced.",
        )
    trained = {id(p) for p in named_parameters(model).values() if p.requires_grad}
    whole = [site for site in _all_sites(model, None) if site.kind in kinds]
    every = whole if frozen or not trained else [site for site in _all_sites(model, trained) if site.kind in kinds]
    patterns = [pattern] if isinstance(pattern, (str, re.Pattern)) else list(pattern)
    excluded = [exclude] if isinstance(exclude, (str, re.Pattern)) else list(exclude)
    matching = {each: _matching(model, every, each) for each in (*patterns, *excluded)}
    for each in patterns:
        if not matching[each]:
            raise _no_match(model, each, whole, kinds)
    wanted, unwanted = ({name for p in part for name in matching[p]} for part in (patterns, excluded))
    chosen = [site for site in every if site.name in wanted and site.name not in unwanted]
    if not chosen:
        raise ModelError("Every site that matches is also excluded.", "Exclude less.")
    sites = _with_coverage(model, chosen, trained, frozen)
    if not quiet:
        say(sites.summary)
    return sites


def _with_coverage(model: nn.Module, chosen: Sequence[Site], trained: set[int], frozen: bool) -> Sites:
    """The sites and what they leave out; `trained` has the ids of the trained parameters."""
    own = named_parameters(model)
    covered = {name for site in chosen for _, name in site.parameters}
    storages = {memory_of(own[name]) for name in covered} - {0}
    inside = [own[name] for name in covered]
    rest = tuple(
        (name, p.numel())
        for name, p in own.items()
        if name not in covered and not (memory_of(p) in storages and distinct([*inside, p]) == distinct(inside))
    )
    note = "" if trained else "; no parameter requires a gradient: all count as trained"
    if trained and frozen and any(id(own[name]) not in trained for name in covered):
        note = "; frozen parameters are among them"
    untrained = sum(id(p) not in trained for p in own.values())
    if trained and not frozen and untrained:
        note = f", {untrained} of them frozen" if rest else f"; {untrained} are frozen"
    computed = _computed(model)
    if computed:
        note += f"; the weight of {len(computed)} layers is computed: {', '.join(computed[:3])}"
    quantised = sum(1 for _ in packed_layers(model))
    if quantised:
        note += f"; {quantised} layers are quantised, their weights count as they are packed"
    return Sites(tuple(chosen), distinct(own.values()), rest, note)


def _matching(model: nn.Module, sites: Sequence[Site], pattern: Pattern) -> set[str]:
    """Names of the sites that a pattern matches: by their clean names, else by their other names."""
    found = {site.name for site in sites if _matches(site.name, pattern)}
    if found:
        return found
    others = site_names(model)
    for site in sites:
        name, bracket, group = site.name.partition("[")
        if any(_matches(f"{other}{bracket}{group}", pattern) for other in others.get(name, ())):
            found.add(site.name)
    return found


def _no_match(model: nn.Module, pattern: Pattern, whole: Sequence[Site], kinds: Sequence[str]) -> ModelError:
    """Why no site matches: frozen, computed, or no such name."""
    frozen = [site.name for site in whole if _matches(site.name, pattern)]
    computed = [name for name in _computed(model) if _matches(name, pattern)]
    if frozen:
        return ModelError(
            f"Every site that matches {_text(pattern)!r} is frozen ({', '.join(frozen[:3])}): it was not trained.",
            "Choose trained layers (kinds= names other kinds), or cover frozen ones too: find_sites(frozen=True).",
        )
    quantised = [clean_name(name) for name in packed_layers(model)]
    if any(_matches(name, pattern) for name in quantised):
        return ModelError(
            f"{len(quantised)} layers are quantised ({', '.join(quantised[:3])}): their weights are packed numbers of "
            "8 bits or less, which nothing trains and which have no gradient.",
            "Attribute adapters that were trained on them (peft), or load the model in bfloat16 or float32.",
        )
    if computed:
        return ModelError(
            f"{', '.join(computed[:3])}: their weight is computed (a parametrisation, weight or spectral "
            "normalisation, pruning), so it is no parameter that has a gradient.",
            "Choose other layers, or bake the weight in first (parametrize.remove_parametrizations, prune.remove).",
        )
    return ModelError(f"No site matches {_text(pattern)!r}.", _nearest(model, whole, pattern, kinds))


def _computed(model: nn.Module) -> list[str]:
    """Layers that would be sites, but whose weight is computed from other parameters."""
    return [clean_name(name) for name, layer, _ in layers_in(model) if not isinstance(layer.weight, nn.Parameter)]


def _parameter(module: Any, attribute: str) -> nn.Parameter | None:
    value = getattr(module, attribute, None)
    return value if isinstance(value, nn.Parameter) else None


def _all_sites(model: nn.Module, trained: set[int] | None) -> list[Site]:
    """Every site, of all parameters or of those with these ids."""
    parameter_names = {id(p): name for name, p in named_parameters(model).items()}
    by_weight: dict[int, list[tuple[str, Any, Layer]]] = {}
    for name, module, layer in layers_in(model):
        weight = _parameter(module, "weight")
        if weight is not None and not packed(weight):
            by_weight.setdefault(id(module.weight), []).append((name, module, layer))
    sites: list[Site] = []
    weights: list[tuple[str, Tensor]] = []
    for found in by_weight.values():
        users: list[tuple[str, Any, Layer]] = sorted(
            found, key=lambda user: user[2].kind == "embedding"
        )  # a tied table is its linear's site
        name, module, layer = users[0]
        bias = _parameter(module, "bias")
        if any(_parameter(m, "bias") is not None and m.bias is not bias for _, m, _ in users[1:]):
            raise ModelError(
                f"{', '.join(clean_name(n) for n, _, _ in users)} share a weight but not a bias.",
                "Leave them out, or share the bias too.",
            )
        groups = layer.groups(module)
        values = {"weight": module.weight} | ({"bias": bias} if bias is not None else {})
        covered = {a: p for a, p in values.items() if trained is None or id(p) in trained}
        if not covered:
            continue
        routed = groups > 1 if isinstance(module, Multiplied) else EXPERT.search(name) is not None
        whole = Site(
            name=clean_name(name if isinstance(module, nn.Module) else re.sub(r"[._]weight$", "", name)),
            kind=layer.kind,
            shape=layer.shape(module),
            modules=tuple(n for n, _, _ in users),
            group=0,
            groups=groups,
            parameters=tuple((a, parameter_names[id(p)]) for a, p in covered.items() if id(p) in parameter_names),
            count=sum(p.numel() for p in covered.values()) // groups,
            partial=next(iter(covered)) if len(covered) < len(values) else "",
            rows="alone" if routed else "first",
            routed=routed,
        )
        columns = range(whole.shape[1])[whole.columns(model)]
        for group in range(groups):
            suffix = f"[{group}]" if groups > 1 else ""
            sites.append(replace(whole, name=whole.name + suffix, group=group, shape=(whole.shape[0], len(columns))))
            weights.append((sites[-1].name, module.weight))
    return [replace(site, inside=larger) for site, larger in zip(sites, _inside(weights))]


def _inside(weights: Sequence[tuple[str, Tensor]]) -> list[str]:
    """For each site, the site whose larger weight contains its own in memory, or ""."""
    by_storage: dict[int, list[tuple[str, Tensor]]] = {}
    for name, weight in weights:
        by_storage.setdefault(weight.untyped_storage().data_ptr() or -id(weight), []).append((name, weight))
    found = []
    for _, own in weights:
        sharing = by_storage[own.untyped_storage().data_ptr() or -id(own)]
        larger = ((n, w) for n, w in sharing if w.numel() > own.numel() and distinct([w, own]) == w.numel())
        found.append(next((name for name, _ in larger), ""))
    return found


def _text(pattern: Pattern) -> str:
    return pattern if isinstance(pattern, str) else pattern.pattern


def _matches(name: str, pattern: Pattern) -> bool:
    if isinstance(pattern, str):
        plain = re.sub(r"\[(\d+)\]$", r".\1", name)  # a group's brackets are no character class
        return name == pattern or fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(plain, pattern)
    return pattern.search(name) is not None


def _nearest(model: nn.Module, sites: Sequence[Site], pattern: Pattern, kinds: Sequence[str]) -> str:
    names = [site.name for site in sites]
    if not names:
        found = sorted({site.kind for site in _all_sites(model, None)})
        return (
            f"The model has no {' or '.join(kinds)} layer; it has {', '.join(found) or 'none that is supported'}. "
            "Choose with kinds=."
        )
    near = near_names(_text(pattern).replace("*", ""), names)
    return f"{near} There are {len(names)} sites; `whence attrib sites` and print(find_sites(model)) list them."


def parameters_of(model: nn.Module, sites: Sequence[Site], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Per-site matrices [o i] as parameter-shaped tensors, by the model's own parameter names. Groups of a layer that
    are not among the sites have zeros."""
    out: dict[str, dict[int, Tensor]] = {}
    for site in sites:
        module, layer = layer_at(model, site.modules[0])
        matrix = values[site.name]
        if site.partial:
            whole = matrix.new_zeros(*matrix.shape[:-1], layer.shape(module)[1])
            whole[..., site.columns(model)] = matrix
            matrix = whole
        shaped = layer.weight(module, matrix)
        for attribute, name in site.parameters:
            parts = out.setdefault(name, {})
            if site.groups > 1 and not parts:
                parts.update({group: torch.zeros_like(shaped[attribute]) for group in range(site.groups)})
            parts[site.group] = shaped[attribute]
    return {name: parts[0] if len(parts) == 1 else torch.cat(list(parts.values())) for name, parts in out.items()}


def matrices_of(model: nn.Module, sites: Sequence[Site], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `parameters_of`: parameter-shaped tensors as one [o i] matrix a site."""
    out = {}
    for site in sites:
        module, layer = layer_at(model, site.modules[0])
        given = {attribute: values[name] for attribute, name in site.parameters}
        if site.partial:
            like = next(iter(given.values()))
            both = {name: _parameter(module, name) for name in ("weight", "bias")}
            given = {name: like.new_zeros(p.shape) for name, p in both.items() if p is not None} | given
        out[site.name] = layer.matrix(module, given, site.group)[..., site.columns(model)]
    return out
