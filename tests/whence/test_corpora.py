"""The embedded corpora: what they promise their users, whatever the texts of this Python are."""

import json
from pathlib import Path

import numpy as np
import pytest

from whence import inputs
from whence.cache import DataError, UsageError
from whence.corpora import Vocabulary, biographies, digits, language_reference, load, load_queries, stating
from whence.corpora.corpus import query_examples
from whence.corpora.language_reference import _unwrapped


def test_reference_passages_are_short_titled_and_their_own_text() -> None:
    docs = language_reference()
    words, train = docs.vocabulary, docs.train
    assert 500 < len(train) < 3000
    assert train.lengths.max() <= 128
    assert train.lengths.min() >= 16
    for row in range(0, len(train), 97):
        assert words.decode(train.columns["input_ids"][row]) == train.about["text"][row]
        assert "".join(words.pieces(train.columns["input_ids"][row])) == train.about["text"][row]
    assert len(set(train.about["text"])) == len(train)
    assert len(docs.where(topic="yield")) >= 1
    assert not set(docs.queries.about["text"]) & set(train.about["text"])


def test_reference_is_the_same_every_time() -> None:
    assert language_reference().train.fingerprint == language_reference.__wrapped__().train.fingerprint


def test_wrapped_prose_is_joined_and_code_is_not() -> None:
    long = "word " * 14
    assert _unwrapped(f"  {long.strip()}\n  end") == f"{long.strip()} end"
    assert _unwrapped("   for x in y:\n       pass") == "for x in y:\n    pass"


def test_reference_of_another_python(monkeypatch) -> None:
    other = {"loop": "The loop\n********\n\n" + "A loop goes round and round until it ends. " * 20, "odd": "\n\n"}
    monkeypatch.setattr("pydoc_data.topics.topics", other)
    docs = language_reference.__wrapped__(length=32, vocabulary=300)
    assert set(docs.train.about["title"]) == {"loop: The loop"}
    assert docs.train.lengths.max() <= 32


def test_biographies_plant_facts_among_distractors() -> None:
    docs = biographies()
    about, queries = docs.train.about, docs.queries
    relevant = stating(queries, docs.train)
    assert (relevant.sum(1) == 3).all()
    for row in range(len(queries)):
        stated = np.flatnonzero(relevant[row])
        wordings = {about["wording"][n] for n in stated}
        assert len(wordings) == 3  # each passage worded by another template
        assert "question" not in wordings  # and the query by none of them
        assert all(about["text"][n].endswith(queries.about["value"][row]) for n in stated)
        others = ~relevant[row]
        same_person = np.array(about["person"]) == queries.about["person"][row]
        same_value = np.array(about["value"]) == queries.about["value"][row]
        assert (others & same_person).sum() >= 9
        assert (others & same_value).sum() >= 9
    assert set(about["wording"]) >= {"question"}
    assert not set(queries.about["text"]) & set(about["text"])


def test_queries_mask_their_prompt() -> None:
    docs = biographies()
    labels, tokens = docs.queries.columns["labels"][0], docs.queries.columns["input_ids"][0]
    assert (labels[:-1] == -100).all()
    assert labels[-1] == tokens[-1]
    with pytest.raises(DataError, match="empty half"):
        query_examples(["ask"], [""], docs.vocabulary)


def test_digits() -> None:
    data = digits()
    assert (len(data.train), len(data.queries)) == (1437, 360)
    assert data.train.columns["x"].shape == (1437, 64)
    assert digits(images=True).train.columns["x"].shape == (1437, 1, 8, 8)
    assert not set(data.train.ids) & set(data.queries.ids)


def test_text_survives_its_tokens() -> None:
    words = Vocabulary.byte_pairs(["plain text"], 300)
    odd = "naïve — ☃ 東京\n\ttab"
    assert words.decode(words.encode(odd)) == odd
    assert "".join(words.pieces(words.encode(odd))) == odd
    assert Vocabulary.from_json(words.to_json()).encode(odd).tolist() == words.encode(odd).tolist()


def test_files(tmp_path: Path) -> None:
    plain = tmp_path / "notes.txt"
    plain.write_text("One thing here.\n\nAnother thing there.\n\n" + "long " * 300)
    docs = load(plain, length=64)
    assert docs.train.about["text"][0] == "One thing here."
    assert docs.train.lengths.max() <= 64
    lines = tmp_path / "rows.jsonl"
    lines.write_text("\n".join(json.dumps({"id": 7 * n, "text": f"row {n}", "kind": "a"}) for n in range(4)))
    rows = load(lines, docs.vocabulary)
    assert rows.train.ids.tolist() == [0, 7, 14, 21]
    assert list(rows.train.about["kind"]) == ["a"] * 4
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"content": ["first text", "second text"]}), tmp_path / "t.parquet")
    assert len(load(tmp_path / "t.parquet").train) == 2
    asked = tmp_path / "asked.jsonl"
    asked.write_text(json.dumps({"prompt": "One thing", "completion": " here"}))
    assert len(load_queries(asked, docs.vocabulary)) == 1


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", "{", "line 1 is not JSON"),
        ("a.jsonl", "[1]", "is a list"),
        ("a.jsonl", '{"number": 1}', "no column of text"),
        ("a.txt", "", "no rows"),
        ("a.parquet", "x", "cannot be read"),
    ],
)
def test_bad_files_are_told(name: str, content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=said):
        load(tmp_path / name)


def test_unknown_inputs(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b")
    with pytest.raises(UsageError, match="no kind of file"):
        load(tmp_path / "a.csv")
    with pytest.raises(DataError, match="There is no file"):
        load(tmp_path / "missing.jsonl")


def test_a_corpus_in_another_vocabulary() -> None:
    words = Vocabulary.byte_pairs(["some other text"], 300)
    docs = inputs.load_data("biographies", words)
    assert docs.train.ids.tolist() == biographies().train.ids.tolist()
    assert docs.vocabulary is words
    assert words.decode(docs.train.columns["input_ids"][0]) == docs.train.about["text"][0]
