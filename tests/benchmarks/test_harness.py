"""The harness of the benchmarks: paired timing, tables, arguments, saved results. Every script prints its help."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks import harness
from benchmarks.__main__ import main as command
from benchmarks.__main__ import scripts
from benchmarks.harness import Benchmark, Run
from benchmarks.timing import paired
from whence.cache.display.interval import Interval


class Clock:
    """Time that passes only when a side says so."""

    def __init__(self) -> None:
        self.now, self.order = 0.0, ""

    def __call__(self) -> float:
        return self.now

    def side(self, name: str, seconds: list[float]):
        steps: Iterator[float] = iter(seconds)

        def work() -> None:
            self.order += name
            self.now += next(steps)

        return work


@dataclass(frozen=True)
class Shared:
    """Options of several cases.

    Args:
        depth: of all.
    """

    depth: int = 3
    width: int | None = None


@pytest.fixture
def bench() -> Benchmark:
    made = Benchmark("some/example.py", "What it measures.", example="rows --count 3")

    @made.case(quick={"count": 1})
    def rows(run: Run, count: int = 5, rates: tuple[float, ...] = (0.1, 1.0), label: str | None = None) -> None:
        """Rows of a table.

        Args:
            count: how many.
        """
        table = run.table("row", "rate|.2f", title="A table")
        for row in range(count):
            table.row(label or f"row {row}", sum(rates))
        run.claim("there are rows", count > 0)

    @made.case(default=False)
    def slow(run: Run, size: int = 1) -> None:
        """Not by default."""
        run.say(f"size {size}")

    @made.case(quick={"depth": 1}, default=False)
    def deep(run: Run, shared: Shared = Shared(), more: int = 0) -> None:
        """Takes options that are shared."""
        run.say(f"{shared} {more}")

    return made


def test_sides_are_interleaved_in_alternating_order_and_paired_by_round():
    clock = Clock()
    sides = {"a": clock.side("a", [9, 2, 4, 6]), "b": clock.side("b", [9, 1, 1, 2])}
    times = paired(sides, rounds=3, warm=1, clock=clock)
    assert clock.order == "baabbaab"
    assert times.seconds == {"a": [2, 4, 6], "b": [1, 1, 2]}
    assert (times.median("a"), times.best("b")) == (4, 1)
    assert str(times.ratio("a", "b")) == "3.00 [2.00, 4.00]"


def test_a_table_is_markdown_and_formats_its_numbers(capsys):
    run = Run()
    table = run.table("name", "value|.1f", "note")
    table.row("a|b", 1.26, None)
    assert run.lines[1:] == ["| name | value | note |\n|---|---|---|", "| a/b | 1.3 |  |"]
    assert capsys.readouterr().out.endswith("| a/b | 1.3 |  |\n")
    with pytest.raises(ValueError, match="zip"):
        table.row("too", "few")


def test_a_difference_is_above_zero_only_if_its_interval_is():
    run = Run()
    for low, high in ((0.1, 0.3), (-0.1, 0.3), (-0.3, -0.1)):
        run.claim_above(f"{low}", Interval((low + high) / 2, low, high), "+.1f", "sd")
    assert list(run.claims.values()) == [True, None, False]
    assert run.lines[1] == "    +0.2 [+0.1, +0.3] sd"


def test_parameters_are_options_and_quick_holds_the_smallest_setting(bench, capsys, tmp_path):
    bench.main(["rows", "--quick"])
    assert "row 0 | 1.10" in (out := capsys.readouterr().out)
    assert "row 1" not in out
    file = tmp_path / "found.json"
    bench.main(["--quick", "--count", "2", "--rates", "0.5", "--label", "x", "--json", str(file)])
    found = json.loads(file.read_text())
    assert found["tables"] == [{"title": "A table", "columns": ["row", "rate"], "rows": [["x", 0.5], ["x", 0.5]]}]
    assert found["claims"] == {"there are rows": True}


def test_fields_of_a_dataclass_are_options_that_cases_share(bench, capsys):
    bench.main(["deep", "--quick", "--width", "5", "--more", "2"])
    assert "Shared(depth=1, width=5) 2" in capsys.readouterr().out
    bench.main(["deep", "--depth", "4"])
    assert "Shared(depth=4, width=None) 0" in capsys.readouterr().out
    assert "of all (default: 3)" in bench.parser().format_help()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["nothing"], "There is no case 'nothing'"), (["--size", "2"], "--size is no option of rows")],
)
def test_bad_arguments_are_refused_with_what_there_is(bench, capsys, arguments, message):
    with pytest.raises(SystemExit):
        bench.main(arguments)
    assert message in capsys.readouterr().err


def test_only_selects_rows_by_name_and_refuses_to_select_none():
    names = ["Whence EK-FAC", "Whence CG", "peer CG"]
    assert Run(only=("Whence *",)).selected(names) == names[:2]
    assert Run().selected(names) == names
    with pytest.raises(SystemExit, match="Choose among: Whence EK-FAC"):
        Run(only=("other",)).selected(names)


def test_a_saved_run_replaces_the_run_of_the_same_command_only(bench, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    file = tmp_path / "example.md"
    bench.main(["rows", "--count", "1", "--save", "--store", "here"])
    bench.main(["slow", "--save"])
    file.write_text(file.read_text() + "\nWritten by hand.\n")
    bench.main(["rows", "--save", "--count", "1", "--store", "there"])
    text = file.read_text()
    assert text.startswith("# example\n")
    assert text.count("python -m benchmarks.example rows --count 1\n") == 1
    assert text.count("| row 0 | 1.10 |") == 1
    assert text.count("size 1") == 1
    assert text.endswith("\nWritten by hand.\n")
    assert "here" not in text.replace("there are rows", "")


def test_a_side_runs_with_its_folder(bench, tmp_path):
    bench.side("peer", lambda folder: Path(folder, "answer").write_text("42"))
    bench.main(["--side", "peer", "--out", str(tmp_path)])
    assert (tmp_path / "answer").read_text() == "42"


@pytest.mark.parametrize("name", scripts())
def test_every_script_prints_its_help_with_an_example(name, capsys):
    module = __import__(f"benchmarks.{name}", fromlist=["bench"])
    with pytest.raises(SystemExit) as ended:
        module.bench.main(["--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert f"python -m benchmarks.{name} {module.bench.example}" in out
    for case in module.bench.cases.values():
        assert case.name in out


def test_the_scripts_are_listed_and_an_unknown_one_is_refused(capsys):
    assert command(["--list"]) == 0
    listed = capsys.readouterr().out
    assert [name for name in scripts() if name not in listed] == []
    assert command(["nothing", "--quick"]) == 2
    assert "There is no benchmark 'nothing'." in capsys.readouterr().err
