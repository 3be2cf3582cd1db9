"""Jobs from TOML: one parser for file and command line, and nothing runs before all of it is checked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro

from whence import cli, jobs
from whence.cache import UsageError
from whence.commands.demo import Demo
from whence.options import Signed


@dataclass(frozen=True)
class Inner:
    value: float = 0.1
    rule: Literal["relative", "absolute"] = "relative"


@dataclass(frozen=True)
class Work:
    """Works."""

    name: tyro.conf.Positional[str]
    sites: tuple[str, ...] = ("*",)
    damping: Inner = Inner()
    fast: bool = False
    careful: bool = True
    limit: Annotated[int, Signed] | None = None

    def run(self) -> None:
        print("ran", self.name)


@pytest.fixture
def work(monkeypatch) -> None:
    real = jobs.find
    monkeypatch.setattr(jobs, "find", lambda name, where: Work if name == "work" else real(name, where))


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_file_is_the_dataclass(tmp_path: Path) -> None:
    job = write(tmp_path / "job.toml", 'command = "demo"\nout = "x.html"\nquiet = true\n')
    assert jobs.read_job(job) == [jobs.Step("demo", Demo(Path("x.html"), quiet=True))]


def test_the_former_key_of_an_option_still_works(tmp_path: Path) -> None:
    job = write(tmp_path / "job.toml", 'command = "demo"\nroot = "elsewhere"\n')
    assert jobs.read_job(job) == [jobs.Step("demo", Demo(store="elsewhere"))]


@pytest.mark.usefixtures("work")
def test_every_kind_of_value(tmp_path: Path) -> None:
    text = """
        command = "work"
        name = "odd name"
        sites = ["a.*", "b"]
        fast = true
        careful = false
        limit = -3
        damping = {value = 1e-8, rule = "absolute"}
    """
    (step,) = jobs.read_job(write(tmp_path / "job.toml", text))
    assert step.work == Work("odd name", ("a.*", "b"), Inner(1e-8, "absolute"), True, False, -3)


@pytest.mark.usefixtures("work")
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('command = "demo"\nquite = true', "Did you mean 'quiet'"),
        ('command = "dmo"', "Did you mean 'demo'"),
        ("out = 'x'", "no `command`"),
        ('command = "work"\nname = "a"\nlimit = "many"', "limit"),
        ('command = "work"', "step 1|name|NAME|STR"),
        ('command = "work"\nname = "a"\ndamping = {rule = "none"}', "rule"),
        ('command = "work"\nname = "a"\ndamping = {valu = 1}', "Did you mean 'value'"),
        ('command = "run"\njob = "x"', "no command 'run'"),
        ('quiet = true\n[[step]]\ncommand = "demo"', "outside"),
        ("command = ", "not TOML"),
    ],
)
def test_what_is_wrong_is_named(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        jobs.read_job(write(tmp_path / "job.toml", text))


@pytest.mark.usefixtures("work")
def test_nothing_runs_before_all_is_checked(tmp_path: Path, capsys) -> None:
    steps = '[[step]]\ncommand = "work"\nname = "first"\n[[step]]\ncommand = "work"\nnam = "second"\n'
    job = write(tmp_path / "job.toml", steps)
    assert cli.main(["run", str(job)]) == 2
    captured = capsys.readouterr()
    assert "ran" not in captured.out
    assert "step 2" in captured.err
    write(job, steps.replace("nam =", "name ="))
    assert cli.main(["run", str(job)]) == 0
    said = capsys.readouterr().out
    assert said.index("2. whence work") < said.index("ran first") < said.index("ran second")
    assert cli.main(["run", str(job), "--dry-run"]) == 0
    assert "ran" not in capsys.readouterr().out


HOSTILE = {
    "huge integer": "seed = " + "9" * 30,
    "thousands of digits": "seed = " + "9" * 5000,
    "deep nesting": "sites = " + "[" * 5000 + "]" * 5000,
    "a table for a list": "sites = {a = 1}",
    "a list in a list": 'sites = [["a"]]',
    "another option in a list": 'sites = ["a", "--store", "/x"]',
    "a negative damping": "damping = -1.0",
    "a damping that is no number": "damping = nan",
    "an infinite damping": "damping = inf",
    "no positions": "positions = 0",
    "a negative memory": 'memory = "-4GB"',
    "a negative number of bytes": "memory = -5",
    "no memory": "memory = 0",
    "no workers": 'cluster = "local:0"',
    "an unknown cluster": 'cluster = "cloud"',
    "an unknown device": 'device = "gpu"',
    "a method that does not exist": 'method = "ekfak"',
    "a setting that does not exist": 'set = ["rnak=3"]',
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_value_that_cannot_be_right_is_wrong_usage_at_dry_run(text: str, tmp_path: Path, capsys) -> None:
    job = write(tmp_path / "job.toml", f'command = "attrib score"\n{text}\n')
    assert cli.main(["run", str(job), "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert "job.toml" in said
    assert text.partition(" ")[0] in said or len(text) > 1000  # a file that is not TOML has no keys


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin-1"])
def test_a_job_in_another_encoding_is_wrong_usage(encoding: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "job.toml").write_bytes('command = "demo"\n# caf\xe9\n'.encode(encoding))
    assert cli.main(["run", str(tmp_path / "job.toml"), "--dry-run"]) == 2
    assert "UTF-8" in capsys.readouterr().err


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_bytes(b'\xef\xbb\xbfcommand = "demo"\r\nquiet = true\r\n')
    assert jobs.read_job(tmp_path / "job.toml") == [jobs.Step("demo", Demo(quiet=True))]


def test_sound_values_are_taken(tmp_path: Path) -> None:
    text = 'memory = 4000000000\ndamping = 0.0\nsites = ["a-*"]\nprompt = "- a"\ncompletion = " b"\ncluster = "local:2"'
    (step,) = jobs.read_job(write(tmp_path / "job.toml", f'command = "attrib score"\n{text}\n'))
    assert (step.work.memory, step.work.prompt, step.work.sites) == ("4000000000", "- a", ("a-*",))
