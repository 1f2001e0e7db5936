"""One line on stderr that says how far a long task is."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from types import TracebackType
from typing import TextIO, TypeVar, final

T = TypeVar("T")

_TERMINAL_EVERY = 0.1  # seconds between two drawings on a terminal
_LOG_EVERY = 30.0  # seconds between two lines in a log


@final
class Progress:
    """A line that is redrawn on a terminal, and written anew every half minute where stderr is a file.

    Args:
        total: How many steps there are; `None` if nobody knows.
        label: What is being done, such as `"decoding"`.
        unit: What one step is, in the plural.
        shown: `False` for silence.
        stream: Where to write; `None` for `sys.stderr`.

    Example:
        >>> with Progress(2, "decoding", shown=False) as bar:
        ...     bar.advance()
        ...     bar.advance(note="nearly there")
        >>> bar.done
        2
    """

    def __init__(
        self, total: int | None, label: str, *, unit: str = "films", shown: bool = True, stream: TextIO | None = None
    ) -> None:
        self.total, self.label, self.unit, self.done, self.note = total, label, unit, 0, ""
        self._stream = stream if stream is not None else sys.stderr
        self._shown = shown and self._stream is not None  # pythonw has no stderr
        self._terminal = self._shown and self._stream.isatty()
        self._start = self._last = time.monotonic()
        self._width = 0

    def advance(self, steps: int = 1, *, note: str = "") -> None:
        """Count steps that are done, and redraw the line if it is due.

        Args:
            steps: How many more are done.
            note: What to say behind the count, such as a loss; kept until the next one.
        """
        self.done += steps
        self.note = note or self.note
        now = time.monotonic()
        if self._shown and now - self._last >= (_TERMINAL_EVERY if self._terminal else _LOG_EVERY):
            self._last = now
            self._write(self.line(now - self._start), end="" if self._terminal else "\n")

    def line(self, seconds: float) -> str:
        """Say how far the task is.

        Args:
            seconds: Time since it began.

        Returns:
            One line, without its end.

        Example:
            >>> bar = Progress(200, "decoding", shown=False)
            >>> bar.advance(50)
            >>> bar.line(10.0)
            'decoding: 50/200 films, 5.0/s, 0:30 left'
        """
        rate = self.done / seconds if seconds > 0 else 0.0
        total = "" if self.total is None else f"/{self.total}"
        line = f"{self.label}: {self.done}{total} {self.unit}, {rate:.{0 if rate >= 100 else 1}f}/s"
        if self.total is not None and 0 < self.done < self.total and rate > 0:
            line += f", {_clock((self.total - self.done) / rate)} left"
        return line + (f", {self.note}" if self.note else "")

    def _write(self, line: str, end: str) -> None:
        padding = " " * max(0, self._width - len(line))
        self._width = len(line)
        self._stream.write(f"\r{line}{padding}{end}" if self._terminal else line + end)
        self._stream.flush()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        seconds = time.monotonic() - self._start
        if self._shown and (
            (self._terminal and self._width) or seconds >= _LOG_EVERY
        ):  # a task that was over at once leaves no line
            self._write(f"{self.line(seconds)}, {_clock(seconds)}{'' if kind is None else ' (stopped)'}", end="\n")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def track(
    items: Iterable[T], label: str, *, total: int | None = None, unit: str = "films", shown: bool = True
) -> Iterator[T]:
    """Pass items on, and show how far they are.

    Args:
        items: What is worked on.
        label: What is being done.
        total: How many there are; `None` to ask `items` for its length.
        unit: What an item is, in the plural.
        shown: `False` for silence.

    Yields:
        The items, in order.

    Example:
        >>> list(track("abc", "reading", shown=False))
        ['a', 'b', 'c']
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Progress(total, label, unit=unit, shown=shown) as bar:
        for item in items:
            yield item
            bar.advance()
