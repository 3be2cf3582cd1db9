"""Data larger than memory: rows are read when they are needed, and give what the same rows give in memory."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cache.tasks import cases
from whence.attrib import EKFAC
from whence.cache import DataError, Examples, LanguageModelling, Store, TrainedModel, UsageError, activations
from whence.cache.model import columns, ragged
from whence.corpora import Vocabulary, load
from whence.corpora.token_files import token_file

ROWS = [
    {"id": f"t{n}", "title": None if n % 3 else f"number {n}", "text": text, "stars": n, "tags": ["x"]}
    for n, text in enumerate(cases.texts(12, 0, 14))
]


def words() -> Vocabulary:
    return Vocabulary(cases.tokenizer())


def _jsonl(folder: Path) -> Path:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
    return folder / "rows.jsonl"


def _parquet(folder: Path) -> Path:
    import pyarrow
    import pyarrow.parquet

    for part in (0, 1):
        table = pyarrow.Table.from_pylist(ROWS[part * 6 : part * 6 + 6])
        pyarrow.parquet.write_table(table, folder / f"part-{part}.parquet", row_group_size=2)
    return folder


def _arrow(folder: Path) -> Path:
    import pyarrow

    table = pyarrow.Table.from_pylist(ROWS)
    with pyarrow.ipc.new_file(folder / "rows.arrow", table.schema) as file:
        file.write_table(table, 5)
    return folder / "rows.arrow"


def _saved(folder: Path) -> Path:
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": whole, "other": whole.select([0])}).save_to_disk(str(folder / "saved"))
    return folder / "saved"


KINDS: dict[str, Callable[[Path], Path]] = {
    "jsonl": _jsonl, "a folder of parquet": _parquet, "arrow": _arrow, "load_from_disk": _saved,
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_rows_from_a_file_are_those_in_memory(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = KINDS[kind](tmp_path)
    whole = load(source, words(), length=8).train
    monkeypatch.setattr(ragged, "SPOOL", 0)
    found = load(source, words(), length=8).train
    assert isinstance(found.columns["input_ids"], ragged.Ragged)
    assert not isinstance(whole.columns["input_ids"], ragged.Ragged)
    assert found.fingerprint == whole.fingerprint
    assert found.about.keys() == whole.about.keys() >= {"title", "text", "stars", "document"}
    for name in whole.about:
        assert list(found.about[name]) == list(whole.about[name])
    few = found.select([3, 1]).about["text"]
    assert isinstance(few, ragged.Derived)
    assert list(few) == [whole.about["text"][3], whole.about["text"][1]]
    np.testing.assert_array_equal(found.lengths, whole.lengths)


def test_only_the_rows_of_a_batch_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ragged, "SPOOL", 0)
    found = load(_jsonl(tmp_path), words(), length=8).train
    read: list[tuple[int, int]] = []
    own = ragged.NumberFile.__getitem__
    monkeypatch.setattr(ragged.NumberFile, "__getitem__", lambda s, p: read.append((p.start, p.stop)) or own(s, p))
    few = found.select([4, 2, 7]).without([int(found.ids[7])])
    assert few.lengths.tolist() == [found.lengths[4], found.lengths[2]]
    assert not read
    few.batch([0, 1])
    tokens = found.columns["input_ids"]
    assert read == [(tokens.starts[row], tokens.stops[row]) for row in (4, 2)]  # type: ignore[attr-defined]


def test_scores_and_activations_are_those_of_rows_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = cases.build("choice").model.float()
    whole = load(_jsonl(tmp_path), words(), length=8).train
    monkeypatch.setattr(ragged, "SPOOL", 0)
    found = load(_jsonl(tmp_path), words(), length=8).train
    results: list[Any] = []
    for train in (whole, found):
        store = Store(tmp_path / str(len(results)))
        trained = TrainedModel(
            model, train, LanguageModelling(), sites="*mlp.c_proj", positions=32, store=store, quiet=True
        )
        scores = EKFAC().fit(trained).score(whole.select([0, 1]))
        results.append((scores.values, activations(trained, "transformer.h.0.mlp").read("transformer.h.0.mlp")))
    for one, other in zip(*results):
        np.testing.assert_array_equal(one, other)


def test_a_worker_gets_the_place_of_the_rows_not_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "train.bin"
    np.arange(100_000, dtype="<u2").tofile(path)
    found = token_file(path, None, length=1000, dtype="<u2").train
    sent = pickle.dumps(found)
    assert len(sent) < 20_000
    assert pickle.loads(sent).fingerprint == found.fingerprint


def test_flat_token_files_end_documents_at_a_token(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WHENCE_QUIET", raising=False)
    path = tmp_path / "train.bin"
    np.array([1, 2, 21, 3, 4, 5, 6, 7, 21, 8, 9], "<u2").tofile(path)
    found = token_file(path, words(), length=4, end=21).train
    assert [row.tolist() for row in found.columns["input_ids"]] == [[1, 2, 21], [3, 4, 5, 6], [7, 21], [8, 9]]
    assert found.about["document"] == [0, 1, 1, 2]
    assert found.about["text"][0] == "b c </s>"
    one = load(path, words(), length=128).train  # this tokenizer names no end
    assert one.lengths.tolist() == [11]
    assert "the tokenizer names no end of text" in capsys.readouterr().err
    assert load(path, words(), length=4, end=21).train.fingerprint == found.fingerprint
    np.save(tmp_path / "train.npy", np.fromfile(path, "<u2"))
    other = token_file(tmp_path / "train.npy", words(), length=4, end=21).train
    assert other.fingerprint == found.fingerprint


def test_token_files_with_an_index_end_documents_where_it_says(tmp_path: Path) -> None:
    documents = [[[1, 2], [3, 4, 5]], [[6, 7, 8]]]  # of sentences
    sizes = np.array([len(s) for d in documents for s in d], "<i4")
    np.concatenate([np.array(s, "<i4") for d in documents for s in d]).tofile(tmp_path / "data.bin")
    pointers = (np.cumsum(sizes) - sizes).astype("<i8") * 4
    head = b"MMIDIDX\x00\x00" + (1).to_bytes(8, "little") + bytes([4])
    head += len(sizes).to_bytes(8, "little") + (3).to_bytes(8, "little")
    index = head + sizes.tobytes() + pointers.tobytes() + np.array([0, 2, 3], "<i8").tobytes()
    (tmp_path / "data.idx").write_bytes(index)
    found = load(tmp_path / "data.bin", words()).train
    assert [row.tolist() for row in found.columns["input_ids"]] == [[1, 2, 3, 4, 5], [6, 7, 8]]
    (tmp_path / "data.idx").write_bytes(index[:-4])
    with pytest.raises(DataError, match="ends in the middle"):
        load(tmp_path / "data.bin", words())
    (tmp_path / "data.idx").write_bytes(b"something else" * 4)
    with pytest.raises(DataError, match="no index"):
        load(tmp_path / "data.bin", words())


def test_a_token_file_of_another_dtype_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.bin"
    np.arange(1, 50, dtype="<u4").tofile(path)
    with pytest.raises(DataError, match=r"Every second number[\s\S]*uint32"):
        load(path, words())
    assert token_file(path, words(), dtype="uint32").train.lengths.tolist() == [49]
    path.write_bytes(b"abc")
    with pytest.raises(DataError, match="whole uint16"):
        load(path, words())


def test_rows_that_are_tokens_lose_their_padding(tmp_path: Path) -> None:
    rows = [
        {"input_ids": [5, 6, 7, 0], "attention_mask": [1, 1, 1, 0]},
        {"input_ids": [8, 9], "attention_mask": [1, 1]},
    ]
    (tmp_path / "tokens.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    found = load(tmp_path / "tokens.jsonl", words()).train
    assert [row.tolist() for row in found.columns["input_ids"]] == [[5, 6, 7], [8, 9]]
    with pytest.raises(UsageError, match="has tokens, not texts"):
        load(tmp_path / "tokens.jsonl")


def test_columns_are_read_under_their_own_names(tmp_path: Path) -> None:
    rows = [{"key": n, "body": row["text"], "head": f"h{n}"} for n, row in enumerate(ROWS)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    found = load(tmp_path / "own.jsonl", words(), columns={"text": "body", "id": "key", "title": "head"}).train
    assert found.ids.tolist() == list(range(len(rows)))
    assert found.about["title"][:2] == ["h0", "h1"]
    with pytest.raises(DataError, match="line 1 has no 'boddy'"):
        load(tmp_path / "own.jsonl", words(), columns={"text": "boddy"})


def test_rows_of_messages_are_conversations(tmp_path: Path) -> None:
    lines = [json.dumps({"messages": each}) + "\n" for each in cases.CONVERSATIONS]
    (tmp_path / "chats.jsonl").write_text("".join(lines), "utf-8")
    found = load(tmp_path / "chats.jsonl", Vocabulary(cases.chat_tokenizer()))
    assert [cases.WORDS[t] for t in found.train.columns["labels"][1] if t != -100] == ["blue", "</s>"]


def test_large_lists_of_a_table_stay_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [
        {"input_ids": [1, 2, 3, 0], "attention_mask": [1, 1, 1, 0], "y": 1},
        {"input_ids": [4, 5], "attention_mask": [1, 1], "y": 0},
    ]
    data = datasets.Dataset.from_list(rows)
    wanted = Examples.of(data.select([1, 0]))
    monkeypatch.setattr(columns, "LARGE", 0)
    for given in (data.select([1, 0]), data.select([1, 0]).flatten_indices().data.table):
        found = Examples.of(given)
        assert isinstance(found.columns["input_ids"], ragged.Ragged)
        assert found.fingerprint == wanted.fingerprint
