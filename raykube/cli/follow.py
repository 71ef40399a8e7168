"""Following a run on a terminal: its log, and below the log one live line with phase, metrics and time.

In a pipe there is no live line; each change of state is a plain line on stderr instead.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from raykube.backends import lines, sources
from raykube.errors import BackendError
from raykube.handles import Run, Status


class Screen:
    """The output for log lines and progress; `write` prints a line of the log, `tell` a line of progress."""

    def __init__(self, write: Callable[[str], None], tell: Callable[[str], None]) -> None:
        self.write = write
        self.tell = tell
        self._told = ""

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, *_: object) -> None:
        """Leave nothing behind."""

    def show(self, status: Status) -> None:
        """Print each new state, attempt or detail once; metrics are left out, because they are in the log."""
        stage = f"{status.state} {status.attempt} {status.detail}"
        if stage != self._told and not status.is_terminal:
            self._told = stage
            self.tell(lines.status_line(status, time.time()))


class LiveScreen(Screen):
    """The output for a terminal: the log scrolls, and the last line is redrawn."""

    def __init__(self, write: Callable[[str], None], tell: Callable[[str], None]) -> None:
        from rich.console import Console
        from rich.live import Live

        super().__init__(write, tell)
        self._status: Status | None = None
        self._console = Console(stderr=True, highlight=False, markup=False)
        self._live = Live(
            console=self._console,
            get_renderable=self._line,
            refresh_per_second=4,
            transient=True,
            redirect_stdout=False,
        )
        if sys.stdout.isatty():
            # The live display must print log lines, to move its own line down; a pipe gets plain lines.
            self.write = lambda line: self._console.out(line, highlight=False)

    def __enter__(self) -> None:
        self._live.start()

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, status: Status) -> None:
        """Redraw the line with this status."""
        self._status = status

    def _line(self) -> str:
        return lines.status_line(self._status, time.time()) if self._status else ""


def follow(run: Run, screen: Screen) -> BaseException | None:
    """Print the log of a run until it has ended; return what `wait` raised, if anything.

    A log that cannot be read, for lack of a right or because it was lost with its node, does not decide how the run
    ends: print a note, and go on waiting for the end.
    """
    with screen:
        waiting = _watched(run, screen)
        try:
            _print(run, screen, sources.DRIVER)
        except BackendError as error:
            screen.tell(f"note: the log could not be read to its end: {error}")
        return waiting.exception()


def follow_log(run: Run, screen: Screen, source: str) -> None:
    """Print a log of a run until it has ended; raise if the log cannot be read, unlike :func:`follow`."""
    with screen:
        waiting = _watched(run, screen)
        _print(run, screen, source)
        waiting.exception()


def _print(run: Run, screen: Screen, source: str) -> None:
    for line in run.logs(follow=True, source=source):
        screen.write(line)


def _watched(run: Run, screen: Screen) -> Future[Run]:
    """Show a run's state from a thread of its own, so that a job which prints nothing still shows its phase."""
    waiting: Future[Run] = Future()

    def watch() -> None:
        try:
            waiting.set_result(run.wait(on_event=lambda event: screen.show(event.status)))
        except BaseException as error:  # noqa: BLE001 - raised again by whoever asks the future
            waiting.set_exception(error)

    threading.Thread(target=watch, daemon=True).start()
    return waiting
