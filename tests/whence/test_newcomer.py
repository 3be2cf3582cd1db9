"""What stopped a new user with a model and files of his own, command by command."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.whence import tiny
from whence import decomp
from whence.attrib import TracIn
from whence.cache import LanguageModelling, TrainedModel, runs, tasks
from whence.cache.errors import UsageError
from whence.cache.model.checkpoints import models_at
from whence.cli import main
from whence.corpora import Vocabulary, load, load_queries
from whence.inputs import load_model
from whence.unlearn.condense import Condensed


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options that name a small GPT-2, which is loaded as a bridge, and twelve texts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WHENCE_CACHE", str(tmp_path / "store"))
    monkeypatch.delenv("WHENCE_QUIET", raising=False)
    model, data = tiny.saved(tmp_path / "model", "gpt2", 1), tiny.texts_file(tmp_path / "texts.jsonl", 12)
    return ["--model", str(model), "--data", str(data), "--sites", "*.mlp.c_proj", "--quiet"]


def written(path: str, *rows: dict[str, Any]) -> str:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


QUERY = ["--prompt", "the quick", "--completion", " brown"]


def test_packed_texts_are_kept_apart_in_a_model_that_takes_any_argument(own: list[str]) -> None:
    model, words = load_model(own[1], quiet=True)
    texts, task = load(own[3], words).train, LanguageModelling()
    rows = tasks.packed(texts, 64)
    assert len(rows) < len(texts)
    alone = dict(zip(texts.ids.tolist(), task.loss(model, texts.batch(range(len(texts)))).tolist()))
    together = task.loss(model, rows.batch(range(len(rows)))).tolist()
    assert together == pytest.approx([sum(alone[i] for i in row) for row in rows.about["documents"]], rel=1e-4)


def test_a_checkpoint_by_the_names_of_its_library_is_that_model(own: list[str]) -> None:
    from transformers import GPT2LMHeadModel

    torch.manual_seed(1)
    bridge, _ = load_model(own[1], quiet=True)
    other = GPT2LMHeadModel(GPT2LMHeadModel.from_pretrained(own[1]).config).eval()
    weights = {name: p.detach() for name, p in other.named_parameters()}
    (found,) = models_at(bridge, [weights])
    ids = torch.tensor([[3, 5, 7]])
    with torch.no_grad():
        here, there = found(ids), other(ids).logits
    torch.testing.assert_close(getattr(here, "logits", here), there, rtol=1e-4, atol=1e-5)


def test_a_run_of_a_library_s_model_is_one_of_the_bridge_around_it(own: list[str], tmp_path: Path) -> None:
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(own[1]).eval()
    texts, adam = load(own[3], load_model(own[1], quiet=True)[1]).train, torch.optim.AdamW(model.parameters(), 0.01)
    with runs.record("run", model, adam) as run:
        for rows in np.arange(12).reshape(3, 4):
            LanguageModelling().loss(model, texts.batch(rows)).sum().backward()
            adam.step()
            run.step(texts.ids[rows])
            adam.zero_grad()
    model.save_pretrained("trained")
    tokenizer_of(own[1], "trained")
    bridge, scores = load_model("trained", quiet=True)[0], []
    for each, sites in ((model, ["*.mlp.*", "*.attn.c_proj"]), (bridge, ["*.mlp.*", "*.attn.o"])):
        trained = TrainedModel.from_run("run", each, texts, LanguageModelling(), sites=sites, quiet=True)
        scores.append(TracIn().fit(trained).score(texts.select([0, 1])).values)
    np.testing.assert_allclose(*scores, rtol=1e-4, atol=1e-5 * np.abs(scores[0]).max())
    parts = TrainedModel.from_run("run", bridge, texts, LanguageModelling(), sites=["*.attn.q"], quiet=True)
    assert parts.training is not None
    before, after = (parts.training.checkpoints[at].read() for at in (0, -1))
    (name,) = (name for name in after if name.endswith("attn.q._original_component.weight") or "attn.q.weight" in name)
    assert not torch.equal(before[name], after[name])  # a part of the joint map moved with it


def tokenizer_of(model: str, folder: str) -> None:
    for file in Path(model).glob("token*"):
        shutil.copy(file, folder)


def test_checkpoints_are_files_or_folders_of_a_trainer(own: list[str], capsys: Any) -> None:
    weights = load_file(Path(own[1]) / "model.safetensors")
    save_file({name: 1.1 * tensor for name, tensor in weights.items()}, "later.safetensors")
    ask = ["attrib", "score", *own, *QUERY, "--method", "tracin", "--rates", "0.1", "0.1"]
    assert main([*ask, "--checkpoints", own[1], "later.safetensors"]) == 0
    assert main([*ask, "--checkpoints", own[1], "nowhere"]) == 1
    assert "no weights at nowhere" in capsys.readouterr().err


def test_queries_that_are_given_as_data_are_called_queries(own: list[str]) -> None:
    words = Vocabulary.words(["a b"])
    for row in ({"options": ["a", "b"], "answer": 0}, {"completion": "a", "reward": 1.0}):
        path = written("asked.jsonl", {"prompt": "a", **row})
        if "completion" in row:  # prompt and completion are data too
            assert len(load(path, words).train) == 1
            continue
        with pytest.raises(UsageError, match="queries"):
            load(path, words)


def test_equal_rewards_are_said_to_be_that(own: list[str], capsys: Any) -> None:
    asked = written("asked.jsonl", *({"prompt": "the", "completion": end, "reward": 2.0} for end in (" fox", " dog")))
    assert main(["attrib", "score", *own, "--queries", asked, "--method", "identity"]) == 1
    assert "Give each query samples with different rewards." in capsys.readouterr().err


def test_texts_without_ids_are_named_by_their_row(own: list[str], capsys: Any) -> None:
    written("plain.jsonl", *({"text": tiny.text(n)} for n in range(6)))
    words = load_model(own[1], quiet=True)[1]
    train = load("plain.jsonl", words, length=8).train
    assert len(train) > 6
    assert train.about["document"] == sorted(train.about["document"])
    assert set(train.about["document"]) == set(range(6))
    forget = ["unlearn", "document", *own[:2], "--data", "plain.jsonl", "--method", "npo", "--steps", "1", "--quiet"]
    assert main([*forget, "--document", "4", "--out", "forgot.safetensors"]) == 0
    assert main(["attrib", "select", *own[:2], "--data", "plain.jsonl", *QUERY, "--how", "dsir", "--k", "6"]) == 0
    assert "(4)  the quick brown fox 4" in capsys.readouterr().out


def test_pieces_are_shown_and_removed_by_the_name_of_their_text(own: list[str], capsys: Any) -> None:
    cut = [*own[:4], "--length", "8", "--quiet"]
    quick = ["--method", "identity", "--sites", "*.mlp.c_proj", "--out", "page.html"]
    assert main(["attrib", "report", *cut, *QUERY, *quick]) == 0
    assert re.search(r"document <code>1?\d</code>", Path("page.html").read_text())
    build = ["decomp", "build", *cut, "--at", "blocks.0.hook_out", "--builder", "random", "--size", "40", "--k", "2"]
    assert main([*build, "--out", "atoms"]) == 0
    assert main(["decomp", "report", "atoms", "--quiet", "--out", "features.html"]) == 0
    assert '"names":{"' in Path("features.html").read_text()
    pieces = load(own[3], load_model(own[1], quiet=True)[1], length=8).train
    from_three = set(pieces.ids[[name == 3 for name in pieces.about["document"]]].tolist())
    before, edit = decomp.load("atoms").provenance.document, ["decomp", "edit", "atoms", "--quiet", "--out", "edited"]
    assert from_three & set(before.tolist())
    assert main([*edit, "--delete-documents", "3"]) == 0
    assert decomp.load("edited").provenance.document.tolist() == [i for i in before.tolist() if i not in from_three]
    assert main([*edit, "--delete-documents", "300"]) == 2
    assert "No atom comes from document 300" in capsys.readouterr().err


def test_conversations_are_queries(own: list[str]) -> None:
    words = load_model(own[1], quiet=True)[1]
    words.tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    said = [{"role": "user", "content": "the quick"}, {"role": "assistant", "content": "brown fox"}]
    found = load_queries(written("asked.jsonl", {"messages": said}), words)
    labels = found.columns["labels"][0]
    assert words.decode(labels[labels != -100].tolist()).strip() == "brown fox"


def test_an_embedded_model_or_corpus_beside_ones_own_is_said(own: list[str], monkeypatch: Any, capsys: Any) -> None:
    loaded = load_model(own[1], quiet=True)
    monkeypatch.setattr("whence.inputs.load_model", lambda *_, **__: loaded)
    monkeypatch.setattr("whence.inputs.CORPORA", {"language-reference": lambda: load(own[3], loaded[1])})
    for left, said in (("--model", "The model is the embedded demo"), ("--data", "data are the embedded language-")):
        at = own.index(left)
        assert main(["attrib", "fit", *own[:at], *own[at + 2 :]]) == 0
        assert said in capsys.readouterr().err
    assert main(["attrib", "fit", *own]) == 0
    assert "embedded" not in capsys.readouterr().err


def test_properties_of_influence_are_measured_on_queries_of_ones_own(own: list[str], capsys: Any) -> None:
    asked = written("asked.jsonl", *({"prompt": "the", "completion": end} for end in (" quick", " lazy", " fox")))
    probe = ["attrib", "probe", *own, "--probes", "layers", "--out", "layers.csv"]
    assert main([*probe, "--queries", asked, "--first", "2"]) == 0
    assert main(probe) == 2
    assert "--queries FILE" in capsys.readouterr().err


def test_the_last_line_says_once_where_the_result_is(own: list[str], capsys: Any) -> None:
    few = ["--width", "32", "--kind", "largest"]
    query = ["query", *QUERY, "--candidates", "5", "--top", "2", "--no-rerank", "--out", "found.csv"]
    for (name, *more), said in ((["index", "--check", "0"], "--out FILE writes a file"), (query, "written: found.csv")):
        assert main(["attrib", name, *own, *more, *few]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[-1].endswith(said)
        assert "\n".join(lines).count(said) == 1


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("attrib report --out page.parquet", "ends in .html"),
        ("decomp build --builder kmeans --tokens 5", "--tokens is no setting of kmeans"),
        ("unlearn document --document 3 --scale 1 --pilots 4", "exclude each other"),
        ("unlearn margins model --data texts.jsonl", "forget=FILE"),
        ("unlearn run --set matching.optimiser.lrr=3", "'lr'"),
        ("attrib fit --set lables=true", "'labels'"),
        ("attrib score --method source --set segment=3", "'segments'"),
    ],
)
def test_the_nearest_right_thing_is_named(command: str, said: str, capsys: Any) -> None:
    assert main(command.split()) == 2
    assert said in capsys.readouterr().err


def test_a_transcoder_is_called_one(own: list[str], capsys: Any) -> None:
    build = ["decomp", "build", *own[:4], "--quiet", "--at", "blocks.0.mlp.hook_out", "--to", "blocks.0.hook_out"]
    assert main([*build, "--builder", "random", "--size", "20", "--k", "2", "--out", "across"]) == 0
    assert main(["decomp", "encode", "across"]) == 2
    assert "is a transcoder" in capsys.readouterr().err


def test_a_kind_that_the_store_has_not_is_named(own: list[str], capsys: Any) -> None:
    assert main(["cache", "ls", "--kind", "factor"]) == 0
    assert "Nothing" not in capsys.readouterr().out  # the store is empty
    assert main(["attrib", "fit", *own]) == 0
    capsys.readouterr()
    assert main(["cache", "ls", "--kind", "factor"]) == 0
    assert "Did you mean 'factors'?" in capsys.readouterr().out


def test_a_table_is_condensed(own: list[str], capsys: Any) -> None:
    rng = np.random.default_rng(0)
    rows = [{"a": float(x), "b": float(y), "kind": "yes" if x > 0 else "no"} for x, y in rng.normal(size=(40, 2))]
    data = ["--data", written("rows.jsonl", *rows), "--label-column", "kind"]
    assert main(["condense", "run", *data, "--network", "mlp-4", "--outer", "2", "--out", "small.npz"]) == 0
    assert "0 outer steps" not in capsys.readouterr().err
    assert Condensed.load("small.npz").labels.shape == (2, 2)
