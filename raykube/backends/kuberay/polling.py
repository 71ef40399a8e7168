"""Follows one object with a watch, and asks its Ray head again and again in a separate thread.

The head is asked because KubeRay shows its state late, and again and again because Ray does not announce changes. The
thread is separate because a request to a head that is going away can take seconds to fail.
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
#: Seconds after which something is yielded even without a change, so that a waiter can check its deadline.
_TICK_S = 0.5
#: Seconds after which an API server or head that is away is no longer waited for.
GIVE_UP_S = 600.0


def looks(watching: Watching, kind: str) -> Iterator[tuple[list[Object] | None, Unreachable | None]]:
    """Yield what a watch knows and, while the API server is away, the error; at each change and every half second.

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
    """Return the failure that a status shows while the API server is away."""
    return Failure("ApiServerUnreachable", error.why, next_step=error.next_step, where=error.what)


class Poll(Generic[_Head, _Answer]):
    """The latest answer of the head that is asked at present.

    Args:
        look: asks a head once.
        unasked: returns the answer to assume for a head that was not asked yet, and for no head (None).
        changed: called when a head's answer changes.
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
        """Return the latest answer, and the head that it is from."""
        with self._lock:
            return self._answer, self._head

    def run(self, stop: Stop) -> None:
        """Ask every half second until `stop` is set."""
        while not stop.wait(_EVERY_S):
            self.look()

    def look(self) -> None:
        """Ask the head once, if there is one."""
        _, head = self.answer()
        if head is None:
            return
        answer = self._look(head)
        with self._lock:
            if head is not self._head or answer == self._answer:
                return
            self._answer = answer
        self._changed()
