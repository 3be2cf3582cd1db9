"""Activations, dictionaries and autoencoders."""

from dataclasses import replace
from functools import cache, partial

import numpy as np

from whence import decomp
from whence.cache import Classification, LanguageModelling, Store, TrainedModel, activations
from whence.decomp import (
    ITDA,
    SAE,
    Activations,
    Calibrated,
    Dictionary,
    KMeans,
    Partition,
    Random,
    SparseAutoencoder,
)  # fmt: skip
from whence.decomp.activations import Origin
from whence.decomp.activations import from_entry as activations_of
from whence.decomp.files import from_entry, put

from . import models as given
from .registry import ARTEFACTS, READERS, Made, artefact, last, only, plain, stored


@cache
def by_hand() -> Dictionary:
    """Atoms whose bits are the same everywhere, with a place each."""
    atoms = np.concatenate([np.eye(6), [[0.6, 0.8, 0, 0, 0, 0], [0, 0, 0.8, -0.6, 0, 0]]]).astype(np.float32)
    n = np.arange(len(atoms))
    provenance = decomp.Provenance.of(n, n % 3, n + 1, np.ones(len(n)), 0.5, n == 0)
    return Dictionary(atoms, provenance, 2, Origin("mix", "a model", "some data"), np.full(6, 0.125, np.float32))


def reader() -> TrainedModel:
    return TrainedModel(given.reader(0), given.texts(), LanguageModelling(), quiet=True)


def observed(at: list[str], dtype: str, store: Store) -> Made:
    entry = activations(reader(), at, store=store, dtype=dtype)
    return stored(store, "activations", entry.key, ends=entry.about["ends"], **read_activations(store, entry.key))


ARTEFACTS |= {
    "activations/one": partial(observed, ["mix"], "float32"),
    "activations/two": partial(observed, ["mix", "embed"], "float32"),
    "activations/bfloat16": partial(observed, ["mix"], "bfloat16"),
}


@artefact("activations/numbers")
def _(store: Store) -> Made:
    entry = activations(TrainedModel(given.net(0), given.train(), Classification(), quiet=True), "1", store=store)
    return stored(store, "activations", entry.key)


def read_activations(store: Store, key: str) -> dict[str, np.ndarray]:
    whole = activations_of(store.get(key), "mix").whole()
    return {"rows": whole.x, "document": whole.document, "position": whole.position, "token": whole.token}


READERS |= {f"activations/{name}": read_activations for name in ("one", "two", "bfloat16")}


@cache
def stream() -> Activations:
    """Rows of 24 documents."""
    x, n = given.rows(), np.arange(192)
    return Activations.of(x, n // 8, n % 8, n % 50, Origin("somewhere", "a model", "some data"))


BUILDERS = {
    "itda": ITDA(size=24, k=3, unexplained=0.1, batch=64),
    "itda no limit": ITDA(k=2, unexplained=0.3, seeding="none", batch=32),
    "itda lexicographic": ITDA(size=20, k=2, unexplained=0.2, seeding="lexicographic", seeds=4, pursuit="refit"),
    "itda nonnegative": ITDA(size=20, k=2, unexplained=0.2, pursuit="nonnegative"),
    "itda orthogonal": ITDA(size=20, k=2, unexplained=0.2, pursuit="orthogonal"),
    "itda gradient": ITDA(size=20, k=2, unexplained=0.2, pursuit="gradient"),
    "kmeans": KMeans(size=10, k=2, rounds=3, rows=150, seed=1),
    "kmeans centroids": KMeans(size=8, k=2, snap=False, pursuit="orthogonal"),
    "random": Random(size=12, k=2, pursuit="orthogonal", seed=3),
    "partition": Partition(cosine=0.7, size=20, batch=64, centre_rows=100),
    "partition no limit": Partition(cosine=0.3, k=2),
    "calibrated": Calibrated(ITDA(size=20, k=2), rows=96, rounds=3),
}


def codes(dictionary: Dictionary) -> dict[str, np.ndarray]:
    code = dictionary.encode(given.rows()[:16])
    back = dictionary.decode(code)
    return {"residual": np.asarray(code.residual), "energy": np.asarray(code.energy), "decoded": back}


def built(name: str, store: Store) -> Made:
    dictionary = BUILDERS[name].build(stream(), store=store, selection={"skip": [0], "held_out": 0.1})
    told = dictionary.settings
    curve = np.asarray(told["curve"], np.int64).reshape(-1, 2)
    counts = np.array([told["rows_read"], told["rows_zero"], told["rows_not_finite"], told["seeds_placed"]])
    return last(store, "dictionary", **codes(dictionary), curve=curve, counts=counts)


def read_dictionary(store: Store, key: str) -> dict[str, np.ndarray]:
    return codes(from_entry(store.get(key)))


ARTEFACTS |= {f"dictionary/{name}": partial(built, name) for name in BUILDERS}
READERS |= {f"dictionary/{name}": read_dictionary for name in BUILDERS}


@artefact("dictionary/of activations")
def _(store: Store) -> Made:
    """From activations of the store, as the commands build."""
    acts = decomp.observe(reader().replace(store=store), "mix")
    dictionary = ITDA(k=2, batch=32).build(acts.without([0]).shuffled(1), store=store, selection={"skip": [0]})
    return last(store, "dictionary", document=dictionary.provenance.document, k=dictionary.k)


@artefact("dictionary/by hand")
def _(store: Store) -> Made:
    return stored(store, "dictionary", put(by_hand(), store).key, atoms=by_hand().atoms)


def read_by_hand(store: Store, key: str) -> dict[str, np.ndarray]:
    found = from_entry(store.get(key))
    assert found.fingerprint == by_hand().fingerprint
    assert (found.k, found.pursuit, found.origin) == (by_hand().k, by_hand().pursuit, by_hand().origin)
    return {"atoms": found.atoms}


READERS["dictionary/by hand"] = read_by_hand


def autoencoder(builder: SAE, store: Store) -> Made:
    """Nothing of it is kept in the store."""
    made: SparseAutoencoder = replace(builder, tokens=1).build(stream())
    settings = {name: value for name, value in plain(builder).items() if name != "tokens"}
    return only(
        settings, encoder=made.encoder, bias=made.bias, decoder=made.atoms, centre=made.centre,
        threshold=made.threshold, decoded=made.reconstruct(given.rows()[:16]),
    )  # fmt: skip


ARTEFACTS |= {
    "autoencoder/topk": partial(autoencoder, SAE(size=16, k=2, batch=64, rate=0.125)),
    "autoencoder/batchtopk": partial(autoencoder, SAE(size=16, k=2, kind="batchtopk", batch=64, auxiliary=0.0, seed=1)),
}
