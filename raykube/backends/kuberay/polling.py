"""Looks at one object by a watch, again and again, and asks its Ray head from a thread of its own.

KubeRay shows late what the head says of itself, and Ray tells of no changes; a head that is going away can take seconds
not to answer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from raykube.backends.kubernetes.kubeapi import Object, Stop
from raykube.backends.kubernetes.watching import Watching
from raykube.errors import Failure, Unreachable

_Head = TypeVar("_Head")
_Answer = TypeVar("_Answer")
_EVERY_S = 0.5
#: A waiter looks at its clock so often.
_TICK_S = 0.5
#: An API server or head that has been away for so long is waited for no longer.
GIVE_UP_S = 600.0


def looks(watching: Watching, kind: str) -> Iterator[tuple[list[Object] | None, Unreachable | None]]:
    """Yield what a watch knows and, while the API server is away, why; at each change, and every half second.

    Raises:
        BackendError: the watch is refused, or the server has been away for ten minutes.
    """
    away: Unreachable | None = None
    since = time.monotonic()
    while True:
        found, error = watching.of(kind), watching.error(kind)
        since = since if away else time.monotonic()
        away = error if isinstance(error, Unreachable) else None
        if error and (away is None or time.monotonic() - since > GIVE_UP_S):
            raise error
        yield found, away
        watching.wait(_TICK_S)


def unreachable(error: Unreachable) -> Failure:
    """Return what a status says of an API server that is away."""
    return Failure("ApiServerUnreachable", error.why, next_step=error.next_step, where=error.what)


class Poll(Generic[_Head, _Answer]):
    """What the head says that is asked now.

    Args:
        look: asks a head once.
        unasked: what a head is taken to say until it was asked; what is said where there is none.
        changed: called when a head says something new.
    """

    def __init__(
        self, look: Callable[[_Head], _Answer], unasked: Callable[[_Head | None], _Answer], changed: Callable[[], None]
    ) -> None:
        self._look, self._unasked, self._changed = look, unasked, changed
        self._lock = threading.Lock()
        self._head: _Head | None = None
        self._answer = unasked(None)

    def ask(self, head: _Head | None) -> None:
        """Ask this head from now on."""
        with self._lock:
            if head is not self._head:
                self._head, self._answer = head, self._unasked(head)

    def answer(self) -> tuple[_Answer, _Head | None]:
        """Return what was said last, and by whom."""
        with self._lock:
            return self._answer, self._head

    def run(self, stop: Stop) -> None:
        """Ask until `stop`."""
        while not stop.wait(_EVERY_S):
            self.look()

    def look(self) -> None:
        """Ask once."""
        _, head = self.answer()
        if head is None:
            return
        answer = self._look(head)
        with self._lock:
            if head is not self._head or answer == self._answer:
                return
            self._answer = answer
        self._changed()
