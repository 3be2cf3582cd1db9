"""Models of every form and rows of every kind from the command line: classifiers, masked and encoder-decoder models,
preferences, choices and rewards."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from tests.whence import tiny
from whence.attrib import EKFAC
from whence.cache import Classification, LanguageModelling, Store, TrainedModel, UsageError, tasks
from whence.cli import main
from whence.corpora import Vocabulary, load, load_queries
from whence.decomp import load as load_dictionary
from whence.inputs import load_data, load_model
from whence.pretrained import form_of

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def words() -> Vocabulary:
    tokenizer = Vocabulary.byte_pairs([tiny.text(n) for n in range(50)], 400).tokenizer
    tokenizer.add_special_tokens(["[PAD]", "[MASK]"])
    return Vocabulary(PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", mask_token="[MASK]"))


def rows(path: Path, form: str, count: int = 10) -> Path:
    kinds: dict[str, Any] = {
        "classes": lambda n: {"text": tiny.text(n), "label": n % 3},
        "masked": lambda n: {"text": tiny.text(n)},
        "pairs": lambda n: {"prompt": tiny.text(n), "completion": f"fox {n}"},
        "preferred": lambda n: {"prompt": f"the {n}", "chosen": " quick brown fox", "rejected": f" lazy dog {n}"},
        "options": lambda n: {"prompt": f"the {n}", "options": [" lazy dog", " fox", f" {n}"], "answer": n % 2},
        "rewarded": lambda n: {"prompt": f"the {n % 2}", "completion": f" fox {n}", "reward": n / 2},
    }
    path.write_text("".join(json.dumps({"id": 10 + n, **kinds[form](n)}) + "\n" for n in range(count)))
    return path


def saved(folder: Path, form: str) -> Path:
    torch.manual_seed(0)
    tokenizer, size = words().tokenizer, len(words())
    config = BertConfig(**SMALL, vocab_size=size, num_labels=3, max_position_embeddings=32)
    t5 = T5Config(vocab_size=size, d_model=16, d_ff=32, d_kv=8, num_layers=1, num_heads=2, decoder_start_token_id=0)
    model: Any = {
        "classes": lambda: BertForSequenceClassification(config), "masked": lambda: BertForMaskedLM(config),
        "pairs": lambda: T5ForConditionalGeneration(t5),
    }[form]()  # fmt: skip
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


TASKS = {"classes": Classification(), "masked": tasks.MaskedLanguageModelling(), "pairs": tasks.EncoderDecoder()}
SITES = {"classes": "*.intermediate.dense", "masked": "*.intermediate.dense", "pairs": "*.DenseReluDense.wo"}


@pytest.mark.parametrize("form", TASKS)
def test_a_model_of_each_form_is_scored_on_its_own_data(form: str, tmp_path: Path, capsys: Any) -> None:
    store = Store(tmp_path / "store")  # the same question has the same key: it is computed once
    folder, data = saved(tmp_path / "model", form), rows(tmp_path / "data.jsonl", form)
    asked = rows(tmp_path / "asked.jsonl", form, 2)
    own = ["--model", str(folder), "--data", str(data), "--store", str(store.root), "--quiet"]
    more = ["--sites", SITES[form], "--queries", str(asked)]
    assert main(["--debug", "attrib", "score", *own, *more, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["queries"]
    assert main(["--debug", "attrib", "report", *own, *more, "--out", str(tmp_path / "page.html")]) == 0
    assert main(["--debug", "decomp", "hooks", *own]) == 0
    if form == "classes":  # its tokens are in the column x
        made = ["--at", "bert.encoder.layer.0", "--size", "4", "--k", "1", "--out", str(tmp_path / "atoms")]
        assert main(["--debug", "decomp", "build", *own, *made]) == 0
        assert any(" ".join(atom.before.split()) for atom in load_dictionary(tmp_path / "atoms").text)
    if form != "masked":
        assert main(["attrib", "tokens", *own, *more]) == 2
        assert "no texts whose tokens are predicted" in capsys.readouterr().err
    model, vocabulary = load_model(str(folder))
    assert form_of(model) == form
    assert vocabulary is not None
    train = load_data(str(data), vocabulary, form=form).train
    queries = load_queries(asked, vocabulary, form=form)
    trained = TrainedModel(model, train, TASKS[form], sites=SITES[form], store=store, quiet=True)
    scores = EKFAC().fit(trained).score(queries)
    for row, entry in enumerate(found):
        best = (entry["helpful"] + entry["harmful"])[0]  # one list is empty where all scores have one sign
        np.testing.assert_allclose(best["nats"], scores.sel(train=best["id"]).values[row], rtol=1e-4)
    assert train.ids.tolist() == list(range(10, 20))


MEASURED = {"preferred": tasks.Choice(), "options": tasks.Choice(), "rewarded": tasks.Reward()}


@pytest.mark.parametrize("kind", MEASURED)
def test_queries_are_choices_or_rewards_by_their_columns(kind: str, tmp_path: Path, capsys: Any) -> None:
    store = Store(tmp_path / "store")  # the same question has the same key: it is computed once
    folder, data = tiny.saved(tmp_path / "model", layers=1), tiny.texts_file(tmp_path / "texts.jsonl", 8)
    asked = rows(tmp_path / "asked.jsonl", kind, 4)
    own = ["--model", str(folder), "--data", str(data), "--store", str(store.root), "--quiet"]
    assert main(["--debug", "attrib", "score", *own, "--queries", str(asked), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["queries"]
    model, vocabulary = load_model(str(folder))
    assert vocabulary is not None
    train, queries = load_data(str(data), vocabulary, context=64).train, load_queries(asked, vocabulary)
    trained = TrainedModel(model, train, LanguageModelling(), sites="*.mlp.*", store=store, quiet=True)
    scores = EKFAC().fit(trained).measuring(MEASURED[kind]).score(queries)
    for row, entry in enumerate(found):
        best = (entry["helpful"] + entry["harmful"])[0]  # one list is empty where all scores have one sign
        np.testing.assert_allclose(best["nats"], scores.sel(train=best["id"]).values[row], rtol=1e-4)
    if kind == "rewarded":  # centred by the other sample of its prompt, in the order of the rows
        assert queries.columns["reward"].tolist() == [-0.5, -0.5, 0.5, 0.5]
    if kind == "options":
        assert [queries.about["completion"][n] for n in range(2)] == [" lazy dog", " fox"]


def test_preferences_train_against_a_reference(tmp_path: Path, capsys: Any) -> None:
    store = Store(tmp_path / "store")  # the same question has the same key: it is computed once
    folder, data = tiny.saved(tmp_path / "model", layers=1), rows(tmp_path / "data.jsonl", "preferred")
    own = ["--model", str(folder), "--data", str(data), "--store", str(store.root), "--quiet"]
    asked = ["--prompt", "the 3", "--completion", " quick brown"]
    assert main(["attrib", "score", *own, *asked]) == 2
    assert "Give --reference MODEL" in capsys.readouterr().err
    assert main(["--debug", "attrib", "score", *own, *asked, "--reference", str(folder), "--json"]) == 0
    best = json.loads(capsys.readouterr().out)["queries"][0]["helpful"][0]
    model, vocabulary = load_model(str(folder))
    assert vocabulary is not None
    train = tasks.with_reference(load(data, vocabulary).train, model)
    trained = TrainedModel(model, train, tasks.DPO(), sites="*.mlp.*", store=store, quiet=True)
    measured = EKFAC().fit(trained).measuring(tasks.Measured(tasks.DPO(), LanguageModelling()))
    scores = measured.score(tasks.prompted(["the 3"], [" quick brown"], vocabulary))
    np.testing.assert_allclose(best["nats"], scores.sel(train=best["id"]).values[0], rtol=1e-4)


def test_rows_that_a_form_cannot_read_are_named(tmp_path: Path) -> None:
    texts = rows(tmp_path / "texts.jsonl", "masked")
    with pytest.raises(UsageError, match="no prompt and completion"):
        load(texts, words(), form="pairs")
    with pytest.raises(Exception, match="the class is None"):
        load(texts, words(), form="classes")
    with pytest.raises(UsageError, match="no mask token"):
        load(texts, Vocabulary.byte_pairs([tiny.text(0)]), form="masked")
    with pytest.raises(UsageError, match="is for language models"):
        load_data("biographies", words(), form="classes")


def test_packed_texts_are_scored_one_by_one(tmp_path: Path, capsys: Any) -> None:
    store = Store(tmp_path / "store")  # the same question has the same key: it is computed once
    folder, data = tiny.saved(tmp_path / "model", layers=1), tiny.texts_file(tmp_path / "texts.jsonl", 8)
    own = ["--model", str(folder), "--data", str(data), "--store", str(store.root), "--quiet", "--pack"]
    asked = ["--prompt", "the quick", "--completion", " brown"]
    assert main(["--debug", "attrib", "score", *own, *asked, "--json"]) == 0
    entry = json.loads(capsys.readouterr().out)["queries"][0]
    model, vocabulary = load_model(str(folder))
    assert vocabulary is not None
    texts = load_data(str(data), vocabulary, context=64).train
    rows = tasks.packed(texts, 64)
    assert len(rows) < len(texts) == len(entry["helpful"])
    factors = EKFAC().fit(TrainedModel(model, rows, LanguageModelling(), sites="*.mlp.*", store=store, quiet=True))
    scores = factors.score(tasks.prompted(["the quick"], [" brown"], vocabulary), texts)
    for line in entry["helpful"]:
        np.testing.assert_allclose(line["nats"], scores.sel(train=line["id"]).values[0], rtol=1e-4)
    assert main(["attrib", "score", *own, *asked, "--method", "representation"]) == 2
    assert "scores whole rows" in capsys.readouterr().err
