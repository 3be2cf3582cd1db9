"""Examples: ids are exact or refused, tables are read as what they are, padding is cut."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from datasets import Dataset

from whence.cache import DataError, Examples
from whence.cache.model.ids import as_ids, named_rows

X = np.zeros((2, 3), np.float32)


@pytest.mark.parametrize(
    "ids",
    [
        np.array([2**63 + 5, 2**64 - 1], np.uint64), [2**63 + 5, 2**64 - 1], [0.2, 1.7], [1.0, 2.0],
        [1.0, float("nan")], [True, False], np.array([True, False]), [None, 1], torch.tensor([1.5, 2.5]), [10**30, 1],
    ],
)  # fmt: skip
def test_an_id_that_cannot_be_kept_exactly_is_refused(ids):
    with pytest.raises(DataError, match="cannot be an id"):
        Examples.of({"x": X}, ids=ids)


@pytest.mark.parametrize(
    "ids",
    [
        np.array([5, 2**63 - 1], np.uint64), [-1, 2**62 + 1], ["17", "-18"], np.array([3, 4], np.int8),
        torch.tensor([7, 2**53 + 1]), pd.Series([1, 2]), np.array([1, 2**60], object),
    ],
)  # fmt: skip
def test_whole_numbers_are_kept_exactly(ids):
    found = Examples.of({"x": X}, ids=ids)
    assert found.ids.dtype == np.int64
    assert found.ids.tolist() == [int(i) for i in ids]
    assert "id" not in found.about


def test_text_ids_are_shown_and_name_their_examples():
    some = Examples.of({"x": X}, ids=["a17", "b18"], about={"title": ["one", "two"]})
    assert list(some.about["id"]) == ["a17", "b18"]
    assert some.rows_of(["b18", "a17"]).tolist() == [1, 0]
    assert some.rows_of(some.ids).tolist() == [0, 1]
    assert some.without(["a17"]).about["id"] == ["b18"]
    assert as_ids("a17")[0] == some.ids[0] < 2**53
    other = Examples.of({"x": X}, about={"title": ["three", "four"]})
    assert some.joined(other).about["id"] == ["a17", "b18", "0", "1"]
    assert some.fingerprint != Examples.of({"x": X}, ids=["a17", "b19"]).fingerprint
    with pytest.raises(DataError, match="for instance c19"):
        some.rows_of(["c19"])
    assert "a17" in some._repr_html_()


def test_ids_named_twice_and_what_is_no_id_are_refused():
    some = Examples.of({"x": np.zeros((4, 1))}, ids=[3, 5, 7, 9])
    mask = np.array([False, True, False, True])
    assert some.without(mask).ids.tolist() == [3, 7]
    assert some.without(mask.tolist()).ids.tolist() == [3, 7]
    assert named_rows(some.ids, mask).tolist() == [1, 3]
    assert some.without([]).ids.tolist() == some.ids.tolist()
    with pytest.raises(DataError, match=r"named twice, for instance \[5\]"):
        some.without([5, 3, 5])
    for wrong in (mask[:3], np.array([[True]])):
        with pytest.raises(DataError, match="mask of shape"):
            some.without(wrong)
    with pytest.raises(DataError, match="cannot be an id"):
        some.without([3.0, 5.7])
    with pytest.raises(DataError, match="select nothing"):
        some.select([0.0, 1.7])


TABLE = {"x": [[1.5, 2.0], [3.0, 4.0]], "y": [0, 1]}
TABLES = {
    "pandas": lambda columns: pd.DataFrame(columns),
    "arrow": lambda columns: pa.table(columns),
    "dataset": lambda columns: Dataset.from_dict(columns),
    "dict of series": lambda columns: dict(pd.DataFrame(columns)),
    "rows": lambda columns: [dict(zip(columns, row)) for row in zip(*columns.values())],
}


@pytest.mark.parametrize("table", TABLES)
def test_tables_are_read_as_what_they_are(table):
    some = Examples.of(TABLES[table](TABLE))
    np.testing.assert_array_equal(some.columns["x"], TABLE["x"])
    np.testing.assert_array_equal(some.columns["y"], TABLE["y"])
    ragged = Examples.of(TABLES[table]({"input_ids": [[1, 2, 3], [4]]}))
    assert [list(row) for row in ragged.columns["input_ids"]] == [[1, 2, 3], [4]]


@pytest.mark.parametrize("table", ["pandas", "arrow", "dict of series"])
@pytest.mark.parametrize(("column", "what"), [(["a", "b"], "text in row 0"), ([1, None], "row 1|nan")])
def test_texts_and_nulls_are_refused_with_their_row(table, column, what):
    given = TABLES[table]({"x": [[1.0], [2.0]], "y": pd.array(column, object) if table != "arrow" else column})
    with pytest.raises(DataError, match=what):
        Examples.of(given)


def test_a_null_among_rows_is_refused_and_texts_are_left_out():
    rows = [{"x": [1.0], "name": "a"}, {"x": [2.0], "name": "b"}]
    assert list(Examples.of(rows).columns) == ["x"]
    with pytest.raises(DataError, match="null in row 1"):
        Examples.of([rows[0], {**rows[1], "x": None}])
    with pytest.raises(DataError, match="Row 1 has no column 'x'"):
        Examples.of([rows[0], {"name": "b"}])
    with pytest.raises(DataError, match="No column has numbers"):
        Examples.of([{"name": "a"}])


def test_unsigned_numbers_become_signed_or_are_refused():
    assert Examples.of({"x": np.array([1, 2], np.uint64)}).batch([0, 1])["x"].tolist() == [1, 2]
    with pytest.raises(DataError, match="beyond 63 bits"):
        Examples.of({"x": np.array([1, 2**63], np.uint64)})


TEXTS = [[5, 2, 9], [7, 1, 4, 3, 8], [6, 2, 2, 1]]


def padded(left: bool, width: int = 6, ragged: bool = False) -> dict:
    tokens, mask, positions = (np.zeros((3, width), int) for _ in range(3))
    for row, text in enumerate(TEXTS):
        at = slice(width - len(text), width) if left else slice(0, len(text))
        tokens[row, at], mask[row, at], positions[row, at] = text, 1, np.arange(len(text))
    columns = {"input_ids": tokens, "attention_mask": mask, "position_ids": positions, "y": np.arange(3)}
    return {name: list(values) for name, values in columns.items()} if ragged else columns


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("ragged", [False, True])
def test_padding_is_cut(left, ragged):
    some, plain = Examples.of(padded(left, ragged=ragged)), Examples.of({"input_ids": TEXTS})
    assert [row.tolist() for row in some.columns["input_ids"]] == TEXTS
    assert some.lengths.tolist() == some.real_positions.tolist() == [3, 5, 4]
    batch, wanted = some.batch([0, 1]), plain.batch([0, 1])
    for name in ("input_ids", "attention_mask"):
        assert torch.equal(batch[name], wanted[name])
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 0], [0, 1, 2, 3, 4]]
    assert batch["y"].tolist() == [0, 1]
    assert some.select([2, 0]).lengths.tolist() == [4, 3]


def test_holes_stay_and_positions_beside_them_count():
    some = Examples.of({"input_ids": [[0, 5, 6, 7], [1, 2, 3, 4]], "attention_mask": [[0, 1, 0, 1], [1, 1, 1, 1]]})
    assert some.batch([0])["attention_mask"].tolist() == [[1, 0, 1]]
    assert some.lengths.tolist() == [3, 4]
    assert some.real_positions.tolist() == [2, 4]
    assert some.select([0]).batch([0])["input_ids"].tolist() == [[5, 6, 7]]


def test_vectors_at_positions_are_cut_and_padded_too():
    some = Examples.of({"x": np.ones((2, 3, 4), np.float32), "attention_mask": [[0, 1, 1], [1, 1, 1]]})
    batch = some.batch([0, 1])
    assert batch["x"].shape == (2, 3, 4)
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert (batch["x"][0, 2] == 0).all()


def test_a_mask_of_other_values_is_refused():
    with pytest.raises(DataError, match="attention_mask of example 1"):
        Examples.of({"input_ids": [[1, 2], [3, 4]], "attention_mask": [[1, 1], [0, -1]]})


def test_one_row_number_selects_one_example() -> None:
    assert Examples.of({"x": np.eye(3)}).select(1).ids.tolist() == [1]


def test_floats_are_cast_in_a_batch_and_whole_numbers_are_not() -> None:
    batch = Examples.of({"x": np.eye(3), "y": np.arange(3)}).batch([0], dtype=torch.float32)
    assert (batch["x"].dtype, batch["y"].dtype) == (torch.float32, torch.int64)
