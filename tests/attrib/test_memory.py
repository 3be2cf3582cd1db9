"""A fit keeps to the memory limit: in groups of sites, or refused before it starts, with what would fit."""

import numpy as np
import pytest
import torch
from torch import nn

from tests import cases
from whence.attrib import EKFAC
from whence.attrib.curvature import StoredSite
from whence.attrib.memory import fit_bytes
from whence.attrib.methods import KFAC
from whence.cache import Classification, Examples, ResourceError, Store, TrainedModel
from whence.cache.store.maintenance import remove

RNG = np.random.default_rng(0)
DATA = Examples.of((RNG.normal(size=(60, 12)).astype("f4"), RNG.integers(0, 3, 60)))
SITES = 4


@pytest.fixture(scope="module")
def trained() -> TrainedModel:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 16), nn.Tanh(), nn.Linear(16, 3)
    )
    return TrainedModel(model, DATA, Classification(), positions=32, quiet=True)


def limit(trained: TrainedModel) -> int:
    """A memory limit that the largest site fits, and two do not."""
    return max(fit_bytes([site]) for site in trained.find()) * 4 // 3 + 4


@pytest.mark.parametrize("redraw", [False, True])
def test_a_fit_in_groups_is_the_fit(trained, tmp_path, redraw: bool) -> None:
    queries = DATA.select(range(5))
    whole = EKFAC(redraw=redraw).fit(trained)
    small = trained.replace(memory=limit(trained))
    for store in (None, Store(tmp_path)):
        found = EKFAC(redraw=redraw).fit(small.replace(store=store))
        for name in whole.sites.names:
            for part, wanted in whole.per_site[name]._asdict().items():
                np.testing.assert_array_equal(getattr(found.per_site[name], part), wanted)
        np.testing.assert_allclose(found.score(queries), whole.score(queries), rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(found.self_influence(), whole.self_influence(), rtol=1e-5)
    assert all(isinstance(one, StoredSite) for one in found.per_site.values())
    assert found.nbytes == whole.nbytes
    assert len(Store(tmp_path).open("factors", found.inputs).about["groups"]) > 1
    assert dict(found.inputs) == dict(EKFAC(redraw=redraw).fit(trained.replace(store=Store(tmp_path / "b"))).inputs)


def test_a_group_that_was_lost_is_fitted_again_and_no_other(trained, tmp_path) -> None:
    store = Store(tmp_path)
    small = trained.replace(memory=limit(trained), store=store)
    first = EKFAC().fit(small)
    entry = store.open("factors", first.inputs)
    names = entry.about["groups"][1]
    wanted = first.per_site[names[0]].eigenvalues
    lost = small.find().only(names)
    del first
    key = store.open("factors", {**entry.inputs, "sites": lost.settings}).key
    remove(store, "factors", key)
    before = len(store.events)
    found = EKFAC().fit(small.replace(memory=None))  # a larger limit: the groups stay as they are
    np.testing.assert_array_equal(found.per_site[names[0]].eigenvalues, wanted)
    built = {event.key for event in store.events[before:] if event.what == "built"}
    assert key in built
    assert not built & {
        store.open("factors", {**entry.inputs, "sites": small.find().only(other).settings}).key
        for other in entry.about["groups"]
        if other != names
    }


def test_one_site_that_does_not_fit_is_refused_with_what_would(trained) -> None:
    with pytest.raises(ResourceError, match=r"leave out such sites \(3 of the 4 fit\), or raise the memory limit to"):
        EKFAC().fit(trained.replace(memory=limit(trained) - 1_000))


def test_factors_without_a_store_must_fit() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 8), *(nn.Linear(8, 8) for _ in range(8)), nn.Linear(8, 3))
    trained = TrainedModel(model, DATA, Classification(), positions=8, memory=9_000, quiet=True)
    with pytest.raises(ResourceError, match=r"Give store=Store\(\), from which they are read"):
        EKFAC().fit(trained)


def test_other_methods_say_which_method_fits_in_groups() -> None:
    case = cases.build("attention")
    trained = TrainedModel(
        case.model, case.examples, case.task, sites=["qkv", "out"], memory=24_000, positions=9, quiet=True
    )
    with pytest.raises(ResourceError, match="Use EKFAC, which fits them in 2 groups of sites"):
        KFAC().fit(trained)
