"""Scores as people see them: the right passages, the right token shaded, texts escaped, axes handed back."""

from types import SimpleNamespace

import numpy as np
import pytest
import xarray
from matplotlib.figure import Figure

from tests.pages import HOSTILE, Tags, harmless
from whence import attrib
from whence.attrib.show import influences, plot_sites, plot_tail, token_map
from whence.cache import DataError, Examples


@pytest.fixture(scope="module")
def docs() -> SimpleNamespace:
    ids = [np.arange(3), np.arange(3), np.arange(2)]
    train = Examples.of({"input_ids": ids})
    train = Examples(
        train.columns, np.array([7, 8, 12345678]), {"title": ["a", HOSTILE, "c"], "text": ["x", HOSTILE, "z"]}
    )
    queries = Examples({"input_ids": ids[:1]}, np.array([5]), {"prompt": [HOSTILE], "completion": ["yes"]})
    words = SimpleNamespace(pieces=lambda row: [("one", " two", HOSTILE)[i] for i in row])
    return SimpleNamespace(train=train, queries=queries, vocabulary=words)


@pytest.fixture(scope="module")
def scores() -> xarray.DataArray:
    values = np.array([[[0.1, 0.3], [0.5, 0.5], [-1.0, 0.5]]])
    coords = {"query": [5], "train": [7, 8, 12345678], "site": ["up", "down"]}
    return xarray.DataArray(values, dims=("query", "train", "site"), coords=coords, attrs={"units": "nats"})


def test_influences_are_in_order(scores, docs) -> None:
    shown = influences(scores, docs, top=2, bottom=1)
    rows = [line.split()[:3] for line in str(shown).splitlines()[2:]]
    assert rows == [["1", "1", "8"], ["2", "0.4", "7"], ["3", "-0.5", "12345678"]]
    harmless(shown.html)
    # a passage that is among the best and the worst is shown once
    assert len(str(influences(scores, docs)).splitlines()) == 5


def test_tokens_are_those_predicted_unless_they_are_their_own(docs) -> None:
    tokens = xarray.DataArray(
        np.array([[[1.0, -4.0, 9.0]]]), dims=("query", "train", "position"), coords={"query": [5], "train": [8]}
    )
    shown = token_map(tokens, docs)
    assert f"  -4 nats  {HOSTILE!r}" in str(shown)
    assert "+1 nats  ' two'" in str(shown)
    harmless(shown.html)
    own = token_map(tokens.assign_attrs(position="token"), docs)
    assert f"+9 nats  {HOSTILE!r}" in str(own)
    assert "one" in Tags(own.html).text
    with pytest.raises(DataError, match="not text"):
        token_map(tokens, SimpleNamespace(train=docs.train, queries=docs.queries, vocabulary=None))


def test_plots_draw_where_they_are_told(scores) -> None:
    one, two = Figure().subplots(1, 2)
    assert plot_tail(scores, ax=one) is one
    np.testing.assert_allclose(one.lines[0].get_ydata(), [1.0, 0.4])
    assert "nats" in one.get_ylabel()
    assert plot_sites(scores, ax=two) is two
    np.testing.assert_allclose([bar.get_width() for bar in two.patches], [0.6, 0.8])
    with pytest.raises(DataError, match="per_site"):
        plot_sites(scores.sum("site"))


def test_factors_show_their_sites() -> None:
    from tests import cases

    case = cases.build("mlp")
    factors = attrib.Identity().fit(case.trained(quiet=True))
    assert all(site.name in factors._repr_html_() for site in case.sites)
