"""Current copies of Kubernetes objects, kept by watches: one list each, then only what changes.

After a dropped connection or a restart of the API server, a watch goes on where it stopped. It lists again only after
an error in the watch itself, or when the server does not know its version (410). A server that has just started answers
before it has read all its roles, and so refuses what it allows. So a refusal ends a watch only when it is the first
answer, or lasts.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from raykube.backends.kubernetes.kubeapi import Kube, Object, Stop
from raykube.backends.kubernetes.refusals import UnknownKind, VersionGone
from raykube.errors import BackendError, Forbidden, NotFound, Unreachable

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0
#: How long a starting server may refuse what it allowed before; one on a busy machine took 5 s.
STARTING_S = 30.0
_REFUSED = (Forbidden, NotFound, UnknownKind)
_Answer = TypeVar("_Answer")


class Watching:
    """Watches that run until :meth:`close`. Read what they know with :meth:`of`, wait with :meth:`wait`."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        self._stop = Stop()
        self._changed = threading.Event()
        self._watched: dict[str, _WatchedKind] = {}

    def touch(self) -> None:
        """Wake whoever waits: something that is not watched has changed."""
        self._changed.set()

    def close(self) -> None:
        """End all watches, and their connections."""
        self._stop.set()

    def watch(self, kind: str, *, key: str = "", **selectors: str) -> None:
        """Watch a kind from now on, under a key (by default the kind); new selectors replace earlier ones."""
        key = key or kind
        known = self._watched.get(key)
        if known and known.selectors == selectors:
            return
        if known:
            known.stop.set()
        self._watched[key] = watched = _WatchedKind(self._kube, kind, selectors, self._changed.set)
        threading.Thread(target=watched.run, args=(self._stop,), daemon=True, name=f"raykube-watch-{key}").start()

    def of(self, key: str) -> list[Object] | None:
        """Return the objects under a key; None until they have been listed once."""
        return self._watched[key].objects() if key in self._watched else None

    def error(self, key: str) -> BackendError | None:
        """Return why nothing is known under a key now; None if all is well."""
        return self._watched[key].error if key in self._watched else None

    def wait(self, seconds: float) -> bool:
        """Wait until something has changed, at most so long; return whether something did."""
        changed = self._changed.wait(seconds)
        self._changed.clear()
        return changed


class Refusals:
    """Decides whether a refusal is final: a starting API server refuses what it allowed before."""

    def __init__(self) -> None:
        self._allowed = False
        self._since: float | None = None

    def is_final(self) -> bool:
        """Note a refusal; return whether it is final: never allowed before, or refused for over ``STARTING_S``."""
        now = time.monotonic()
        self._since = self._since or now
        return not self._allowed or now - self._since > STARTING_S

    def end(self) -> None:
        """Note that the server allows it now."""
        self._allowed, self._since = True, None


class RefusalCache:
    """Remembers the last refusal for a while, so that whoever looks again and again is not refused each time."""

    def __init__(self) -> None:
        self._refused: tuple[object, Forbidden, float] | None = None

    def asked(self, key: object, ask: Callable[[], _Answer]) -> _Answer:
        """Return what `ask` returns, unless it was just refused under this key.

        Raises:
            Forbidden: it is refused, or was in the last ``STARTING_S`` seconds.
        """
        if self._refused and self._refused[0] == key and time.monotonic() < self._refused[2]:
            raise self._refused[1].with_traceback(None)
        try:
            return ask()
        except Forbidden as error:
            self._refused = key, error, time.monotonic() + STARTING_S
            raise


class _WatchedKind:
    """The objects of one kind, and what keeps them current in a thread."""

    def __init__(self, kube: Kube, kind: str, selectors: dict[str, str], changed: Callable[[], None]) -> None:
        self.selectors = selectors
        self.error: BackendError | None = None
        self.stop = Stop()
        self._kube = kube
        self._kind = kind
        self._changed = changed
        self._lock = threading.Lock()
        self._objects: dict[str, Object] | None = None
        self._version = ""
        self._refusals = Refusals()
        self._answered = False

    def objects(self) -> list[Object] | None:
        with self._lock:
            return None if self._objects is None else list(self._objects.values())

    def run(self, end: Stop) -> None:
        """Keep the objects current until `end` or its own stop is set."""
        end.chain(self.stop)
        pause = _FIRST_PAUSE_S
        while not self.stop.is_set():
            self._answered = False
            try:
                self._follow()
            except VersionGone:
                self._version = ""
            except BackendError as error:
                if isinstance(error, _REFUSED) and self._refusals.is_final():  # other kinds are still watched
                    self._report(error)
                    return
                if not isinstance(error, (Unreachable, *_REFUSED)):  # the server cannot go on from this version
                    self._version, self._answered = "", False
                if not self.stop.is_set():
                    self._report_lost(error)
            pause = _FIRST_PAUSE_S if self._answered else min(2 * pause, _LONGEST_PAUSE_S)
            self.stop.wait(pause)

    def _report_lost(self, error: BackendError) -> None:
        """Report that nothing is known now, unless it is only a connection that was dropped after an answer."""
        if isinstance(error, _REFUSED):  # by a starting server
            return
        passing = error if isinstance(error, Unreachable) else Unreachable(error.what, why=error.why)
        self._report(None if self._answered else passing)

    def _report(self, error: BackendError | None) -> None:
        self.error = error
        self._changed()

    def _follow(self) -> None:
        if not self._version:
            listed, self._version = self._kube.snapshot(self._kind, **self.selectors)
            self._refusals.end()
            self._answered = True
            with self._lock:
                self._objects = {each["metadata"]["uid"]: each for each in listed}
            self._report(None)
        for change in self._kube.watch(self._kind, self._version, self.stop, **self.selectors):
            self._refusals.end()
            self._answered = True
            self._version = change["object"]["metadata"]["resourceVersion"]
            self._take(change["type"], change["object"])

    def _take(self, kind: str, thing: Object) -> None:
        with self._lock:
            objects = self._objects if self._objects is not None else {}
            if kind == "DELETED":
                objects.pop(thing["metadata"]["uid"], None)
            elif kind != "BOOKMARK":
                objects[thing["metadata"]["uid"]] = thing
            self._objects = objects
        if kind != "BOOKMARK" or self.error:
            self._report(None)
