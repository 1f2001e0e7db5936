"""A line on a terminal, lines in a log, nothing when silent."""

from __future__ import annotations

import io

import pytest

from cxrlib import progress
from cxrlib.progress import Progress, track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_terminal_line_is_redrawn_over_itself(clock: list[float]) -> None:
    out = Terminal()
    with Progress(4, "decoding", stream=out) as bar:
        for _ in range(4):
            clock[0] += 0.5
            bar.advance(note="x" * 5 if bar.done == 2 else "")
    drawn = out.getvalue().split("\r")[1:]
    assert drawn[0] == "decoding: 1/4 films, 2.0/s, 0:02 left"
    assert drawn[2].endswith("left, xxxxx")
    assert drawn[-1].rstrip() == "decoding: 4/4 films, 2.0/s, xxxxx, 0:02"
    assert out.getvalue().endswith("\n")


def test_a_shorter_line_leaves_nothing_of_a_longer_one(clock: list[float]) -> None:
    out = Terminal()
    bar = Progress(None, "reading", stream=out)
    for note in ("a long note about this", "short"):
        clock[0] += 1
        bar.advance(note=note)
    first, second = out.getvalue().split("\r")[1:]
    assert len(second) >= len(first)
    assert second.rstrip().endswith("short")


def test_a_terminal_is_drawn_ten_times_a_second_at_most(clock: list[float]) -> None:
    out = Terminal()
    bar = Progress(1000, "decoding", stream=out)
    for _ in range(100):
        clock[0] += 0.01
        bar.advance()
    assert 9 <= out.getvalue().count("\r") <= 10


def test_a_log_gets_whole_lines_every_half_minute(clock: list[float]) -> None:
    out = io.StringIO()
    with Progress(7200, "epoch 1", unit="batches", stream=out) as bar:
        for _ in range(61):
            clock[0] += 1
            bar.advance()
    assert out.getvalue().splitlines() == [
        "epoch 1: 30/7200 batches, 1.0/s, 1:59:30 left",
        "epoch 1: 60/7200 batches, 1.0/s, 1:59:00 left",
        "epoch 1: 61/7200 batches, 1.0/s, 1:58:59 left, 1:01",
    ]


def test_a_short_task_leaves_no_line_in_a_log(clock: list[float]) -> None:
    out = io.StringIO()
    with Progress(3, "decoding", stream=out) as bar:
        bar.advance(3)
    assert out.getvalue() == ""


def test_an_exception_is_not_called_success(clock: list[float]) -> None:
    out = Terminal()

    def fail() -> None:
        with Progress(3, "decoding", stream=out) as bar:
            clock[0] += 1
            bar.advance()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert out.getvalue().rstrip().endswith("(stopped)")


def test_silence(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track(iter("abc"), "reading", shown=False)) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""


def test_without_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress.sys, "stderr", None)
    assert list(track([1, 2], "reading")) == [1, 2]


def test_track_knows_lengths(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    out = Terminal()
    monkeypatch.setattr(progress.sys, "stderr", out)
    for _ in track([1, 2], "reading", unit="files"):
        clock[0] += 1
    assert "reading: 1/2 files" in out.getvalue()
    assert "reading: 2/2 files" in out.getvalue()
