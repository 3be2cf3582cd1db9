"""Sites: the linear maps of a model that a job looks at, and the share of its parameters that they cover.

A site is one weight. Modules that share the weight (tied embeddings) are one site, and so are repeated calls of
one module: their gradients add. Each group of a grouped convolution is a site of its own, because groups
are different weights on different inputs. Names are the clean ones: `blocks.0.mlp.fc_in`, not
`blocks.0._original_component.mlp._original_component.fc_in._original_component`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from ..display import table
from .layer_names import layer_at

HEAD = ("site", "kind", "out × in", "parameters")


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
    def size(self) -> int:
        """Numbers of its gradient."""
        return self.shape[0] * self.shape[1]

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

    @property
    def parameters(self) -> set[str]:
        """The model's own names of the parameters that the sites are of."""
        return {name for site in self.sites for _, name in site.parameters}

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
        return f"{table(HEAD, self.lines).text}\n{self.summary}"

    @property
    def summary(self) -> str:
        text = f"{len(self)} sites cover {self.covered:,} of {self.total:,} parameters ({self.coverage:.1%})"
        return text + (f"; {len(self.left_out)} tensors of parameters left out" if self.left_out else "") + self.note

    @property
    def lines(self) -> list[tuple[str, str, str, int]]:
        """Name, kind, size and parameters of every site, under HEAD."""
        return [(s.name, s.kind, f"{s.shape[0]} × {s.shape[1]}", s.count) for s in self.sites]

    def _repr_html_(self) -> str:
        return table(HEAD, self.lines, self.summary).html


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
            both = {name: parameter_at(module, name) for name in ("weight", "bias")}
            given = {name: like.new_zeros(p.shape) for name, p in both.items() if p is not None} | given
        out[site.name] = layer.matrix(module, given, site.group)[..., site.columns(model)]
    return out


def parameter_at(module: Any, attribute: str) -> nn.Parameter | None:
    value = getattr(module, attribute, None)
    return value if isinstance(value, nn.Parameter) else None
