import json

import jax.numpy as jnp
import numpy as np
import pytest

from tests.decomp.reference import problem
from whence import decomp
from whence.cache import Examples
from whence.cache.errors import CorruptEntry, DataError, ModelError, NewerFormat, NotCached, StoreError, UsageError
from whence.cache.store.store import Store
from whence.decomp import Activations, Dictionary, Provenance, Random, files
from whence.decomp.activations import Origin, from_entry


@pytest.fixture
def dictionary() -> Dictionary:
    rng = np.random.default_rng(0)
    acts = Activations.of(
        rng.standard_normal((300, 16)).astype(np.float32),
        np.arange(300) // 10,
        np.arange(300) % 10,
        rng.integers(0, 9, 300),
        Origin("blocks.1.hook_out", "aaaa", "bbbb"),
    )
    return Random(70, k=5).build(acts)


def examples() -> Examples:
    rows = [np.arange(10) + 10 * n for n in range(30)]
    return Examples({"input_ids": rows}, np.arange(30, dtype=np.int64))


@pytest.mark.parametrize("pursuit", ["matching", "nonnegative", "refit", "orthogonal", "gradient"])
def test_decode_undoes_encode_up_to_the_certificate(dictionary, pursuit):
    x, _ = problem(0, b=1100, d=16)
    code = dictionary.encode(x, pursuit=pursuit)
    left = np.sum((x - dictionary.decode(code)) ** 2, axis=1)
    np.testing.assert_allclose(left, code.residual, atol=1e-4)
    assert code.indices.shape == (1100, 5)


def test_a_centre_is_taken_off_and_put_back(dictionary):
    x, _ = problem(1, d=16)
    centre = np.full(16, 3.0, np.float32)
    centred = Dictionary(dictionary.atoms, dictionary.provenance, k=5, centre=centre)
    np.testing.assert_allclose(centred.reconstruct(x + centre), dictionary.reconstruct(x) + centre, atol=1e-4)


def test_bad_requests(dictionary):
    x = np.ones((2, 16), np.float32)
    for k in (0, 71):
        with pytest.raises(UsageError, match="steps from a dictionary of 70"):
            dictionary.encode(x, k=k)
    with pytest.raises(UsageError, match="error target"):
        dictionary.encode(x, target=1.0)
    with pytest.raises(UsageError, match="no pursuit"):
        dictionary.encode(x, pursuit="basis")
    with pytest.raises(DataError, match="Signals of shape"):
        dictionary.encode(np.ones((2, 15), np.float32))
    with pytest.raises(DataError, match="1 of 2 signals"):
        dictionary.encode(np.array([[np.nan] * 16, [1.0] * 16], np.float32))
    with pytest.raises(DataError, match="norm"):
        Dictionary(2 * dictionary.atoms, dictionary.provenance, k=5)
    assert dictionary.encode(x[:0]).values.shape == (0, 5)


def test_another_model_or_hook_point_is_refused(dictionary):
    dictionary.origin.check_same(Origin("blocks.1.hook_out", "aaaa", "other data"))
    dictionary.origin.check_same(Origin())
    with pytest.raises(ModelError, match=r"aaaa.*cccc"):
        dictionary.origin.check_same(Origin("blocks.1.hook_out", "cccc"))
    with pytest.raises(ModelError, match=r"blocks\.1\.hook_out.*blocks\.2\.hook_out"):
        dictionary.origin.check_same(Origin("blocks.2.hook_out", "aaaa"))


def test_every_atom_finds_its_text(dictionary):
    shown = dictionary.with_text(examples(), lambda ids: " ".join(map(str, ids)), window=3)
    assert shown.text is not None
    for text, (document, position) in zip(shown.text, shown.provenance.places):
        token = 10 * document + position
        assert text.token == str(token)
        assert text.after.split() == [str(t) for t in range(token + 1, 10 * document + 10)][:3]
    with pytest.raises(DataError, match="not among"):
        dictionary.with_text(examples().select(np.arange(3)), str)


def test_saved_and_loaded_are_one(dictionary, tmp_path):
    shown = dictionary.with_text(examples(), str)
    back = decomp.load(decomp.save(shown, tmp_path / "d"))
    assert back.fingerprint == dictionary.fingerprint
    assert (back.text, back.origin, back.k) == (shown.text, shown.origin, shown.k)
    assert back.settings == shown.settings


def test_damage_is_told_from_a_sound_file(dictionary, tmp_path):
    with pytest.raises(StoreError, match="no dictionary"):
        decomp.load(tmp_path)
    folder = decomp.save(dictionary, tmp_path / "d")
    manifest = folder / "manifest.json"
    good = manifest.read_text()
    for bad in (good[:100], good.replace('"k"', '"q"'), json.dumps({**json.loads(good), "fingerprint": "0"})):
        manifest.write_text(bad)
        with pytest.raises(CorruptEntry):
            decomp.load(folder)
    manifest.write_text(json.dumps({**json.loads(good), "format": 99}))
    with pytest.raises(NewerFormat):
        decomp.load(folder)
    manifest.write_text(good)
    tensors = folder / "dictionary.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-8])
    with pytest.raises(CorruptEntry, match="changed or cut short"):
        decomp.load(folder)


def test_the_store_keeps_dictionaries(dictionary, tmp_path):
    entry = files.put(dictionary.with_text(examples(), str), Store(tmp_path))
    back = files.from_entry(Store(tmp_path).get(entry.key))
    assert back.fingerprint == dictionary.fingerprint
    assert back.text is not None


# -- editing


def gram_is_exact(dictionary: Dictionary) -> None:
    assert "basis" in dictionary.__dict__, "the Gram matrix was not carried along"
    size = len(dictionary)
    np.testing.assert_array_equal(dictionary.basis.atoms[:size], dictionary.atoms)
    np.testing.assert_allclose(dictionary.basis.gram[:size, :size], dictionary.atoms @ dictionary.atoms.T, atol=1e-6)
    assert not np.any(dictionary.basis.gram[size:])
    assert not np.any(dictionary.basis.gram[:, size:])


def test_deleting_documents_leaves_the_rest_bit_for_bit(dictionary):
    before = np.asarray(dictionary.basis.gram)
    kept = dictionary.delete_documents([3, 4, 999])
    stay = ~np.isin(dictionary.provenance.document, [3, 4])
    assert stay.sum() == len(kept) < 70
    np.testing.assert_array_equal(kept.atoms, dictionary.atoms[stay])
    np.testing.assert_array_equal(kept.basis.gram[: len(kept), : len(kept)], before[:70, :70][stay][:, stay])
    gram_is_exact(kept)
    assert kept.log[-1] == {"edit": "delete documents", "documents": [3, 4, 999], "deleted": 70 - len(kept)}
    with pytest.raises(DataError, match="Every atom"):
        dictionary.delete_documents(range(30))


def test_inserting_adds_what_is_not_explained(dictionary):
    assert dictionary.basis.gram is not None
    new = np.random.default_rng(1).standard_normal((5, 16)).astype(np.float32)
    offered = np.concatenate([new, 7 * dictionary.atoms[:3]])
    place = Provenance.of(np.arange(100, 108), np.zeros(8), np.zeros(8), np.ones(8))
    grown = dictionary.insert(offered, place)
    assert grown.provenance.document[70:].tolist() == [100, 101, 102, 103, 104]
    np.testing.assert_allclose(grown.provenance.norm[70:], np.linalg.norm(new, axis=1), rtol=1e-5)
    gram_is_exact(grown)
    assert np.asarray(grown.encode(new, k=1).unexplained).max() < 1e-5
    with pytest.raises(DataError):
        dictionary.insert(np.zeros((8, 16)), place)


def test_merging_takes_each_place_once(dictionary):
    assert dictionary.basis.gram is not None
    first, second = dictionary.rows(slice(0, 50)), dictionary.rows(slice(30, 70))
    assert first.basis.gram is not None
    both = first.merge(second)
    assert both.provenance.places == dictionary.provenance.places
    gram_is_exact(both)
    other = Dictionary(second.atoms, second.provenance, 5, Origin("blocks.1.hook_out", "cccc"))
    with pytest.raises(ModelError):
        first.merge(other)


def test_an_edited_dictionary_keeps_its_texts(dictionary):
    shown = dictionary.with_text(examples(), str)
    assert shown.rows(slice(0, 50)).merge(shown.rows(slice(30, 70))).text == shown.text
    place = Provenance.of([100], [0], [0], [1.0])
    grown = shown.insert(np.random.default_rng(1).standard_normal((1, 16)), place)
    assert grown.text == (*shown.text, ("", "", ""))


def test_an_edited_dictionary_encodes_as_one_built_so(dictionary):
    assert dictionary.basis.gram is not None
    x, _ = problem(2, d=16)
    kept = dictionary.delete_documents([1, 2])
    plain = Dictionary(kept.atoms, kept.provenance, k=5)
    np.testing.assert_allclose(kept.encode(x).values, plain.encode(x).values, atol=1e-5)
    assert jnp.asarray(kept.encode(x).indices).max() < len(kept)


# -- streams


def test_positions_and_tokens_are_left_out():
    acts = Activations.of(np.ones((4, 6, 2), np.float32), token=np.arange(24) % 5)
    kept = acts.without(positions=[0], tokens=[3]).whole()
    assert 0 not in kept.position
    assert 3 not in kept.token
    half = Activations.of(np.ones((9, 6, 2), np.float32)).spread(18)
    assert half.document.tolist() == [0] * 6 + [4] * 6 + [8] * 6
    assert len(half.spread(100)) == 18
    rest, held = acts.split(0.25)
    assert not set(rest.whole().document) & set(held.whole().document)
    with pytest.raises(DataError, match="different lengths"):
        Activations.of(np.ones((4, 2)), document=[1, 2])


def test_shuffled_moves_whole_documents():
    document = np.repeat(np.arange(9), 3)
    acts = Activations.of(np.eye(27, 4), document=document, position=np.tile(np.arange(3), 9))
    read = acts.without(positions=[0]).shuffled(1).whole()
    assert sorted(read.document) == sorted(np.repeat(np.arange(9), 2))
    assert (read.document[::2] == read.document[1::2]).all()
    assert (read.document[::2] != np.arange(9)).any()
    assert read.position.tolist() == [1, 2] * 9


def test_activations_still_being_built_are_refused(tmp_path):
    from whence.cache.store.layout import ArraySpec

    store, inputs = Store(tmp_path), {"model": "m", "data": "d", "at": ["here"]}
    specs = {
        "here": ArraySpec((8, 3), "float32"),
        **{n: ArraySpec((8,), "int64") for n in ("example", "position", "token")},
    }
    with store.writer("activations", inputs, specs, shard_rows=4) as writer:
        for shard in writer.todo():
            rows = {n: np.ones((len(shard), *spec.shape[1:]), spec.dtype) for n, spec in specs.items()}
            writer.write(shard, rows)
            with pytest.raises(NotCached, match="still being built"):
                decomp.ITDA().build(store.open("activations", inputs, partial=True))
        entry = writer.seal()
    acts = from_entry(entry)
    assert acts.origin == Origin("here", "m", "d")
    assert len(acts) == 8
    with pytest.raises(UsageError, match="Choose one of here"):
        from_entry(entry, "there")
