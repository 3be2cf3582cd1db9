"""The commands, on a model of a few hundred parameters that stands in for the demo's."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from tests.cases import Attention
from whence import decomp
from whence.cache import Examples
from whence.cli import main
from whence.corpora import Corpus, Vocabulary
from whence.decomp.interop import sparsify


@pytest.fixture(autouse=True)
def tiny(monkeypatch, tmp_path):
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{n}" for n in rng.integers(0, 10, 9)) for _ in range(60)]
    words = Vocabulary.words(texts)
    ids = [words.encode(text) for text in texts]
    corpus = Corpus("tiny", Examples({"input_ids": ids}, np.arange(60), {"text": texts}), None, words)
    torch.manual_seed(0)
    model = Attention().eval()
    monkeypatch.setattr("whence.inputs.load_model", lambda name, store=None, **_: (model, words))
    monkeypatch.setattr("whence.inputs.load_data", lambda name, vocabulary=None, **limits: corpus)
    monkeypatch.setenv("WHENCE_CACHE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)


def run(capsys, *arguments: str) -> str:
    assert main(["decomp", *arguments]) == 0
    return capsys.readouterr().out


def build(capsys, *more: str, out: str = "d") -> dict:
    options = ["--at", "down", "--size", "30", "--k", "3", "--out", out, "--json", "--quiet"]
    other = {"--unexplained", "random", "partition", "kmeans", "sae"} & set(more)
    threshold = () if other else ("--unexplained", "0.05")
    return json.loads(run(capsys, "build", *options, *threshold, *more))


def test_from_a_model_to_a_page(capsys, tmp_path):
    built = build(capsys)
    assert built["atoms"] == 30
    assert 0 < built["unexplained"] < 1
    assert build(capsys)["fingerprint"] == built["fingerprint"]  # from the store
    dictionary = decomp.load("d")
    assert dictionary.text is not None
    assert all(text.token.startswith("w") for text in dictionary.text)

    encoded = json.loads(run(capsys, "encode", "d", "--out", "codes.safetensors", "--json", "--quiet"))
    codes = load_file("codes.safetensors")
    assert codes["indices"].shape == (540, 3) == codes["values"].shape
    assert encoded["tokens"] == 540
    assert codes["document"][:10].tolist() == [0] * 9 + [1]

    found = json.loads(run(capsys, "evaluate", "d", "--json", "--quiet"))
    assert found["atoms_from_these_documents"] == 0
    assert 0 < found["fvu"]["value"] < 1
    assert found["fvu"]["low"] < found["fvu"]["value"] < found["fvu"]["high"]
    assert {"recovered_zero", "recovered_mean", "loss_spliced"} <= set(found)
    assert found["examples"] == 6

    exported = json.loads(run(capsys, "export", "d", "--out", "s", "--json"))
    assert exported["files"] == ["cfg.json", "provenance.safetensors", "sae_weights.safetensors"]
    run(capsys, "evaluate", "s", "--no-loss", "--quiet")
    report = json.loads(run(capsys, "report", "d", "--out", "page.html", "--json", "--quiet"))
    assert (tmp_path / "page.html").stat().st_size == report["bytes"]
    steered = json.loads(run(capsys, "steer", "d", "--prompt", "w1 w2", "--atom", "3", "--tokens", "3", "--json"))
    assert steered["before"]
    steer = ["steer", "d", "--prompt", "w1 w2", "--tokens", "3", "--quiet", "--out", "steered.csv"]
    assert run(capsys, *steer).splitlines()[-1] == "written: steered.csv"


def test_several_hook_points_transcoders_and_trained_atoms(capsys, tmp_path):
    built = build(capsys, "--at", "up", "down", "--builder", "mpsae", "--batch", "32", out="each")
    assert [one["folder"] for one in built] == ["each/up", "each/down"]
    assert [decomp.load(one["folder"]).origin.site for one in built] == ["up", "down"]
    assert built[0]["builder"] == "MPSAE"
    assert json.loads(run(capsys, "evaluate", "each/up", "--json", "--quiet"))["l0"]["value"] <= 3
    across = build(capsys, "--at", "up", "--to", "down", "--builder", "calibrated", out="across")
    assert 10 < across["atoms"] <= 30
    found = json.loads(run(capsys, "evaluate", "across", "--json", "--quiet"))
    assert {"fvu", "recovered_mean"} <= set(found)
    assert main(["decomp", "build", "--at", "up", "up", "--quiet"]) == 2


@pytest.mark.parametrize("builder", ["random", "partition", "kmeans"])
def test_other_builders_and_their_differences(capsys, builder):
    build(capsys, "--unexplained", "0.2", out="one")
    assert build(capsys, "--builder", builder, out="other")["builder"].lower() == builder
    text = run(capsys, "compare", "one", "other", "--diff", "--limit", "2")
    assert "size_only" in text
    assert "removed:" in text
    changes = json.loads(run(capsys, "compare", "one", "other", "--diff", "--json"))
    assert set(changes["changes"]["status"]) <= {"removed", "added", "moved", "kept"}


def test_an_autoencoder_is_built_and_judged(capsys):
    built = build(capsys, "--builder", "sae", "--batch", "64", out="sae")
    assert built["atoms"] == 30
    assert json.loads(run(capsys, "evaluate", "sae", "--json", "--quiet"))["fvu"]["value"] > 0


def test_a_document_is_taken_out_and_put_back(capsys):
    build(capsys)
    whole = decomp.load("d")
    gone = int(whole.provenance.document[-1])
    cut = json.loads(run(capsys, "edit", "d", "--delete-documents", str(gone), "--out", "e", "--json"))
    assert 0 < cut["log"][0]["deleted"] == 30 - cut["atoms"]
    assert gone not in decomp.load("e").provenance.document
    assert "30 atoms" in run(capsys, "edit", "e", "--merge", "d", "--out", "f")
    back = decomp.load("f")
    assert sorted(back.provenance.places) == sorted(whole.provenance.places)
    assert sorted(back.text or ()) == sorted(whole.text or ("none",))


def test_an_autoencoder_of_another_tool_is_judged(capsys, monkeypatch):
    rng = np.random.default_rng(0)
    width = decomp.load(build(capsys)["folder"]).width
    encoder, bias, rows, centre = (
        rng.standard_normal(shape).astype(np.float32) for shape in ((width, 20), 20, (20, width), width)
    )
    sparsify.save(decomp.SparseAutoencoder(encoder, bias, rows, centre, k=3), "theirs")
    found = json.loads(run(capsys, "evaluate", "theirs", "--at", "down", "--json", "--quiet"))
    assert found["loss_spliced"]["value"] > 0
    assert "atoms_from_these_documents" not in found
    monkeypatch.delenv("WHENCE_QUIET", raising=False)
    assert main(["decomp", "evaluate", "theirs", "--at", "down", "--no-loss", "--quiet"]) == 0
    assert "theirs does not say which model it is of" in capsys.readouterr().err
    for arguments, said in ((["evaluate", "theirs"], "hook point"), (["encode", "theirs"], "is an autoencoder")):
        assert main(["decomp", *arguments]) == 2
        assert said in capsys.readouterr().err


def test_layers_of_models_and_checkpoints(capsys):
    options = ["--models", "a", "b", "--at", "up", "down", "--quiet", "--k", "2", "--json"]
    found = json.loads(run(capsys, "match", *options))
    assert "dictionary size alone" in found["coords"]["measure"]["data"]
    assert found["attrs"]["chance"] == 0.5
    assert np.shape(found["data_vars"]["by_pair"]["data"]) == (len(found["coords"]["measure"]["data"]), 2)
    assert found["coords"]["model"]["data"] == ["0: a", "1: b"]
    assert "all layers of a model" in run(capsys, "match", *options[:-1])
    stages = json.loads(run(capsys, "match", *options, "--checkpoints"))
    assert stages["data_vars"]["jaccard"]["data"] == [[1, 1], [1, 1]]  # the same model twice


def test_a_toml_job(capsys, tmp_path):
    (tmp_path / "job.toml").write_text('command = "decomp build"\nat = "down"\nsize = 30\nk = 3\nout = "j"\n')
    assert main(["run", "job.toml"]) == 0
    assert 20 < len(decomp.load("j")) <= 30  # the threshold is chosen so that it comes out about there


def test_a_sparsity_curve_and_a_probe(capsys, tmp_path):
    build(capsys)
    points = json.loads(run(capsys, "evaluate", "d", "--ks", "1", "3", "--json", "--quiet"))["ks"]
    assert points["3"]["fvu"]["value"] < points["1"]["fvu"]["value"]
    assert "fvu" in run(capsys, "evaluate", "d", "--ks", "1", "3", "--quiet")
    labels = {str(i): "odd" if i % 2 else "even" for i in range(60)}
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    (tmp_path / "labels.csv").write_text("id,class\n" + "".join(f"{i},{c}\n" for i, c in labels.items()))
    found = json.loads(run(capsys, "probe", "d", "--labels", "labels.json", "--atoms", "1", "4", "--json", "--quiet"))
    assert found["documents"] == 60
    assert 0 <= found["atoms_1"]["value"] <= 1
    table = run(capsys, "probe", "d", "--labels", "labels.csv", "--quiet")
    assert "majority" in table
    assert table.splitlines()[-1].endswith(f"{tmp_path / 'store'}; --out FILE writes a file")
    (tmp_path / "labels.csv").write_text("document,class\n1,a\n")
    for wrong in (
        ["--labels", "labels.csv"], ["--labels", "none.json"], [], ["--classes", "a", "b", "--column", "colour"]
    ):  # fmt: skip
        assert main(["decomp", "probe", "d", "--quiet", *wrong]) == 2


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["build", "--at", "nowhere"], 1, "no module or hook point"),
        (["build", "--at", "down", "--unexplained", "1.5"], 2, "adds nothing"),
        (["build", "--at", "down", "--builder", "random", "--size", "None"], 2, "needs a size"),
        (["evaluate", "missing"], 1, "no dictionary"),
        (["export", "d", "--to", "sparsify"], 2, "one after another"),
        (["edit", "d"], 2, "Nothing to change"),
        (["edit", "d", "--delete-documents", "999"], 2, "No atom comes from document 999"),
        (["encode", "d", "--k", "31"], 2, "steps from a dictionary of 30"),
        (["steer", "d", "--prompt", "w1", "--atom", "99"], 2, "no atom 99"),
    ],
)
def test_wrong_requests_are_answered_in_two_sentences(capsys, arguments, code, said):
    build(capsys)
    assert main(["decomp", *arguments]) == code
    told = capsys.readouterr().err
    assert said in told
    assert "Traceback" not in told


def test_a_dictionary_of_another_model_is_refused(capsys, monkeypatch):
    build(capsys)
    torch.manual_seed(1)
    other = Attention().eval()
    words = Vocabulary.words(["w0 w1"])
    monkeypatch.setattr("whence.inputs.load_model", lambda name, store=None, **_: (other, words))
    assert main(["decomp", "evaluate", "d", "--quiet"]) == 1
    assert "was built from model" in capsys.readouterr().err


def test_a_dictionary_remembers_where_its_model_is(tmp_path, monkeypatch, capsys):
    import shutil

    from tests.whence.tiny import saved, texts_file

    monkeypatch.undo()
    monkeypatch.setenv("WHENCE_CACHE", str(tmp_path / "store"))
    model, data = saved(tmp_path / "model"), texts_file(tmp_path / "texts.jsonl", 20)
    folder = str(tmp_path / "atoms")
    words = ("--model", str(model), "--data", str(data), "--at", "model.layers.1", "--size", "16", "--k", "2")
    assert main(["decomp", "build", *words, "--unexplained", "0.3", "--quiet", "--out", folder]) == 0
    assert main(["decomp", "evaluate", folder, "--no-loss", "--quiet"]) == 0  # without --model
    assert "16 atoms" in capsys.readouterr().out
    assert main(["decomp", "export", folder, "--out", str(tmp_path / "other")]) == 0
    known = json.loads((tmp_path / "other" / "cfg.json").read_text())["metadata"]
    assert (known["hook_name"], known["hf_hook_name"]) == ("blocks.1.hook_out", "model.layers.1")
    assert known["context_size"] > 2
    assert known["model_name"] == str(model)
    (tmp_path / "atoms" / "manifest.json").rename(tmp_path / "kept")
    exported = ("decomp", "evaluate", str(tmp_path / "other"), "--no-loss", "--quiet", "--json")
    capsys.readouterr()
    assert main([*exported, "--model", str(model), "--data", str(data)]) == 0
    named = capsys.readouterr().out
    assert main(exported) == 0  # the export remembers them too
    assert capsys.readouterr().out == named
    (tmp_path / "kept").rename(tmp_path / "atoms" / "manifest.json")
    shutil.rmtree(model)
    capsys.readouterr()
    assert main(["decomp", "evaluate", folder, "--quiet"]) == 2
    assert "which is not there" in capsys.readouterr().err
