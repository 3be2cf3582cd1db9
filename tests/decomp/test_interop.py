"""What other tools read and write, against the formats written down here; `saelens_environment` asks SAELens."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from tests.decomp.reference import paper_loop
from whence.cache.errors import CorruptEntry, ModelError, StoreError, UsageError
from whence.decomp import Activations, Dictionary, Provenance, Random, SparseAutoencoder
from whence.decomp.activations import Origin
from whence.decomp.interop import adapter, mirrored, saelens, sparsify
from whence.decomp.provenance import Text

# SAELens 6: names and types of the fields of cfg.json for the architecture "matching_pursuit"
SAELENS_CONFIG = {
    "architecture": str,
    "d_in": int,
    "d_sae": int,
    "dtype": str,
    "device": str,
    "apply_b_dec_to_input": bool,
    "normalize_activations": str,
    "reshape_activations": str,
    "residual_threshold": float,
    "max_iterations": int,
    "stop_on_duplicate_support": bool,
    "metadata": dict,
}
SPARSIFY_CONFIG = {
    "activation": str,
    "expansion_factor": int,
    "normalize_decoder": bool,
    "num_latents": int,
    "k": int,
    "multi_topk": bool,
    "skip_connection": bool,
    "transcode": bool,
    "d_in": int,
}


@pytest.fixture(scope="module")
def dictionary() -> Dictionary:
    rng = np.random.default_rng(0)
    acts = Activations.of(
        rng.standard_normal((200, 12)).astype(np.float32), origin=Origin("blocks.1.hook_out", "aa", "bb")
    )
    built = Random(40, k=5).build(acts)
    text = tuple(Text("<b>", f"t{n}", "after") for n in range(40))
    return Dictionary(built.atoms, built.provenance, 5, built.origin, text=text)


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((64, 12)).astype(np.float32)


def as_saelens_reads_it(folder, x: np.ndarray) -> np.ndarray:
    """Non-negative matching pursuit over W_dec on x − b_dec, as SAELens's encoder does it; dense codes."""
    arrays, config = load_file(folder / "sae_weights.safetensors"), json.loads((folder / "cfg.json").read_text())
    return paper_loop(x - arrays["b_dec"], arrays["W_dec"], config["max_iterations"], signed=False)


def test_the_saelens_folder_is_as_written_down(dictionary, tmp_path):
    folder = saelens.save(dictionary, tmp_path / "s", model_name="gpt2")
    config = json.loads((folder / "cfg.json").read_text())
    assert {name: type(value) for name, value in config.items()} == SAELENS_CONFIG
    assert (config["architecture"], config["d_in"], config["d_sae"]) == ("matching_pursuit", 12, 80)
    assert config["residual_threshold"] <= 0
    assert config["stop_on_duplicate_support"] is False
    assert config["metadata"]["sae_lens_version"].split(".")[0] >= "6"
    assert config["metadata"]["hook_name"] == "blocks.1.hook_out"
    weights = load_file(folder / "sae_weights.safetensors")
    assert {n: (a.shape, a.dtype.name) for n, a in weights.items()} == {
        "W_dec": ((80, 12), "float32"),
        "b_dec": ((12,), "float32"),
    }


@pytest.mark.parametrize("centre", [None, 2.0])
def test_mirrored_codes_are_the_signed_ones(dictionary, x, tmp_path, centre):
    shifted = None if centre is None else np.full(12, centre, np.float32)
    centred = Dictionary(dictionary.atoms, dictionary.provenance, 5, centre=shifted)
    folder = saelens.save(centred, tmp_path / "s")
    codes = as_saelens_reads_it(folder, x)
    assert (codes >= 0).all()
    weights = load_file(folder / "sae_weights.safetensors")
    np.testing.assert_allclose(codes @ weights["W_dec"] + weights["b_dec"], centred.reconstruct(x), atol=1e-5)
    signed = paper_loop(x - weights["b_dec"], dictionary.atoms, 5)
    np.testing.assert_allclose(codes[:, :40] - codes[:, 40:], signed, atol=1e-5)


def test_mirrors_that_never_fire_are_left_out(dictionary, x, tmp_path):
    rows = mirrored(dictionary, calibration=x[:4])
    assert 40 < len(rows.atoms) < 80
    folder = saelens.save(dictionary, tmp_path / "s", calibration=x[:4])
    codes = as_saelens_reads_it(folder, x[:4])
    np.testing.assert_allclose(codes @ rows.atoms, dictionary.reconstruct(x[:4]), atol=1e-5)
    density = load_file(folder / "sparsity.safetensors")["sparsity"]
    np.testing.assert_allclose(10.0 ** density[density > -9], (codes > 0).mean(0)[density > -9], rtol=1e-5)
    assert not mirrored(Dictionary(dictionary.atoms, dictionary.provenance, 5, pursuit="nonnegative")).parent[40:].size


@pytest.mark.parametrize("pursuit", ["matching", "nonnegative"])
def test_a_saelens_folder_of_ours_comes_back_whole(dictionary, x, tmp_path, pursuit):
    named = Dictionary(
        dictionary.atoms, dictionary.provenance, 5, dictionary.origin, None, pursuit, {"a": 1}, text=dictionary.text
    )
    back = saelens.load(saelens.save(named, tmp_path / "s"))
    assert back.fingerprint == dictionary.fingerprint
    assert (back.k, back.pursuit, back.origin, back.text) == (5, pursuit, dictionary.origin, dictionary.text)


def test_a_saelens_folder_of_theirs_is_read(dictionary, x, tmp_path):
    folder = saelens.save(dictionary, tmp_path / "s")
    (folder / "provenance.safetensors").unlink()
    back = saelens.load(folder)
    assert back.pursuit == "nonnegative"
    assert len(back) == 80
    np.testing.assert_allclose(back.reconstruct(x), dictionary.reconstruct(x), atol=1e-5)


def test_encoders_that_saelens_lacks_are_refused(dictionary, tmp_path):
    orthogonal = Dictionary(dictionary.atoms, dictionary.provenance, 5, pursuit="orthogonal")
    with pytest.raises(UsageError, match="no encoder 'orthogonal'"):
        saelens.save(orthogonal, tmp_path)


@pytest.mark.parametrize("rescaled", [True, False])
def test_their_topk_is_read(x, tmp_path, rescaled):
    rng = np.random.default_rng(3)
    arrays = {
        "W_enc": rng.standard_normal((12, 30)),
        "b_enc": rng.standard_normal(30),
        "W_dec": rng.standard_normal((30, 12)),
        "b_dec": rng.standard_normal(12),
    }
    arrays = {n: a.astype(np.float32) for n, a in arrays.items()}
    save_file(arrays, tmp_path / "sae_weights.safetensors")
    config = {"architecture": "topk", "d_in": 12, "d_sae": 30, "k": 4, "rescale_acts_by_decoder_norm": rescaled}
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    norms = np.linalg.norm(arrays["W_dec"], axis=1) if rescaled else np.ones(30)
    z = np.maximum(((x - arrays["b_dec"]) @ arrays["W_enc"] + arrays["b_enc"]) * norms, 0)
    z[z < np.sort(z, axis=1)[:, -4:-3]] = 0
    expected = (z / norms) @ arrays["W_dec"] + arrays["b_dec"]
    np.testing.assert_allclose(saelens.load(tmp_path).reconstruct(x), expected, atol=1e-4)


@pytest.mark.parametrize("architecture", ["jumprelu", "standard"])
def test_their_thresholds_are_read(x, tmp_path, architecture):
    rng = np.random.default_rng(3)
    shapes = {"W_enc": (12, 30), "b_enc": 30, "W_dec": (30, 12), "b_dec": 12, "threshold": 30}
    arrays = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(arrays, tmp_path / "sae_weights.safetensors")
    config = {"architecture": architecture, "d_in": 12, "d_sae": 30, "apply_b_dec_to_input": False}
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    z = np.maximum(x @ arrays["W_enc"] + arrays["b_enc"], 0)
    if architecture == "jumprelu":
        z = z * (z > arrays["threshold"])
    read = saelens.load(tmp_path)
    assert isinstance(read, SparseAutoencoder)
    np.testing.assert_allclose(read.reconstruct(x), z @ arrays["W_dec"] + arrays["b_dec"], atol=1e-4)
    assert (np.count_nonzero(read.encode(x).values, axis=1) == np.count_nonzero(z, axis=1)).all()
    assert np.count_nonzero(read.encode(x, k=2).values, axis=1).max() == 2
    (tmp_path / "cfg.json").write_text(json.dumps({**config, "normalize_activations": "layer_norm"}))
    with pytest.raises(ModelError, match="scales its inputs"):
        saelens.load(tmp_path)


def test_corrupt_folders_are_told(dictionary, tmp_path):
    with pytest.raises(StoreError, match="lacks cfg"):
        saelens.load(tmp_path)
    folder = saelens.save(dictionary, tmp_path / "s")
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({**config, "d_sae": 7}))
    with pytest.raises(CorruptEntry, match="says"):
        saelens.load(folder)
    (folder / "cfg.json").write_text(json.dumps({**config, "architecture": "gated"}))
    with pytest.raises(ModelError, match="gated"):
        saelens.load(folder)
    (folder / "cfg.json").write_text("{")
    with pytest.raises(CorruptEntry, match="cannot be read"):
        saelens.load(folder)
    (folder / "cfg.json").write_text(json.dumps(config))
    (folder / "sae_weights.safetensors").write_bytes(b"12345678 no tensors")
    with pytest.raises(CorruptEntry, match="cannot be read"):
        saelens.load(folder)


# -- sparsify


def test_an_autoencoder_goes_through_sparsify_and_back(x, tmp_path):
    rng = np.random.default_rng(0)
    parts = [rng.standard_normal(s).astype(np.float32) for s in ((12, 30), (30,), (30, 12), (12,))]
    sae = SparseAutoencoder(*parts, k=4)
    folder = sparsify.save(sae, tmp_path / "layers.1")
    config = json.loads((folder / "cfg.json").read_text())
    assert {name: type(value) for name, value in config.items()} == SPARSIFY_CONFIG
    shapes = {n: a.shape for n, a in load_file(folder / "sae.safetensors").items()}
    assert shapes == {"encoder.weight": (30, 12), "encoder.bias": (30,), "W_dec": (30, 12), "b_dec": (12,)}
    np.testing.assert_array_equal(sparsify.load(folder).reconstruct(x), sae.reconstruct(x))


def test_a_dictionary_goes_to_sparsify_only_when_asked(dictionary, x, tmp_path):
    with pytest.raises(UsageError, match="one after another"):
        sparsify.save(dictionary, tmp_path)
    back = sparsify.load(sparsify.save(dictionary, tmp_path, one_shot=True))
    np.testing.assert_allclose(back.reconstruct(x, k=1), dictionary.reconstruct(x, k=1), atol=1e-5)
    config = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps({**config, "transcode": True}))
    with pytest.raises(ModelError, match="plain TopK"):
        sparsify.load(tmp_path)


def test_a_damaged_sparsify_folder_is_told(dictionary, tmp_path):
    with pytest.raises(StoreError, match="lacks cfg"):
        sparsify.load(tmp_path)
    folder = sparsify.save(dictionary, tmp_path / "s", one_shot=True)
    good = json.loads((folder / "cfg.json").read_text())
    for wrong in ({**good, "d_in": 7}, {name: value for name, value in good.items() if name != "k"}):
        (folder / "cfg.json").write_text(json.dumps(wrong))
        with pytest.raises(CorruptEntry):
            sparsify.load(folder)
    (folder / "sae.safetensors").write_bytes(b"12345678 no tensors")
    with pytest.raises(CorruptEntry, match="cannot be read"):
        sparsify.load(folder)


# -- SAEBench


def test_the_saebench_adapter_has_what_is_asked_of_it(dictionary, x):
    made = adapter(dictionary, "pythia-70m", layer=1, context_size=64)
    batch = torch.from_numpy(x).reshape(4, 16, 12)
    dense = made.encode(batch)
    assert dense.shape == (4, 16, 80)
    assert (dense >= 0).all()
    np.testing.assert_allclose(made(batch).reshape(-1, 12), dictionary.reconstruct(x), atol=1e-5)
    assert made.W_enc.shape == (12, 80)
    torch.testing.assert_close(made.W_dec.norm(dim=1), torch.ones(80))
    assert not made.b_enc.any()
    assert made.to(torch.float32).dtype is torch.float32
    for name in ("model_name", "d_in", "d_sae", "hook_layer", "hook_name", "context_size", "dtype"):
        assert name in made.cfg.to_dict()
    assert made.cfg.hook_name == "blocks.1.hook_out"


def test_provenance_of_mirrors(dictionary):
    rows = mirrored(dictionary)
    assert rows.provenance.sign[40:].tolist() == [-1] * 40
    assert rows.provenance.document[40:].tolist() == dictionary.provenance.document.tolist()
    assert isinstance(rows.provenance, Provenance)
