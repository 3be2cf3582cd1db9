"""Tables as files: the same rows in every format."""

from pathlib import Path

import pandas
import pytest

from whence.cache import UsageError
from whence.cache.display.files import ENDINGS, rows_of_lists, save_table

ENTRIES = [
    {
        "query": 1,
        "helpful": [{"id": 5, "nats": 0.25, "title": "a"}, {"id": 6, "nats": 0.125, "title": "b"}],
        "harmful": [],
    },
    {"query": 2, "helpful": [], "harmful": [{"id": 7, "nats": -1.0, "title": "c, d"}]},
]


@pytest.mark.parametrize("ending", ENDINGS)
def test_every_format_has_the_same_rows(ending: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / f"lists{ending}"
    save_table(path, rows_of_lists(ENTRIES))
    readers = {".csv": pandas.read_csv, ".parquet": pandas.read_parquet, ".json": pandas.read_json}
    found = readers[ending](path)
    assert found["id"].tolist() == [5, 6, 7]
    assert found["nats"].tolist() == [0.25, 0.125, -1.0]
    assert found["list"].tolist() == ["helpful", "helpful", "harmful"]
    assert found["title"].tolist() == ["a", "b", "c, d"]


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no known ending"):
        save_table(tmp_path / "lists.xlsx", [{"a": 1}])
