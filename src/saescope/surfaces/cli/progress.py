"""What long work says on stderr: what it will do, about how long, and how far it is."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event, Lock, Thread

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from saescope.jobs.reporter import Advance
from saescope.sources.machine import show_seconds
from saescope.surfaces.cli.consoles import SafeConsole, escape
from saescope.surfaces.visible import visible

# Work that takes less says nothing; longer work says something at most this often.
QUIET_SECONDS = 10.0
# An estimate needs at least this much of measured work: a first step warms up.
SAMPLE_SECONDS, SAMPLE_STEPS = 1.0, 2
Say = Callable[[str], None]


@dataclass
class ProgressLog:
    """Turns amounts of finished work into lines: one announcement, then one per ten seconds.

    The announcement comes as soon as a measured sample says that the work takes over ten seconds.
    Speed is measured from the first call of `advance` on, so what was resumed does not count.
    """

    label: str
    unit: str
    task: str
    say: Say
    lines: bool = True
    "Whether to say how far the work is; a bar shows that better."

    clock: Callable[[], float] = time.monotonic
    _started: float = 0.0
    _last_said: float = 0.0
    _announced: bool = False
    _start: tuple[int, float] | None = None
    "Amount of work and time of the first `advance`."

    _steps: int = 0
    _done: int = 0
    _total: int = 0
    _lock: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        """Start the clock."""
        self._started = self._last_said = self.clock()

    def advance(self, done: int, total: int) -> None:
        """Note that this much is done."""
        with self._lock:
            if self._start is None:
                self._start = (done, self.clock())
            else:
                self._steps += 1
            self._done, self._total = done, total
        self.tick()

    def tick(self) -> None:
        """Say what is due, also if no work was finished since the last call."""
        with self._lock:
            now = self.clock()
            text = self._due(now)
            if text is None:
                return
            self._last_said = now
            self.say(text)

    def _due(self, now: float) -> str | None:
        """Return the line that is due, or None."""
        seconds_left = self._seconds_left(now)
        elapsed = now - self._started
        if not self._announced:
            whole = None if seconds_left is None else elapsed + seconds_left
            if elapsed < QUIET_SECONDS and (whole is None or whole < QUIET_SECONDS):
                return None
            self._announced = True
            return self._announcement(seconds_left)
        if not self.lines or now - self._last_said < QUIET_SECONDS:
            return None
        if not self._total:
            return f"{self.label}: {_whole_seconds(elapsed)} so far"
        left = "" if seconds_left is None else f", {_whole_seconds(seconds_left)} left"
        return f"{self.label}: {self._amount()}{left}"

    def _announcement(self, seconds_left: float | None) -> str:
        """Say what the work is and about how long it takes."""
        parts = [part for part in (self.task, self._size()) if part]
        what = f"{self.label}: {', '.join(parts)}" if parts else self.label
        if seconds_left is None:
            return f"{what}; takes over {QUIET_SECONDS:g} s"
        first = "" if self._start is None else f"{self._done - self._start[0]:,} {self.unit}"
        return f"{what}; about {_whole_seconds(seconds_left)} left, measured on the first {first}"

    def _size(self) -> str:
        return f"{self._total:,} {self.unit}" if self._total and self.unit != "%" else ""

    def _amount(self) -> str:
        return f"{self._done:,}/{self._total:,} {self.unit}"

    def _seconds_left(self, now: float) -> float | None:
        """Return the seconds that the rest takes at the speed so far; None if it is unknown."""
        if self._start is None:
            return None
        start, started = self._start
        large = now - started >= SAMPLE_SECONDS and self._steps >= SAMPLE_STEPS
        if self._done <= start or not (large or now - self._started >= QUIET_SECONDS):
            return None
        return (now - started) * (self._total - self._done) / (self._done - start)


@contextmanager
def show_progress(label: str, unit: str, task: str, say: Say) -> Iterator[Advance]:
    """Show a bar on a terminal, which disappears when the work is done, and lines elsewhere."""
    console = SafeConsole(stderr=True)
    if console.is_terminal:
        columns = (
            TextColumn(escape(label)),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(escape(unit)),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            row = bar.add_task(visible(label), total=None)
            log = ProgressLog(label, unit, task, say=_above(bar), lines=False)

            def advance(done: int, total: int) -> None:
                bar.update(row, completed=done, total=total)
                log.advance(done, total)

            yield advance
        return
    log = ProgressLog(label, unit, task, say)
    with _ticking(log):
        yield log.advance


def _above(bar: Progress) -> Say:
    """Print lines above a bar."""
    return lambda text: bar.console.print(visible(text), style="dim", markup=False)


@contextmanager
def _ticking(log: ProgressLog) -> Iterator[None]:
    """Call `tick` every second, also while one step takes long."""
    ended = Event()

    def watch() -> None:
        while not ended.wait(1.0):
            log.tick()

    thread = Thread(target=watch, name="saescope-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _whole_seconds(seconds: float) -> str:
    """Format a duration; an estimate is no better than to the second."""
    return show_seconds(float(max(1, round(seconds))))
