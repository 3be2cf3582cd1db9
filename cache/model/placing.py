"""Where a layer's calls have the example: found by running a few examples together and the first of them alone, from
how the shapes of the calls follow the number of examples. The gradients check it (checks.py)."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from .borrowing import borrowed
from .calls import Call, Calls, tapped
from .capture import Batch, Objective, batch_row, one_more
from .sites import Site, Sites
from .stateless import unwrapped

Place = Literal["first", "table", "second", "learned", "routed"]


def placed(model: nn.Module, sites: Sites, batch: Batch, objective: Objective) -> Sites:
    """The sites that the forward pass calls on this batch, and experts that none of it reaches, each with the axis of
    its rows that is the example (two forward passes, or four with tables of positions; no gradient)."""
    model = unwrapped(model)
    together, value = _calls(model, sites, batch, objective)
    single, _ = _calls(model, sites, batch_row(batch, 0), objective)
    places = {site.name: _place(site, together, single) for site in sites if together.of(site)}
    if "table" in places.values() and not _can_be_spread(model, sites, batch, objective, value):
        places |= {name: "learned" for name, place in places.items() if place == "table"}
    experts = _routed_lists(sites, places)
    kept = []
    for site in sites:
        place = places.get(site.name)
        routed = site.routed or place == "routed" or (place is None and bool(_lists(site.name) & experts))
        if place is None and not routed:
            continue
        partly = any(_lists(other.name) & _lists(site.name) for other in sites if other.name not in places)
        if routed or partly or place == "learned":
            kept.append(replace(site, rows="alone", routed=routed))
        else:
            kept.append(replace(site, rows="second" if place == "second" else "first"))
    return sites.only([site.name for site in kept]).having(kept)


def _calls(
    model: nn.Module, sites: Sites, batch: Batch, objective: Objective, tables: bool = False
) -> tuple[Calls, Tensor]:
    calls = Calls(len(next(iter(batch.values()))), tables=tables)
    with borrowed(model), torch.no_grad(), tapped(model, sites, calls, certain=True):
        return calls, objective(model, batch)


def _can_be_spread(model: nn.Module, sites: Sites, batch: Batch, objective: Objective, value: Tensor) -> bool:
    """Whether the model computes the same where its tables without a batch axis have one. (A table of as many rows as
    there are examples is spread in the batch of one example more.)"""
    for each in (batch, one_more(batch)):
        try:
            spread = _calls(model, sites, each, objective, tables=True)[1]
        except Exception:  # whatever a model raises at another shape
            return False
        own = spread[: len(value)] if spread.ndim == 1 else spread
        if own.shape != value.shape or not torch.allclose(own, value, rtol=1e-2, atol=1e-2, equal_nan=True):
            return False
    return True


def _place(site: Site, together: Calls, single: Calls) -> Place:
    several, one = together.of(site), single.of(site)
    if len(several) != len(one):
        return "routed"
    found = {_axis(site, a, b, together.size) for a, b in zip(several, one)}
    return found.pop() if len(found) == 1 else "routed" if "routed" in found else "learned"


def _axis(site: Site, together: Call, single: Call, size: int) -> Place:
    several, one = tuple(together.x.shape), tuple(single.x.shape)
    if several == one:
        table = site.kind == "embedding" and (len(one) == 1 or (len(one) == 2 and one[0] == 1))
        return "table" if table else "learned"
    if len(several) != len(one):
        return "learned"
    if several == (size * one[0], *one[1:]):
        return "first"
    if len(one) > 1 and one[1] == 1 and several == (one[0], size, *one[2:]):
        return "second"
    return "routed"


def _lists(name: str) -> set[str]:
    """The lists of modules that a layer is in, each as its name with one number left open."""
    return {name[: found.start()] + ".*" + name[found.end() :] for found in re.finditer(r"\.\d+(?=\.|$)", name)}


def _routed_lists(sites: Sequence[Site], places: dict[str, Place]) -> set[str]:
    names = [site.name for site in sites if site.routed or places.get(site.name) == "routed"]
    return set().union(*(_lists(name) for name in names))
