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
    assert len(train.where(topic="yield")) >= 1
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
    (tmp_path / "a.xls").write_text("a,b")
    with pytest.raises(UsageError, match="kind of file cannot be read"):
        load(tmp_path / "a.xls")
    with pytest.raises(DataError, match="There is no file"):
        load(tmp_path / "missing.jsonl")


def test_a_corpus_in_another_vocabulary() -> None:
    words = Vocabulary.byte_pairs(["some other text"], 300)
    docs = inputs.load_data("biographies", words)
    assert docs.train.ids.tolist() == biographies().train.ids.tolist()
    assert docs.vocabulary is words
    assert words.decode(docs.train.columns["input_ids"][0]) == docs.train.about["text"][0]


ONE = {"text": "the first of the texts"}


def jsonl(path: Path, *rows: object) -> Path:
    path.write_bytes("".join(json.dumps(row) + "\n" for row in rows).encode())
    return path


@pytest.mark.parametrize(
    "row",
    [
        {"text": None},
        {"content": "x y z"},
        {"text": [{"role": "user", "content": "hi"}]},
        {"text": {"a": 1}},
        {"text": True},
        {"text": float("nan")},
        {"text": "one \ud83d two"},
        {"text": "one two", "note": "\udc00"},
    ],
    ids=ascii,
)
def test_a_text_that_is_none_is_an_error_with_its_line(row: dict, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 2"):
        load(jsonl(tmp_path / "a.jsonl", ONE, row, ONE))


@pytest.mark.parametrize("half", [{}, {"completion": None}, {"completion": ""}, {"completion": ["x"]}], ids=str)
def test_a_query_without_a_half_is_an_error_with_its_line(half: dict, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "q.jsonl", {"prompt": "a b", "completion": " c"}, {"prompt": "a b", **half})
    words = Vocabulary.byte_pairs(["a b c"], 300)
    for reader in (load, load_queries):
        with pytest.raises(DataError, match="line 2"):
            reader(path, words)


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85"], ids=ascii)
def test_separators_within_a_string_end_no_line(mark: str, tmp_path: Path) -> None:
    rows = [{"text": f"before{mark}after it"}, {"text": "a second text"}]
    path = tmp_path / "a.jsonl"
    path.write_bytes("\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode())
    assert load(path).train.about["text"] == [row["text"] for row in rows]
    path.write_bytes(json.dumps({"prompt": f"a{mark}b", "completion": " c"}, ensure_ascii=False).encode())
    assert load_queries(path, Vocabulary.byte_pairs(["a b c"], 300)).about["prompt"] == [f"a{mark}b"]


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"], ids=ascii)
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=ascii)
def test_line_ends_and_byte_order_marks_are_no_part_of_a_text(ends: str, mark: str, tmp_path: Path) -> None:
    for name, lines in {
        "a.txt": ["one two", "", "three four", ""],
        "a.jsonl": ['{"text": "one two"}', "", '{"text": "three four"}', ""],
        "a.csv": ["text,id", "one two,1", "three four,2", ""],
    }.items():
        (tmp_path / name).write_bytes((mark + ends.join(lines)).encode())
        found = [text.strip("\n") for text in load(tmp_path / name).train.about["text"]]
        assert found == ["one two", "three four"]


def test_a_line_of_blanks_ends_a_block(tmp_path: Path) -> None:
    (tmp_path / "A.TXT").write_text("one two\n \t\nthree four\n\n\n\nfive six\n")
    assert [t.strip() for t in load(tmp_path / "A.TXT").train.about["text"]] == ["one two", "three four", "five six"]
    (tmp_path / "A.TXT").write_bytes(b"one\n\n\ntwo \0")
    with pytest.raises(DataError, match="line 4"):
        load(tmp_path / "A.TXT")


def test_a_title_that_a_row_lacks_is_the_texts_beginning(tmp_path: Path) -> None:
    found = load(jsonl(tmp_path / "a.jsonl", {"text": "one two", "title": None}, {"text": "three four", "title": "t"}))
    assert found.train.about["title"] == ["one two", "t"]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_other_encodings_are_named(name: str, tmp_path: Path) -> None:
    for encoding, said in [("utf-16", "UTF-16"), ("utf-16-le", "NUL"), ("latin-1", "line 2 is not UTF-8: byte 0xe9")]:
        text = '{"text": "one"}\ncaf\xe9\n' if encoding == "latin-1" else '{"text": "one"}\n'
        (tmp_path / name).write_bytes(text.encode(encoding))
        with pytest.raises(DataError, match=said):
            load(tmp_path / name)


def test_parquet_and_csv_errors_name_the_row(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"text": ["the first of the texts", None], "source": [None, "b"]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="row 2"):
        load(tmp_path / "a.parquet")
    pyarrow.parquet.write_table(table.slice(0, 1), tmp_path / "a.parquet")
    assert load(tmp_path / "a.parquet").train.about["text"] == ["the first of the texts"]
    (tmp_path / "a.csv").write_text('text,id\n"one\ntwo",1\nthree\n')
    with pytest.raises(DataError, match="line 4"):
        load(tmp_path / "a.csv")


def test_a_value_that_the_first_row_lacks_is_kept(tmp_path: Path) -> None:
    found = load(jsonl(tmp_path / "a.jsonl", {**ONE, "lang": None}, {**ONE, "lang": "en"}, {**ONE, "page": 3})).train
    assert found.about["lang"] == [None, "en", None]
    assert found.about["page"] == [None, None, 3]


def test_a_folder_is_the_rows_of_its_files(tmp_path: Path) -> None:
    jsonl(tmp_path / "b.jsonl", {"text": "from the second"})
    (tmp_path / "a.txt").write_text("from the first")
    (tmp_path / "ignored.png").write_bytes(b"x")
    assert load(tmp_path).train.about["text"] == ["from the first", "from the second"]


def test_ids_of_a_file_stay_when_a_text_is_empty_or_cut(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.delenv("WHENCE_QUIET", raising=False)
    long, empty = {"text": "seven " * 300, "id": 9}, {"text": "", "id": 8}
    words = Vocabulary.byte_pairs(["six", "seven"], 300)
    rows = [{"text": "one two three", "id": 7}, empty, long, {**ONE, "id": 4}]
    train = load(jsonl(tmp_path / "a.jsonl", *rows), words, length=64).train
    assert (train.ids[0], train.ids[-1]) == (7, 4)
    assert train.about["document"] == [7, *[9] * (len(train) - 2), 4]
    assert len(train) > 4
    said = capsys.readouterr().err
    assert "1 of 4 texts are longer than 64 tokens" in said
    assert "line 3" in said
    assert "1 of 4 texts have fewer than two tokens" in said
    again = load(jsonl(tmp_path / "b.jsonl", long), words, length=64).train
    assert again.ids.tolist() == train.ids[1:-1].tolist()  # by the text's id and the piece's place alone


@pytest.mark.parametrize("ids", [[2**63 + 5, 2**64 - 1], ["a17", "b18"], [-3, 2**70], ["007", "x"]], ids=str)
def test_ids_that_are_no_integers_of_64_bits_are_kept_exactly(ids: list, tmp_path: Path) -> None:
    rows = [{"text": f"text {n} of some", "id": i} for n, i in enumerate(ids)]
    train = load(jsonl(tmp_path / "a.jsonl", *rows)).train
    assert train.about["document"] == ids
    assert train.rows_of([str(i) for i in ids]).tolist() == [0, 1]


@pytest.mark.parametrize("wrong", [None, float("nan"), 0.5, 2.0**60, True, [1], 3], ids=str)
def test_an_id_that_is_missing_inexact_or_repeated_is_an_error_with_its_line(wrong: object, tmp_path: Path) -> None:
    rows = [{**ONE, "id": 3}, {**ONE, "id": wrong}]
    with pytest.raises(DataError, match="line 2"):
        load(jsonl(tmp_path / "a.jsonl", *rows))
    queries = [{"prompt": "a", "completion": " b", "id": row["id"]} for row in rows]
    with pytest.raises(DataError, match="line 2"):
        load_queries(jsonl(tmp_path / "q.jsonl", *queries), Vocabulary.byte_pairs(["a b"], 300))


def test_texts_are_cut_at_what_the_model_reads(capsys, monkeypatch) -> None:
    monkeypatch.delenv("WHENCE_QUIET", raising=False)
    words = language_reference().vocabulary
    docs = inputs.load_data("language-reference", words, context=32)
    assert docs.train.lengths.max() == 32
    assert docs.train.ids.tolist() == language_reference().train.ids.tolist()
    assert "The model reads at most 32 tokens" in capsys.readouterr().err
    with pytest.raises(UsageError, match="at most 32 tokens, not 64"):
        inputs.load_data("language-reference", words, length=64, context=32)
