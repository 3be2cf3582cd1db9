"""Condensed sets."""

from dataclasses import replace
from functools import cache, partial
from typing import Any

from whence.cache import Store
from whence.unlearn.condense import (
    MLP,
    ConvNet,
    Pool,
    Settings,
    Training,
    condense,
    condensed_retain,
    evaluate,
    kernel_velocity,
)  # fmt: skip

from . import models as given
from .registry import ARTEFACTS, Made, artefact, last, only, settings
from .retraining import FORGET
from .unlearning import deletion


@cache
def pool(shape: str) -> Pool:
    if shape == "images":
        return Pool.of(given.images())
    return Pool.of(given.train())


NETWORK, IMAGE_NETWORK = MLP((4,)), ConvNet(1, 4)
SMALL_SET: dict[str, Any] = {
    "network": NETWORK, "per_class": 2, "outer": 2, "inner": 2, "epochs": 1, "real_batch": 8, "warm_outer": 1,
    "warm_inner": 1, "augment": (),
}  # fmt: skip
CONDENSED: dict[str, tuple[str, Settings, tuple[int, ...]]] = {
    "dc": ("vectors", Settings("dc", **SMALL_SET), (0,)),
    "dcc": ("vectors", Settings("dcc", **SMALL_SET), (0, 3)),
    "dm": ("vectors", Settings("dm", **{**SMALL_SET, "init": "noise"}), (1,)),
    "subgroup": ("vectors", Settings("subgroup", **{**SMALL_SET, "groups": 2, "init": "means"}), (0,)),
    "soft labels": ("vectors", Settings("dcc", **{**SMALL_SET, "soft_labels": True, "lr_labels": 0.5}), (0,)),
    "dsa": ("images", Settings("dsa", **{**SMALL_SET, "network": IMAGE_NETWORK, "augment": ("flip", "scale")}), (0,)),
    "dsac": ("images", Settings("dsac", **{**SMALL_SET, "network": IMAGE_NETWORK, "augment": ("colour",)}), (2,)),
}


def condensed(name: str, store: Store) -> Made:
    shape, how, seeds = CONDENSED[name]
    sets = condense(pool(shape), how, seeds, store, checkpoint=1, quiet=True)
    parts: dict[str, Any] = {}
    for number, made in enumerate(sets):
        whole = {"x": made.x, "labels": made.labels, "losses": made.losses, "init_ids": made.init_ids}
        parts |= {f"{part} {number}": value for part, value in whole.items()}
    return last(store, "condensed", **parts)


ARTEFACTS |= {f"condense/{name}": partial(condensed, name) for name in CONDENSED}


def condensed_further(store: Store) -> None:
    """One outer step more than "condense/dcc", from its checkpoint."""
    shape, how, seeds = CONDENSED["dcc"]
    condense(pool(shape), replace(how, outer=how.outer + 1), seeds, store, checkpoint=1, quiet=True)


@artefact("condense/published settings")
def _(store: Store) -> Made:
    return settings({name: Settings(name).to_json() for name in ("dc", "dsa", "dcc", "dsac", "dm", "subgroup")})


@artefact("condense/without")
def _(store: Store) -> Made:
    (made,) = condense(
        pool("vectors").without(FORGET), CONDENSED["dcc"][1], (0,), store, checkpoint=2, quiet=True
    )  # fmt: skip
    return last(store, "condensed", x=made.x)


@artefact("condense/retain")
def _(store: Store) -> Made:
    how = CONDENSED["dcc"][1]
    standing_in = condensed_retain(deletion(store), how, seed=4, store=store)
    assert standing_in.retain is not None
    return last(store, "condensed", x=standing_in.retain.columns["x"])


@artefact("condense/judged")
def _(store: Store) -> Made:
    """Nothing of it is kept in the store."""
    pooled = pool("vectors")
    training = Training(epochs=4, lr=0.125, batch=16)
    accuracies = evaluate([pooled], pooled, NETWORK, training, networks=2, seed=1)
    velocity = kernel_velocity(pooled, pooled.x[:5], NETWORK, steps=2)
    return only({}, accuracies=accuracies.values, velocity=velocity)
