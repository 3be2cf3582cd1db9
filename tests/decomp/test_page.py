import json
import re

import numpy as np
import pytest
from matplotlib.figure import Figure

from tests.decomp.test_builders import stream
from tests.pages import Tags
from whence.cache import Examples
from whence.cache.display import write_page
from whence.cache.errors import DataError, ModelError
from whence.decomp import ITDA, Activations, Dictionary, Provenance, evaluate, show
from whence.decomp.activations import Origin
from whence.decomp.features import features
from whence.decomp.pages import _whole, page
from whence.decomp.provenance import Text

NASTY = "</script><script>alert(1)</script>&amp;<img src=x onerror=alert(2)>\u2028'\""


@pytest.fixture(scope="module")
def acts() -> Activations:
    return stream(t=300)


@pytest.fixture(scope="module")
def dictionary(acts) -> Dictionary:
    x = acts.whole().x[:20]
    atoms = x / np.linalg.norm(x, axis=1, keepdims=True)
    text = tuple(Text("before ", NASTY if n == 3 else f"token{n}", " after") for n in range(20))
    return Dictionary(
        atoms,
        Provenance.of(np.arange(20), np.zeros(20), np.zeros(20), np.linalg.norm(x, axis=1), np.nan),
        k=3,
        text=text,
    )


def test_features_are_what_the_codes_say(acts, dictionary):
    found = features(dictionary, acts, top=4, near=3)
    code = dictionary.encode(acts.whole().x)
    dense = np.zeros((300, 20))
    np.add.at(dense, (np.arange(300)[:, None], np.asarray(code.indices)), np.asarray(code.values))
    np.testing.assert_allclose(found.density, (dense != 0).mean(axis=0))
    for atom in range(20):
        used = int(np.count_nonzero(dense[:, atom]))
        expected = np.sort(np.abs(dense[:, atom]))[::-1][: min(4, used)]
        np.testing.assert_allclose(np.abs(found.value[atom][found.top[atom] >= 0]), expected, rtol=1e-5)
        assert found.histogram[atom].sum() == used
    near = np.abs(dictionary.atoms @ dictionary.atoms.T - np.eye(20))
    np.testing.assert_array_equal(found.near[:, 0], near.argmax(axis=1))
    np.testing.assert_allclose(np.abs(found.cosine[:, 0]), near.max(axis=1), rtol=1e-5)


def test_contexts_are_the_text_around_the_top_rows(acts, dictionary):
    rows = [np.arange(30) + 100 * n for n in range(10)]
    examples = Examples({"input_ids": rows}, np.arange(10, dtype=np.int64))
    found = features(dictionary, acts, top=3)
    contexts = found.contexts(examples, lambda ids: " ".join(map(str, ids)), window=2)
    first = found.top[0][0]
    assert contexts[0][0].token == str(100 * acts.document[first] + acts.position[first])


def test_nothing_in_the_data_becomes_markup(acts, dictionary, tmp_path):
    html = page(dictionary, features(dictionary, acts), title=NASTY)
    assert html.count("<script") == 3
    assert "<img" not in html
    _, block = (json.loads(part) for part in re.findall(r'application/json">(.*?)</script>', html, re.S))
    assert any(text[start:stop] == NASTY for text, start, stop in block["text"])
    assert "&lt;img" in html.split("</title>")[0]
    assert not re.search("https?:", html.replace("http://www.w3.org/2000/svg", ""))
    assert write_page(html, tmp_path / "a" / "page.html").read_text(encoding="utf-8") == html


def test_a_dictionary_shows_its_atoms(acts, dictionary):
    html = dictionary._repr_html_()
    assert NASTY[:20] in Tags(html).text
    assert not {"script", "img"} & set(Tags(html).tags)
    assert repr(dictionary) == "Dictionary(20 atoms of width 24, matching pursuit k=3, unknown)"
    densest = str(show.atoms(dictionary, features(dictionary, acts), most=2)).splitlines()
    assert densest[0] == "2 of 20 atoms"
    share = [float(line.split()[1]) for line in densest[2:]]
    assert share == sorted(share, reverse=True)


def test_an_atom_is_seen_where_it_fires(acts, dictionary):
    batch = acts.whole()
    document = int(batch.document[0])
    code = dictionary.encode(batch.x[batch.document == document])
    atom = int(code.indices[0, 0])
    shown = show.atom_map(dictionary, acts, document, lambda ids: f"<{ids[0]}>", atom)
    assert shown.html.count("<span") == int((batch.document == document).sum())
    assert f"{code.values[0, 0]:+.3g} coefficient" in shown.html
    left = show.atom_map(dictionary, acts, document, lambda ids: str(ids[0]))
    assert f"{code.residual[0] / code.energy[0]:+.3g} of the squared norm" in left.html
    with pytest.raises(DataError, match="No activation of document"):
        show.atom_map(dictionary, acts, 10**6, str)


def test_curves_draw_where_they_are_told(acts, dictionary):
    one, two = Figure().subplots(1, 2)
    built = ITDA(size=12, k=2, unexplained=0.05).build(acts)
    assert show.plot_growth(built, one) is one
    assert one.lines[0].get_ydata()[-1] == len(built)
    assert show.plot_curve(evaluate(dictionary, acts, (1, 2)), "fvu", "these", two) is two
    assert "share" in two.get_ylabel()
    with pytest.raises(DataError, match="growth curve"):
        show.plot_growth(dictionary)


def test_another_models_activations_are_refused(acts, dictionary):
    named = Dictionary(dictionary.atoms, dictionary.provenance, 3, Origin("a", "m"))
    with pytest.raises(ModelError):
        features(named, Activations.of(acts.whole().x, origin=Origin("a", "n")))


def test_ten_thousand_atoms_stay_small(tmp_path):
    rng = np.random.default_rng(0)
    atoms = rng.standard_normal((10_000, 16)).astype(np.float32)
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    text = tuple(Text("some words before it", f"t{n}", "and some words after it") for n in range(10_000))
    where = np.arange(10_000)
    big = Dictionary(atoms, Provenance.of(where, where, where, np.ones(10_000)), k=2, text=text)
    found = features(big, rng.standard_normal((2000, 16)).astype(np.float32))
    html = page(big, found)
    assert len(html) < 6_000_000
    first, *blocks = re.findall(r'application/json">(.*?)</script>', html, re.S)
    assert len(blocks) == 50
    assert len(first) + len(blocks[0]) < 0.15 * len(html)  # what a browser parses on opening
    assert sum(len(json.loads(block)["source"]) for block in blocks) == json.loads(first)["size"] == 10_000


def test_a_texts_token_is_where_a_browser_counts_it() -> None:
    assert _whole(Text("a \U0001f600 ", "b\U0001f600", " c")) == ["a \U0001f600 b\U0001f600 c", 5, 8]
