"""The README: its code and commands run, its map and tables are complete, its links and files exist."""

import ast
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from whence import cli, jobs
from whence.cache.jobs.cluster import slurm_settings
from whence.packages import command_groups

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("number", range(len(blocks("python"))))
@pytest.mark.filterwarnings("ignore:p95")  # sixteen models show little, and the evaluation says so
def test_python_runs(number: int, quick: Path) -> None:
    exec(compile(blocks("python")[number], f"README.md, python block {number}", "exec"), {})


def test_it_is_short() -> None:
    """Under 200 lines; the first example has at most ten, and passes no two equal arguments."""
    assert len(README.splitlines()) < 200
    first = blocks("python")[0]
    assert len(first.splitlines()) <= 10
    given = [ast.unparse(a) for c in ast.walk(ast.parse(first)) if isinstance(c, ast.Call) for a in call_arguments(c)]
    assert "trained" in given
    assert [name for name in set(given) if given.count(name) > 1 and name in ("model", "store", "task")] == []


def call_arguments(call: ast.Call) -> list[ast.expr]:
    return [*call.args, *(keyword.value for keyword in call.keywords)]


def test_commands_exist() -> None:
    known = command_groups()
    checked = 0
    for line in "\n".join(blocks("sh")).splitlines():
        words = shlex.split(line, comments=True)
        if words and words[0] == "whence" and not words[1].startswith("-"):
            package = known[words[1]]
            assert package.single or words[2] in package.commands, line
            checked += 1
        elif words:
            assert words[0] in ("make", "whence"), line
    assert checked >= 3


def test_options_in_the_text_exist() -> None:
    """`whence attrib index --model M`, in code spans and in blocks: the command and each option are there."""
    spans = re.findall(r"`(whence [a-z]+ [^`]*--[^`]*)`", README)
    spans += re.findall(r"^(whence [a-z]+ [a-z]+ [^#\n]*--[^#\n]*)", "\n".join(blocks("sh")), re.MULTILINE)
    assert len(spans) > 4
    for span in spans:
        words = span.split()
        command = command_groups()[words[1]].load()[words[2]]
        for option in (word[2:].replace("-", "_") for word in words if word.startswith("--")):
            assert option in command.__dataclass_fields__, span


def test_the_map_of_commands_is_complete() -> None:
    lines = {line.split()[1]: line for line in blocks("text")[0].splitlines()}
    assert set(lines) == set(command_groups())
    for package in command_groups().values():
        assert package.single or lines[package.name].split(maxsplit=2)[2].split(" | ") == list(package.commands)


def test_the_map_of_the_house_is_complete() -> None:
    """Every folder of code at the top level, and every part of the cache, has a row."""
    rows = set(re.findall(r"`([a-z_]+(?:/[a-z_]+)*)/`", README))
    tracked = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    parts = {f"cache/{path.parent.name}" for path in ROOT.glob("cache/*/__init__.py")}
    assert parts
    assert (tracked - {"cache"}) | parts | {"docs", "notebooks"} <= rows


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"`?make (\w+)`?", README))
    assert {"demo", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_job_is_one(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(blocks("toml")[0])
    assert tomllib.loads(blocks("toml")[0])["command"] == jobs.read_job(tmp_path / "job.toml")[0].command


def test_cluster_page(tmp_path: Path) -> None:
    """Its job is one, also on a cluster, and its SLURM file is what dask-jobqueue takes."""
    page = (ROOT / "docs" / "cluster.md").read_text("utf-8")
    job, _, where, slurm = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "job.toml").write_text(job)
    (tmp_path / "cluster.toml").write_text(job.replace('cluster = "inline"\n', where))
    (tmp_path / "slurm.toml").write_text(slurm)
    assert jobs.read_job(tmp_path / "job.toml")[0].command == "attrib score"
    assert jobs.read_job(tmp_path / "cluster.toml")[0].work.cluster == "slurm:slurm.toml"
    assert slurm_settings(str(tmp_path / "slurm.toml"))[0] == 16


def test_picture_and_links_are_there() -> None:
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert "docs/report.png" in links
    assert len(links) > 8
    for target in links:
        assert target.startswith("http") or (ROOT / target.partition("#")[0]).exists(), target


def test_files_the_text_names_are_there() -> None:
    names = re.findall(r"`((?:[a-z_]+/)+(?:[a-z_]+(?:\.py)?)?)`", README)
    assert {"cache/store/", "attrib/methods/diagonal.py"} <= set(names)
    for name in names:
        assert (ROOT / name).exists(), name


def test_version_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", capsys.readouterr().out)
