"""Factors that merge: A, S and Lambda of data kept as sums over examples, so data are added, or a document taken
out, without looking again at the rest.

A, S and the number of positions add up whatever the basis. Lambda is a sum of squares in one eigenbasis, so it adds
up only in a basis that does not change: the basis is fixed once (frozen), each shard's Lambda is summed in it, and
every later change of the data keeps it. Any orthogonal basis gives unbiased eigenvalues; a basis of most of the data
is close to the best one. With labels drawn by example id, sums do not depend on which shard an example is in.

    basis = Basis.of(merge(*(moment_sums(trained, part) for part in parts)))
    squares = merge(*(square_sums(basis, trained, part) for part in parts))
    factors = factors_of(basis, trained, squares)
    less = factors_of(basis, trained, subtract(squares, square_sums(basis, trained, document)))
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import numpy as np

from whence.cache import DataError, Examples, NumericalError, Sites, TrainedModel
from whence.cache.model.batches import owners

from . import kernels
from .curvature import Damping, SiteFactors
from .factors import Factors
from .fit import Moments, fold_sites, moments
from .method import Eigen
from .methods.ekfac import Bases, RotatedSquares


@dataclass(frozen=True)
class Sums:
    """Sums over the examples of one or more shards.

    arrays: per site "site/A" [i i], "site/S" [o o] and "site/positions" (what = "moments"), or "site" [o i] (what =
    the fingerprint of a basis). owners: site -> the site whose A is its own, for layers that read the same input.
    examples: id -> hash of the contents, of those that are in them. inputs: of the model, task and sites.
    """

    what: str
    arrays: Mapping[str, np.ndarray]
    examples: Mapping[int, str]
    sites: Sites
    inputs: Mapping[str, Any]
    owners: Mapping[str, str] = field(default_factory=dict)

    @property
    def ids(self) -> frozenset[int]:
        return frozenset(self.examples)

    @property
    def count(self) -> int:
        return len(self.examples)


@dataclass(frozen=True)
class Basis:
    """A frozen eigenbasis of every site."""

    bases: Bases
    sites: Sites

    @staticmethod
    def of(sums: Sums, eigen: Eigen = "float32") -> "Basis":
        """Eigenvectors of the merged moments. Raises DataError for sums that are not moments."""
        if sums.what != "moments":
            raise DataError("A basis comes from moments.", "Merge what moment_sums returned.")
        return Basis(Bases.of(means(sums), eigen, None, {}), sums.sites)

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for name, array in sorted(self.bases.arrays.items()):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def means(sums: Sums) -> dict[str, Moments]:
    """Moments over all the examples of the sums."""
    positions = {s.name: max(float(sums.arrays[f"{s.name}/positions"]), 1.0) for s in sums.sites}
    a = {owner: sums.arrays[f"{owner}/A"] / positions[owner] for owner in set(sums.owners.values())}
    return {
        name: Moments(a[sums.owners[name]], sums.arrays[f"{name}/S"] / count, count / max(sums.count, 1))
        for name, count in positions.items()
    }


def moment_sums(trained: TrainedModel, examples: Examples, *, sites: Any = None, seed: int = 0) -> Sums:
    """Sums of A and S over one shard of data, kept in the store under the shard's own key.

    Args:
        trained: the model, its sites and its store; its own training data are not used.
        examples: the shard.
        sites: the layers, as for TrainedModel; by default the trained model's own.
        seed: of the sampled labels.

    Raises the errors of EKFAC.fit.
    """
    run = trained.run("sampled", trained.find(sites), examples, seed=seed)
    found, _ = moments(run, run.inputs())
    owner = owners({name: mean.a for name, mean in found.items()})
    arrays: dict[str, np.ndarray] = {}
    for name, mean in found.items():
        positions = mean.per_example * len(examples)
        if owner[name] == name:
            arrays[f"{name}/A"] = mean.a * positions
        arrays |= {f"{name}/S": mean.s * positions, f"{name}/positions": np.asarray(positions)}
    return Sums("moments", arrays, contents(examples), run.sites, common(run.inputs()), owner)


def square_sums(basis: Basis, trained: TrainedModel, examples: Examples, *, seed: int = 0) -> Sums:
    """Sum of Lambda over one shard in the frozen basis, kept in the store under the shard's and the basis's key.
    Arguments and errors are those of `moment_sums`."""
    run = trained.run("sampled", basis.sites, examples, seed=seed)
    width = max(1, int(examples.lengths.max()))
    order = {s.name: kernels.rotation_order(width, *s.shape) for s in run.sites}
    add = RotatedSquares(basis.bases, order, "float32", half=False)
    stage = run.inputs(stage="squares", basis=basis.fingerprint)
    values, _ = fold_sites(run, stage, add, "eigenvalues")
    arrays = {name: value * len(examples) for name, value in values.items()}
    return Sums(basis.fingerprint, arrays, contents(examples), run.sites, common(run.inputs()))


def contents(examples: Examples) -> dict[int, str]:
    """Id -> hash of the example."""
    return {i: examples.select([row]).fingerprint for row, i in enumerate(examples.ids.tolist())}


def common(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What shards that are merged must agree on: everything but the data."""
    return {name: value for name, value in inputs.items() if name != "data"}


def merge(*sums: Sums) -> Sums:
    """The sums of all these shards together. Raises DataError if they overlap, or are of other models, sites or
    bases, naming what differs."""
    if not sums:
        raise DataError("There is nothing to merge.", "Give the sums of at least one shard.")
    return reduce(_add, sums)


def _add(one: Sums, other: Sums) -> Sums:
    _check_alike(one, other)
    both = one.ids & other.ids
    if both:
        raise DataError(
            f"{len(both)} examples are in both shards, for instance {sorted(both)[:3]}.",
            "Cut the data so that every example is in one shard.",
        )
    arrays = {name: value + other.arrays[name] for name, value in one.arrays.items()}
    return replace(one, arrays=arrays, examples={**one.examples, **other.examples})


def subtract(whole: Sums, part: Sums) -> Sums:
    """The sums without the examples of `part`. Raises DataError if some of them are not in `whole` or none would be
    left, NumericalError if a sum of squares would become negative by more than rounding."""
    _check_alike(whole, part)
    missing = sorted(i for i, content in part.examples.items() if whole.examples.get(i) != content)
    if missing:
        raise DataError(
            f"{len(missing)} of the examples to take out are not in the sums, or were others there, for instance "
            f"{missing[:3]}.",
            "Take out what was put in.",
        )
    if part.ids == whole.ids:
        raise DataError("Nothing would be left.", "Take out fewer examples.")
    arrays = {}
    for name, value in whole.arrays.items():
        left = value - part.arrays[name]
        if whole.what != "moments":
            if left.min() < -1e-6 * np.abs(value).max():
                raise NumericalError(
                    f"{name} would be negative without these examples: they were not summed like the rest.",
                    "Sum them with the same model, labels (seed) and basis.",
                )
            left = np.maximum(left, 0.0)
        arrays[name] = left
    return replace(whole, arrays=arrays, examples={i: whole.examples[i] for i in whole.ids - part.ids})


def _check_alike(one: Sums, other: Sums) -> None:
    if one.what != other.what:
        raise DataError(
            "These sums are of different things (moments, or squares in another basis).",
            "Merge moments with moments, and squares only in one frozen basis.",
        )
    differing = [name for name in one.inputs if one.inputs[name] != other.inputs.get(name)]
    if differing:
        raise DataError(
            f"These sums differ in {', '.join(differing)}.", "Sum all shards with one model, task, sites and seed."
        )


def factors_of(basis: Basis, trained: TrainedModel, squares: Sums, damping: Damping = Damping()) -> Factors:
    """EK-FAC factors of a trained model from merged squares. Raises DataError for squares of another basis."""
    if squares.what != basis.fingerprint:
        raise DataError("These squares were summed in another basis.", "Give the basis they were summed in.")
    per_site = {
        site.name: SiteFactors(*basis.bases.at(site.name), squares.arrays[site.name] / squares.count)
        for site in squares.sites
    }
    inputs = {**squares.inputs, "method": "ekfac", "basis": basis.fingerprint, "data": data_of(squares.examples)}
    return Factors(trained, "ekfac", inputs, squares.sites, per_site, squares.count, damping)


def data_of(examples: Mapping[int, str]) -> str:
    """A hash of a set of examples, in any order."""
    return hashlib.sha256(json.dumps(sorted(examples.items())).encode()).hexdigest()
