"""Sites: the linear maps of a model that a job looks at, chosen by name, with the share of parameters covered.

A site is one weight. Modules that share the weight (tied embeddings) are one site, and so are repeated calls of
one module: their gradients add. Each group of a grouped convolution is a site of its own, because groups
are different weights on different inputs. Names are the clean ones: `blocks.0.mlp.fc_in`, not
`blocks.0._original_component.mlp._original_component.fc_in._original_component`.
"""

import fnmatch
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor, nn

from ..display import table
from ..errors import ModelError, near_names
from ..jobs.progress import say
from .layers import KINDS, Layer, layer_of
from .stateless import call_with as call_with
from .stateless import copied as copied
from .stateless import named_parameters as named_parameters

Pattern = str | re.Pattern[str]
WRAPPERS = ("_original_component", "base_model", "_orig_mod", "_fsdp_wrapped_module")


@dataclass(frozen=True)
class Site:
    """One weight seen as a linear map.

    name: clean name. kind: linear, conv, embedding or norm. shape: (o, i), i counting the bias.
    modules: full names of the modules that use the weight. group: which group of a grouped convolution.
    parameters: attribute ("weight", "bias") -> the model's own parameter name. count: numbers covered.
    """

    name: str
    kind: str
    shape: tuple[int, int]
    modules: tuple[str, ...]
    group: int
    groups: int
    parameters: tuple[tuple[str, str], ...]
    count: int

    @property
    def settings(self) -> dict[str, Any]:
        """What of this site enters a key."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "modules": list(self.modules),
            "group": self.group,
        }


@dataclass(frozen=True)
class Sites(Sequence[Site]):
    """The chosen sites in the model's order, and what they leave out."""

    sites: tuple[Site, ...]
    total: int  # parameters in the model
    left_out: tuple[tuple[str, int], ...]  # parameter name, numbers in it

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
    def coverage(self) -> float:
        """Share of the model's parameters that the sites cover, 0 to 1."""
        return sum(site.count for site in self.sites) / max(self.total, 1)

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
        )

    def __repr__(self) -> str:
        return f"Sites({self.summary})"

    def __str__(self) -> str:
        rows = [(s.name, s.kind, f"{s.shape[0]} x {s.shape[1]}", f"{s.count:,}") for s in self.sites]
        return table(("site", "kind", "out x in", "parameters"), rows).text + f"\n{self.summary}"

    @property
    def summary(self) -> str:
        covered = sum(site.count for site in self.sites)
        text = f"{len(self)} sites cover {covered:,} of {self.total:,} parameters ({self.coverage:.1%})"
        return text + (f"; {len(self.left_out)} parameters left out" if self.left_out else "")

    def _repr_html_(self) -> str:
        rows = [(s.name, s.kind, f"{s.shape[0]} × {s.shape[1]}", s.count) for s in self.sites]
        return table(("site", "kind", "out × in", "parameters"), rows, self.summary).html


def clean_name(name: str) -> str:
    """A module's name without the wrappers that libraries put around modules.

    >>> clean_name("blocks.0._original_component.mlp")
    'blocks.0.mlp'
    """
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def find_sites(
    model: nn.Module,
    pattern: Pattern | Sequence[Pattern] = "*",
    *,
    exclude: Pattern | Sequence[Pattern] = (),
    kinds: Sequence[str] = ("linear", "conv"),
    quiet: bool = False,
) -> Sites:
    """The sites of `model` whose clean names match: a glob (`"*.mlp.*"`), a compiled regular expression, or
    several of them. `kinds` says which layers: linear, conv, embedding, norm. Says what share of the parameters
    is covered, on standard error, unless `quiet`.

    Raises ModelError if a pattern matches nothing, with the nearest names.

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
    every = [site for site in _all_sites(model) if site.kind in kinds]
    patterns = [pattern] if isinstance(pattern, (str, re.Pattern)) else list(pattern)
    excluded = [exclude] if isinstance(exclude, (str, re.Pattern)) else list(exclude)
    for each in patterns:
        if not any(_matches(site.name, each) for site in every):
            raise ModelError(f"No site matches {_text(each)!r}.", _nearest(model, every, each, kinds))
    chosen = [
        site
        for site in every
        if any(_matches(site.name, p) for p in patterns) and not any(_matches(site.name, p) for p in excluded)
    ]
    if not chosen:
        raise ModelError("Every site that matches is also excluded.", "Exclude less.")
    covered = {name for site in chosen for _, name in site.parameters}
    rest = tuple((name, p.numel()) for name, p in named_parameters(model).items() if name not in covered)
    sites = Sites(tuple(chosen), sum(p.numel() for p in model.parameters()), rest)
    if not quiet:
        say(sites.summary)
    return sites


def _parameter(module: nn.Module, attribute: str) -> nn.Parameter | None:
    value = getattr(module, attribute, None)
    return value if isinstance(value, nn.Parameter) else None


def _all_sites(model: nn.Module) -> list[Site]:
    parameter_names = {id(p): name for name, p in named_parameters(model).items()}
    by_weight: dict[int, list[tuple[str, nn.Module, Layer]]] = {}
    for name, module in model.named_modules():
        layer = layer_of(module)
        if layer is not None and _parameter(module, "weight") is not None:
            by_weight.setdefault(id(module.weight), []).append((name, module, layer))
    sites = []
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
        parameters = tuple((a, parameter_names[id(p)]) for a, p in values.items() if id(p) in parameter_names)
        for group in range(groups):
            sites.append(
                Site(
                    name=clean_name(name) + (f"[{group}]" if groups > 1 else ""),
                    kind=layer.kind,
                    shape=layer.shape(module),
                    modules=tuple(n for n, _, _ in users),
                    group=group,
                    groups=groups,
                    parameters=parameters,
                    count=sum(p.numel() for p in values.values()) // groups,
                )
            )
    return sites


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
        found = sorted({site.kind for site in _all_sites(model)})
        return (
            f"The model has no {' or '.join(kinds)} layer; it has {', '.join(found) or 'none that is supported'}. "
            "Choose with kinds=."
        )
    near = near_names(_text(pattern).replace("*", ""), names)
    return f"{near} There are {len(names)} sites; print(find_sites(model)) lists them."


def parameters_of(model: nn.Module, sites: Sequence[Site], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Per-site matrices [o i] as parameter-shaped tensors, by the model's own parameter names."""
    out: dict[str, list[Tensor]] = {}
    for site in sites:
        module = model.get_submodule(site.modules[0])
        layer = layer_of(module)
        assert layer is not None  # sites come from layers
        for attribute, value in layer.weight(module, values[site.name]).items():
            out.setdefault(dict(site.parameters)[attribute], []).append(value)
    return {name: parts[0] if len(parts) == 1 else torch.cat(parts) for name, parts in out.items()}


def matrices_of(model: nn.Module, sites: Sequence[Site], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `parameters_of`: parameter-shaped tensors as one [o i] matrix a site."""
    out = {}
    for site in sites:
        module = model.get_submodule(site.modules[0])
        layer = layer_of(module)
        assert layer is not None
        given = {attribute: values[name] for attribute, name in site.parameters}
        out[site.name] = layer.matrix(module, given, site.group)
    return out
