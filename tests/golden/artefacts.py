"""All artefacts, by name; those of the front door, which are too large to compute here; and files outside a store."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from whence import attrib, decomp
from whence.cache import Store
from whence.cache.store.keys import key_of
from whence.corpora import Corpus
from whence.decomp import BUILDERS
from whence.demo import Plan
from whence.language_model import Shape, Training, model_inputs
from whence.unlearn.condense import METHODS as CONDENSING
from whence.unlearn.condense import Condensed, condense

from . import models as given
from .attribution import METHODS, replayed_weights
from .condensing import CONDENSED, condensed_further, pool
from .decomposition import BUILDERS as BUILT
from .decomposition import by_hand, codes, stream
from .registry import ARTEFACTS, DROPPED, NEWER, OTHER_KEY, READERS, REDEFINED, RENAMED, Made, artefact, settings

__all__ = [
    "ARTEFACTS", "DROPPED", "NEWER", "OTHER_KEY", "READERS", "REDEFINED", "RENAMED", "Made", "condensed_further",
    "every_method", "read_files", "replayed_weights", "write_files",
]  # fmt: skip


def every_method() -> tuple[set[str], set[str]]:
    """Names of all attribution methods, builders and condensation methods, and of those that are computed here."""
    builders = {name.split()[0] for name in BUILT} | {"sae"}  # as autoencoder/*
    own = {name.split()[0] for name in METHODS} | builders | {how.method for _, how, _ in CONDENSED.values()}
    return {*attrib.METHODS, *BUILDERS, *CONDENSING}, own | NEWER


@artefact("whence/language model")
def _(store: Store) -> Made:
    """Its entry is the trained model's parameters."""
    inputs = model_inputs(Shape(1, 8, 2, 16, given.WORDS), Training(epochs=1, batch=4, rate=0.01), given.texts())
    return settings(inputs, key_of("model", inputs))


@artefact("whence/language model without a document")
def _(store: Store) -> Made:
    weights = np.ones(20, np.float32)
    weights[:3] = 0
    inputs = model_inputs(Shape(), Training(), given.texts(), weights)
    return settings(inputs, key_of("model", inputs))


def demo_part(name: str, store: Store) -> Made:
    corpus = Corpus("golden", given.texts(), given.questions())
    inputs = Plan(corpus).inputs[name]
    return settings(inputs, key_of("report", inputs))


ARTEFACTS |= {f"whence/demo {name}": partial(demo_part, name) for name in ("influence", "atoms", "forgetting")}
ARTEFACTS["whence/demo condensing"] = partial(demo_part, "condensing")


def write_files(folder: Path) -> None:
    """What is kept outside of the store: a dictionary, a condensed set, an unfinished build."""
    decomp.save(by_hand(), folder / "dictionary")
    shape, how, seeds = CONDENSED["dcc"]
    condense(pool(shape), how, seeds, quiet=True)[0].save(folder / "condensed.npz")
    half_built(folder / "unfinished.safetensors")


BUILT_ON = BUILT["itda no limit"]


class Stopped(Exception):
    """The stream ends in the middle of a build."""


def half_built(path: Path) -> None:
    def breaks() -> Any:
        yield from stream().select(np.arange(128)).batches(32)
        raise Stopped

    try:
        BUILT_ON.build(breaks(), checkpoint=path, every=1)
    except Stopped:
        return
    raise AssertionError("the build should have been stopped")


def read_files(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """Name of the artefact that each must equal -> its values."""
    dictionary = decomp.load(folder / "dictionary")
    made = Condensed.load(folder / "condensed.npz")
    finished = BUILT_ON.build(stream().batches(64), checkpoint=folder / "unfinished.safetensors")
    return {
        "dictionary/by hand": {"atoms": dictionary.atoms},
        "condense/dcc": {"x 0": made.x, "labels 0": made.labels, "losses 0": made.losses, "init_ids 0": made.init_ids},
        "dictionary/itda no limit": codes(finished),
    }
