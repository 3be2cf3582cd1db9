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
    for both_or_neither in ((), ("--pilots", "Bo", "--scale", "1")):
        assert main(["unlearn", "document", *QUIET, *both_or_neither]) == 2
        assert "either --scale, or --pilots" in capsys.readouterr().err


def test_only_a_known_training_is_repeated(loaded):
    model, corpus = loaded
    trained = TrainedModel(model, corpus.train, LanguageModelling())
    job = command._Forgetting(command.Document(document="Ada", model="elsewhere"), trained)
    with pytest.raises(UsageError, match="Only the demo's model"):
        command.retrained(job, None)  # type: ignore[arg-type]
