"""Tables as files: the same rows as .csv, .parquet or .json, by the file's ending."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UsageError

ENDINGS = (".csv", ".parquet", ".json")


def save_table(path: Path, rows: Any) -> None:
    """Write a table: a pandas DataFrame, or a list of one mapping a row (columns that a row lacks are empty there).

    Raises UsageError for another ending.
    """
    import pandas

    if path.suffix not in ENDINGS:
        raise UsageError(f"{path} has no known ending.", f"Name it {', '.join(ENDINGS)}.")
    table = rows if isinstance(rows, pandas.DataFrame) else pandas.DataFrame(list(rows))
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        table.to_csv(path, index=False)
    elif path.suffix == ".parquet":
        table.to_parquet(path, index=False)
    else:
        path.write_text(json.dumps(json.loads(table.to_json(orient="records")), indent=1) + "\n", "utf-8")


def rows_of_lists(entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Entries that each hold lists of lines (the best examples of a query) as one row a line: what the entry says, the
    name of the list, the place in it, and the line's own values.

    >>> rows_of_lists([{"query": 3, "helpful": [{"id": 7, "nats": 0.5}]}])
    [{'query': 3, 'list': 'helpful', 'place': 0, 'id': 7, 'nats': 0.5}]
    """
    rows = []
    for entry in entries:
        known = {name: value for name, value in entry.items() if not isinstance(value, list)}
        for name, lines in entry.items():
            if isinstance(lines, list):
                for place, line in enumerate(lines):
                    plain = {k: v for k, v in line.items() if not isinstance(v, (list, dict))}
                    rows.append({**known, "list": name, "place": place, **plain})
    return rows
