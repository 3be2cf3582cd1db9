"""`whence unlearn document` on a tiny model that has read a few biographies."""

import json

import pytest
from safetensors import safe_open

import whence.commands._unlearn_document as command
import whence.inputs
from whence.cache import LanguageModelling, TrainedModel, UsageError
from whence.cli import main

QUIET = ("--document", "Ada", "--column", "name", "--epochs", "4", "--quiet", "--json")


@pytest.fixture(scope="module")
def loaded():
    from whence.corpora import biographies
    from whence.corpora.corpus import Corpus
    from whence.language_model import Shape, Training, new_model, train_language_model

    whole = biographies()
    about = {"name": ["Ada", "Ada", "Bo", "Bo", *["others"] * 20]}
    train = whole.train.select(range(24))
    train = type(train)(train.columns, train.ids, about)
    corpus = Corpus("tiny", train, whole.queries.select(range(2)), whole.vocabulary)
    assert whole.vocabulary is not None
    shape = Shape(layers=1, width=16, heads=2, context=int(whole.train.lengths.max()), vocabulary=len(whole.vocabulary))
    model = new_model(shape)
    train_language_model(model, train, Training(epochs=4, batch=8, rate=1e-2), quiet=True)
    return model, corpus


@pytest.fixture(autouse=True)
def _tiny(monkeypatch, tmp_path, loaded):
    model, corpus = loaded
    monkeypatch.setattr(whence.inputs, "load_model", lambda name, store, **_: (model, corpus.vocabulary))
    monkeypatch.setattr(whence.inputs, "load_data", lambda name, vocabulary=None, **_: corpus)
    monkeypatch.setenv("WHENCE_CACHE", str(tmp_path))


def said(capsys, *arguments: str) -> dict:
    assert main(["unlearn", "document", *QUIET, *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_document_is_forgotten_and_the_file_says_so(capsys, tmp_path, loaded):
    out = tmp_path / "forgot.safetensors"
    told = said(capsys, "--scale", "1", "--out", str(out))
    assert told["passages"] == 2
    assert told["forgotten after"] > told["forgotten before"]
    assert told["of retraining"] > 0
    with safe_open(out, "pt") as file:
        log = json.loads(file.metadata()["deletion_log"])
        assert log[0]["forgotten"] == sorted(int(i) for i in loaded[1].train.ids[:2])
        assert len(file.keys()) == len(dict(loaded[0].named_parameters()))
    low = said(capsys, "--scale", "1", "--rank", "2", "--rate", "0.01", "--out", str(out))
    assert low["forgotten after"] > low["forgotten before"]
    with safe_open(out, "pt") as file:
        assert not [name for name in file.keys() if "parametrizations" in name]  # noqa: SIM118


def test_another_method_forgets_with_its_settings(capsys, tmp_path):
    words = ("--method", "npo", "--set", "retain=kl", "--rate", "0.01", "--out", str(tmp_path / "forgot.safetensors"))
    told = said(capsys, *words)
    assert told["method"] == "npo"
    assert told["forgotten after"] > told["forgotten before"] + 0.05
    assert main(["unlearn", "document", *QUIET, "--method", "npo", "--set", "gama=1"]) == 2
    assert "no setting 'gama'" in capsys.readouterr().err
    assert main(["unlearn", "document", *QUIET, "--method", "npo", "--adapters", "--out", str(tmp_path / "out")]) == 2
    assert "no model of transformers" in capsys.readouterr().err


def test_the_scale_is_chosen_on_other_documents(capsys, tmp_path, monkeypatch, loaded):
    from whence.language_model import Shape, Training, new_model, train_language_model

    def again(job, request):
        words = len(loaded[1].vocabulary)
        model = new_model(Shape(1, 16, 2, int(job.trained.train.lengths.max()), words))
        train_language_model(model, job.trained.train.select(request.left), Training(4, 8, 1e-2), quiet=True)
        return model

    monkeypatch.setattr(command, "retrained", again)
    out = str(tmp_path / "forgot.safetensors")
    assert said(capsys, "--pilots", "Bo", "--scales", "0.5", "2.0", "--out", out)["scale"] in (0.5, 2.0)
    assert main(["unlearn", "document", *QUIET, "--pilots", "Ada"]) != 0
    assert "cannot calibrate its own removal" in capsys.readouterr().err
    assert main(["unlearn", "document", *QUIET, "--method", "npo", "--scale", "1"]) == 2
    assert "nothing to be scaled" in capsys.readouterr().err
    for given, cause in (((), "not calibrated"), (("--pilots", "Bo", "--scale", "1"), "exclude each other")):
        assert main(["unlearn", "document", *QUIET, *given]) == 2
        assert cause in capsys.readouterr().err


def test_only_a_known_training_is_repeated(loaded):
    model, corpus = loaded
    trained = TrainedModel(model, corpus.train, LanguageModelling())
    job = command._Forgetting(command.Document(document="Ada", model="elsewhere"), trained)
    with pytest.raises(UsageError, match="Only the demo's model"):
        command.retrained(job, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_saved_folder_is_the_unlearned_model_in_transformers(kind, tmp_path, monkeypatch, capsys):
    import torch
    import transformers

    from tests.whence.tiny import saved, texts_file
    from whence.pretrained import pretrained

    monkeypatch.undo()
    monkeypatch.setenv("WHENCE_CACHE", str(tmp_path / "store"))
    folder, out = saved(tmp_path / "model", kind), tmp_path / "forgot"
    data = texts_file(tmp_path / "texts.jsonl", 12)
    words = ("--model", str(folder), "--data", str(data), "--document", "3", "--scale", "0.1", "--steps", "2")
    assert (
        main(
            [
                "unlearn",
                "document",
                *words,
                "--sites",
                "*",
                "--damping",
                "10",
                "--rate",
                "0.01",
                "--quiet",
                "--out",
                str(out),
            ]
        )
        == 0
    )
    assert json.loads((out / "deletion_log.json").read_text())
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        plain = transformers.AutoModelForCausalLM.from_pretrained(out)(ids).logits
        before, again = (pretrained(str(place))[0](ids) for place in (folder, out))
    assert torch.allclose(plain, again, atol=1e-4)
    assert not torch.allclose(plain, before, atol=1e-2)
    moved = dict(transformers.AutoModelForCausalLM.from_pretrained(out).named_parameters())
    was = dict(transformers.AutoModelForCausalLM.from_pretrained(folder).named_parameters())
    attention = [name for name in was if "attn" in name and name.endswith("weight")]
    assert attention
    assert not [name for name in attention if torch.equal(was[name], moved[name])]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_adapters_go_on_the_model_and_are_unlearned_again(kind, tmp_path, monkeypatch, capsys):
    """Low-rank updates as peft and this library read them; then a model with adapters, which alone are moved."""
    import torch
    import transformers

    from tests.whence.tiny import saved, texts_file
    from whence.options import Loading
    from whence.pretrained import pretrained

    peft = pytest.importorskip("peft")
    monkeypatch.undo()
    monkeypatch.setenv("WHENCE_CACHE", str(tmp_path / "store"))
    folder, first, second = saved(tmp_path / "model", kind, layers=1), tmp_path / "first", tmp_path / "second"
    data, ids = texts_file(tmp_path / "texts.jsonl", 12), torch.tensor([[5, 6, 7, 8]])

    def forget(model, *more):
        words = ("--model", str(model), "--data", str(data), "--document", "3", "--steps", "2", "--rate", "0.05")
        return main(["unlearn", "document", *words, "--quiet", *more])

    def logits(place, base=None):
        if base is None:
            return pretrained(str(place), Loading(base=str(folder)))[0](ids).logits
        plain = transformers.AutoModelForCausalLM.from_pretrained(base)
        return peft.PeftModel.from_pretrained(plain, str(place)).eval()(ids).logits

    assert forget(folder, "--method", "npo", "--rank", "2", "--adapters", "--out", str(tmp_path / "a.safetensors")) == 2
    assert "Adapters are a folder" in capsys.readouterr().err
    assert forget(folder, "--method", "npo", "--rank", "2", "--adapters", "--out", str(first)) == 0
    assert json.loads((first / "deletion_log.json").read_text())
    assert forget(first, "--method", "undial", "--out", str(second)) == 0
    with torch.no_grad():
        plain = transformers.AutoModelForCausalLM.from_pretrained(folder)(ids).logits
        once, twice = logits(first, folder), logits(second, folder)
        torch.testing.assert_close(logits(first), once)
        torch.testing.assert_close(logits(second), twice)
    assert not torch.allclose(plain, once, atol=1e-3)
    assert not torch.allclose(once, twice, atol=1e-3)
