"""What a long loop says where nobody watches: whole lines, nothing drawn over, nothing for short ones."""

import sys

import pytest

from whence.cache.jobs.progress import progress, say


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WHENCE_QUIET")
    monkeypatch.setattr(sys.modules["whence.cache.jobs.progress"], "LOG_SECONDS", 0.0)


@pytest.mark.usefixtures("logged")
def test_a_log_gets_lines(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in progress(range(2), desc="outer"):
        list(progress(range(3), desc="inner", unit="step"))
        say("said")
    lines = capsys.readouterr().err.splitlines()
    assert lines.count("said") == 2
    assert any(line.startswith("inner:") and "/3" in line for line in lines)
    assert not any(mark in line for line in lines for mark in ("\r", "\x1b"))


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(range(3), quiet=True)) == [0, 1, 2]
    assert capsys.readouterr().err == ""
