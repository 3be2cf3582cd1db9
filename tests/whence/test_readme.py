"""What the README says can be pasted works when pasted."""

import os
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from whence import cli, jobs
from whence.cache.jobs.cluster import slurm_settings
from whence.rooms import rooms

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_runs(number: int, quick: Path) -> None:
    exec(compile(blocks("python")[number], f"README.md, python block {number}", "exec"), {})
    assert number > 0 or (quick / "out" / "influence.html").stat().st_size > 10_000


def test_commands_exist() -> None:
    known = rooms()
    for line in "\n".join(blocks("sh")).splitlines():
        words = shlex.split(line, comments=True)
        if words and words[0] == "whence" and not words[1].startswith("-"):
            room = known[words[1]]
            assert room.single or words[2] in room.commands, line
        elif words:
            assert words[0] in ("make", "whence"), line


def test_the_map_of_commands_is_whole() -> None:
    lines = {line.split()[1]: line for line in blocks("text")[0].splitlines()}
    assert set(lines) == set(rooms())
    for room in rooms().values():
        assert room.single or lines[room.name].split(maxsplit=2)[2].split(" | ") == list(room.commands)


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`?make (\w+)`?", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_job_is_one(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(blocks("toml")[0])
    assert tomllib.loads(blocks("toml")[0])["command"] == jobs.read_job(tmp_path / "job.toml")[0].command


def test_cluster_page(tmp_path: Path) -> None:
    """Its job is one, and its SLURM file is what dask-jobqueue takes."""
    page = (ROOT / "docs" / "cluster.md").read_text("utf-8")
    job, *_, slurm = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "job.toml").write_text(job)
    (tmp_path / "slurm.toml").write_text(slurm)
    assert jobs.read_job(tmp_path / "job.toml")[0].command == "attrib score"
    assert slurm_settings(str(tmp_path / "slurm.toml"))[0] == 16


def test_picture_and_links_are_there() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_files_the_text_names_are_there() -> None:
    for name in re.findall(r"`([a-z_]+(?:/[a-z_]+)*/?(?:\.py)?)`", README):
        if "/" in name and not name.startswith("out/"):
            assert (ROOT / name).exists(), name


def test_version_prints(capsys) -> None:
    assert cli.main(["--version"]) == 0
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", capsys.readouterr().out)
    assert os.environ["HF_HUB_OFFLINE"] == "1"
