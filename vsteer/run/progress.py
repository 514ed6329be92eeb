"""What a person sees of a run for hours: the phase, rows, speed, prefix hits, failures, time left.

A terminal shows a line that is redrawn; a file gets a plain line a minute.
"""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from vsteer.protocol import EngineStanding
from vsteer.run.loop import Counts
from vsteer.terminal import harmless

PLAIN_SECONDS = 60.0
WINDOW_SECONDS = 120.0


@dataclass(frozen=True)
class _Moment:
    at: float
    rows: int
    tokens: int


class RunProgress:
    """Draws phases and rows on stderr, or on another console; one that is quiet gets warnings alone."""

    def __init__(self, total: int, standing: int, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._total, self._standing = total, standing
        self._recent: deque[_Moment] = deque()
        self._began = self._printed = 0.0
        self._rows_before = 0
        # how each of several engines fares
        self.engines: Callable[[], list[EngineStanding]] = list
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> RunProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_bar()

    def phase(self, text: str) -> None:
        self._end_bar()
        self.say(f"... {text}")

    def warn(self, text: str) -> None:
        if self.console.quiet:
            warnings.warn(text, stacklevel=2)
        else:
            self.say(f"warning: {text}")

    def say(self, text: str) -> None:
        self.console.print(harmless(text), highlight=False, markup=False, soft_wrap=True)

    def counting(self, what: str, total: int) -> None:
        """Begin a phase whose steps are counted by `step`."""
        self._end_bar()
        if not self.console.is_terminal:
            self.say(f"... {what}: {total}")
            return
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            console=self.console,
        )
        self._task = self._bar.add_task(escape(harmless(what)), total=total)
        self._bar.start()

    def step(self) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task)

    def rows_begin(self, counts: Counts) -> None:
        """The engine is there: rows from now on count for the speed."""
        self._end_bar()
        self._rows_before = counts.rows
        self._began = self._printed = time.monotonic()
        self._recent.clear()
        if self.console.is_terminal:
            self._bar = Progress(TextColumn("{task.description}"), console=self.console)
            self._task = self._bar.add_task("", total=None)
            self._bar.start()

    def rows(self, counts: Counts, waiting: int) -> None:
        now = time.monotonic()
        if self._recent and now - self._recent[-1].at < 0.2:
            return
        computed = counts.prompt_tokens - counts.cached_tokens + counts.completion_tokens
        self._recent.append(_Moment(now, counts.rows, computed))
        while now - self._recent[0].at > WINDOW_SECONDS:
            self._recent.popleft()
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=self.line(counts, waiting, now))
        elif now - self._printed >= PLAIN_SECONDS:
            self._printed = now
            self.say(self.line(counts, waiting, now))

    def line(self, counts: Counts, waiting: int, now: float) -> str:
        """Everything in one line, such as `1,200 of 9,000 rows (13%) | 61 rows/s | ...`."""
        standing = self._standing + counts.rows
        left = self._total - standing
        first = self._recent[0]
        lately = now - first.at
        speeds = []
        if lately > 1:
            speeds.append((counts.rows - first.rows) / lately)
        if now - self._began > 1:
            speeds.append((counts.rows - self._rows_before) / (now - self._began))
        parts = [f"{standing:,} of {self._total:,} rows ({standing / max(1, self._total):.0%})"]
        if speeds and lately > 1:
            computed = counts.prompt_tokens - counts.cached_tokens + counts.completion_tokens
            parts.append(f"{speeds[0]:.1f} rows/s")
            parts.append(f"{(computed - first.tokens) / lately:,.0f} tokens/s")
        if counts.prompt_tokens:
            parts.append(f"{counts.cached_tokens / counts.prompt_tokens:.0%} of prompt tokens shared")
        parts.append(f"{counts.failed:,} failed")
        if speeds and min(speeds) > 0 and left:
            low, high = (duration(left / speed) for speed in (max(speeds), min(speeds)))
            parts.append(f"{low} left" if low == high else f"{low} to {high} left")
        parts.append(f"{waiting:,} under way")
        if engines := self.engines():
            parts.append(f"{sum(engine.state == 'up' for engine in engines)} engines")
        return " | ".join(parts)

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._task = None


def duration(seconds: float) -> str:
    """A time as a person would give it: 40 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
