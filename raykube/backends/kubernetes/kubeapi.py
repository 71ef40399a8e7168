"""Kubernetes' REST API with plain dicts. Only kubeconfig.py and credentials.py know that there is a Kubernetes client.

lightkube reads what says where the server is and who asks. Its typed calls are not used: they have neither strict
field validation nor a place for fields that a newer server knows.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import httpx

from raykube.backends.kubernetes import kubeconfig
from raykube.backends.kubernetes.clock import Clock
from raykube.backends.kubernetes.refusals import Gone, is_passed_on, no_api_server, refusal
from raykube.backends.transport import listening, shown
from raykube.errors import BackendError, ConfigError, Forbidden, NotFound, Unreachable
from raykube.names import is_namespace, is_object_name

Object = dict[str, Any]

_KUEUE = "apis/kueue.x-k8s.io"
#: The versions of a group that are known here, the newest first; what is asked is the same in all.
_VERSIONS = {_KUEUE: ("v1beta2", "v1beta1")}  # before 0.15 Kueue has only the second
_PATHS = {
    "RayJob": ("apis/ray.io/v1", "rayjobs"),
    "RayCluster": ("apis/ray.io/v1", "rayclusters"),
    "RayService": ("apis/ray.io/v1", "rayservices"),
    "Workload": (_KUEUE, "workloads"),
    "ConfigMap": ("api/v1", "configmaps"),
    "Event": ("api/v1", "events"),
    "PersistentVolumeClaim": ("api/v1", "persistentvolumeclaims"),
    "Pod": ("api/v1", "pods"),
    "ResourceQuota": ("api/v1", "resourcequotas"),
    "Secret": ("api/v1", "secrets"),
    "Service": ("api/v1", "services"),
}
_REVIEWS = "authorization.k8s.io/v1"
_MANAGER = "raykube"
_TIMEOUT = httpx.Timeout(30, connect=5)
#: A server that has too many requests is asked again after these seconds; it tells 1 itself.
_BUSY_S = (1.0, 1.0, 2.0, 4.0)
#: The server sends a bookmark about every minute; a watch that is silent for longer has lost its connection.
_WATCH_TIMEOUT = httpx.Timeout(90, connect=5)
#: A log may be silent for days: so many seconds after its last word the kernel asks whether the other side is there,
#: again and again, and then gives up. macOS has its own default for the first.
_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}


class Kube:
    """One namespace of one cluster.

    Every method may raise Unreachable, Forbidden, or another BackendError with the server's own words.

    Args:
        config: what the context says, where that has been read already.
    """

    def __init__(self, context: str = "", namespace: str = "", config: kubeconfig.Config | None = None) -> None:
        config = config or kubeconfig.load(context)
        #: As it may be shown.
        self.server: str = shown(config.cluster.server)
        self.context = config.context
        self.namespace: str = _checked(namespace or config.namespace)
        self._config = config
        self._clock = Clock()
        #: The time by the server's clock, in Unix seconds.
        self.now = self._clock.now
        self._clients = {os.getpid(): self._client()}
        self._versions: dict[str, str] = {}

    @property
    def http(self) -> httpx.Client:
        """The client of this process: a child of a fork would read its parent's answers from connections of both."""
        pid = os.getpid()
        if pid not in self._clients:
            self._clients[pid] = self._client()
        return self._clients[pid]

    def _client(self) -> httpx.Client:
        made = kubeconfig.client(self._config, _TIMEOUT)
        made.event_hooks = {"response": [self._clock.compare]}
        # Handles are thrown away without a word; their connections are not to wait for the interpreter's end.
        # Nor to be closed at it, under threads that are still at work: they would say so in tracebacks.
        weakref.finalize(self, made.close).atexit = False
        return made

    def get(self, kind: str, name: str) -> Object:
        """Return one object. Raises NotFound."""
        return self.json("GET", self._one(kind, name))

    def find(self, kind: str, name: str) -> Object | None:
        """Return one object, or None when it is not there."""
        try:
            return self.get(kind, name)
        except NotFound:
            return None

    def listed(self, kind: str, **selectors: str) -> list[Object]:
        """Return the objects of a kind; `selectors` are ``labelSelector`` and ``fieldSelector``."""
        return list(self.json("GET", self._path(kind), params=selectors)["items"])

    def create(self, thing: Mapping[str, Any], *, dry_run: bool = False) -> Object:
        """Create an object.

        Raises:
            Conflict: one of that name exists.
            ManifestError: a field is unknown or invalid; nothing was created.
        """
        return self.json("POST", self._path(thing["kind"]), thing, params=_strict(dry_run=dry_run))

    def patch(self, kind: str, name: str, change: Mapping[str, Any], *, dry_run: bool = False) -> Object:
        """Merge a change into an object (``application/merge-patch+json``). Raises NotFound, ManifestError."""
        headers = {"content-type": "application/merge-patch+json"}
        return self.json("PATCH", self._one(kind, name), change, params=_strict(dry_run=dry_run), headers=headers)

    def delete(self, kind: str, name: str, **options: Any) -> None:
        """Ask for an object's end; `options` are those of DeleteOptions. Raises NotFound."""
        self.json("DELETE", self._one(kind, name), {"kind": "DeleteOptions", "apiVersion": "v1", **options})

    def pod_log(self, name: str, **params: Any) -> str:
        """Return what a container of a pod printed; bytes that are not UTF-8 show as U+FFFD."""
        response = self.send("GET", f"{self._one('Pod', name)}/log", params=params)
        return response.content.decode("utf-8", "replace")

    def pod_log_lines(self, name: str, stop: Stop, **params: Any) -> Iterator[bytes]:
        """Yield the lines that a container of a pod prints as they come, until it ends or `stop` is set."""
        path, params = f"{self._one('Pod', name)}/log", {"follow": "true", **params}
        with self.growing(path, stop, params=params) as response:
            yield from _lines(response)

    def proxy(self, service: str) -> str:
        """Return the path below which the API server passes requests on to a head's dashboard. Raises NotFound."""
        return f"{self._one('Service', service)}:dashboard/proxy"

    def may(self, verb: str, resource: str, group: str = "") -> bool:
        """Return whether this user may do something here, to a resource such as ``pods`` or ``pods/log``."""
        name, _, part = resource.partition("/")
        asked = {"namespace": self.namespace, "verb": verb, "group": group, "resource": name, "subresource": part}
        body = {"apiVersion": _REVIEWS, "kind": "SelfSubjectAccessReview", "spec": {"resourceAttributes": asked}}
        return bool(self.json("POST", f"/apis/{_REVIEWS}/selfsubjectaccessreviews", body)["status"].get("allowed"))

    @contextlib.contextmanager
    def stream(self, path: str, stop: Stop | None = None, **options: Any) -> Iterator[httpx.Response]:
        """Open a response that is read while it comes; `stop` ends it from another thread."""
        # `stop` has the connection for good: once this has ended nobody else may get it.
        options["headers"] = {"connection": "close", **(options.get("headers") or {})}
        with listening(self._silence), self.http.stream("GET", path, **options) as response:
            if response.is_error:
                response.read()
                raise refusal("GET", path, response)
            connection = response.extensions["network_stream"].get_extra_info("socket")
            _have_asked(connection)
            if stop:
                stop.take(connection)
            yield response

    @contextlib.contextmanager
    def growing(self, path: str, stop: Stop, **options: Any) -> Iterator[httpx.Response]:
        """Open the response that a growing log is, which may be silent for days once it has begun.

        Raises:
            Unreachable: it has not begun in the time of other answers; it may be empty so far.
        """
        limits = _TIMEOUT.as_dict()
        with self.stream(path, stop, extensions={"timeout": limits}, **options) as response:
            limits["read"] = None  # looked up again where the body is read
            yield response

    def watch(self, kind: str, version: str, stop: Stop, **selectors: str) -> Iterator[Object]:
        """Yield the changes after a version, as ``{"type": "MODIFIED", "object": …}``, until the server ends it.

        Raises:
            Gone: the version is too old, or newer than the server; list again.
            BackendError: the server has ended it with an error, or says what is no change.
        """
        params = {"watch": "1", "allowWatchBookmarks": "true", "resourceVersion": version, **selectors}
        with self.stream(self._path(kind), stop, params=params, timeout=_WATCH_TIMEOUT) as response:
            # The first says no more than that the server answers.
            yield {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": version}}}
            for line in _lines(response):
                if stop.is_set():
                    return
                yield _change(line)

    def snapshot(self, kind: str, **selectors: str) -> tuple[list[Object], str]:
        """Return the objects of a kind, and the version from which on a watch tells what changed."""
        answer = self.json("GET", self._path(kind), params=selectors)
        return list(answer["items"]), str(answer["metadata"]["resourceVersion"])

    def json(self, method: str, path: str, body: Mapping[str, Any] | None = None, **options: Any) -> Object:
        """Send a request and return the JSON that answers it."""
        return self.object_of(self.send(method, path, json=body, **options))

    def object_of(self, response: httpx.Response) -> Object:
        """Return the JSON object that an answer is. Raises NoApiServer, for something else has answered."""
        with contextlib.suppress(ValueError):
            if isinstance(answer := response.json(), dict):
                return answer
        raise no_api_server(self.server, response)

    def send(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send a request and return what answers it; the errors of the API server are raised."""
        for wait_s in (*_BUSY_S, None):
            with listening(self._silence):
                response = self.http.request(method, path, **options)
            if wait_s is None or response.status_code != httpx.codes.TOO_MANY_REQUESTS or is_passed_on(path):
                break
            time.sleep(wait_s)  # it has done nothing yet
        if response.is_error:
            raise refusal(method, path, response)
        return response

    def _version(self, group: str) -> str:
        """Return the newest version of a group that both speak. Raises UnknownKind where the server lacks it."""
        if group not in self._versions:
            served: set[str] = set()
            with contextlib.suppress(Forbidden):  # who may not ask takes the newest
                served = {each["version"] for each in self.json("GET", f"/{group}").get("versions") or ()}
            self._versions[group] = next((each for each in _VERSIONS[group] if each in served), _VERSIONS[group][0])
        return self._versions[group]

    def _one(self, kind: str, name: str) -> str:
        if not name:
            raise ConfigError(f"the name of a {kind} is empty", why="that would address all of them")
        # Whoever wrote an object that names another may have written a path: into another namespace, to another kind.
        if not is_object_name(name):
            raise NotFound(f"there is no {kind} {name!r} there", why="names are of a-z, 0-9, '-' and '.'")
        return f"{self._path(kind)}/{name}"

    def _path(self, kind: str) -> str:
        group, plural = _PATHS[kind]
        group = f"{group}/{self._version(group)}" if group in _VERSIONS else group
        return f"/{group}/namespaces/{self.namespace}/{plural}"

    def _silence(self, words: str) -> Unreachable:
        return Unreachable(
            f"no answer from the API server {self.server}",
            why=words,
            next_step="look whether kubectl get nodes answers; what runs there goes on meanwhile",
        )


def _checked(namespace: str) -> str:
    if is_namespace(namespace):
        return namespace
    raise ConfigError(
        f"there can be no namespace {namespace!r}",
        why="names of namespaces are of a-z, 0-9 and '-', and at most 63 characters long",
        next_step="correct it where it is given: -n, RAYKUBE_NAMESPACE, the manifest, or the context of the kubeconfig",
    )


def _have_asked(connection: socket.socket) -> None:
    """Have the kernel find out when nobody is left at the other end, of whom a reader alone would never hear."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _lines(response: httpx.Response) -> Iterator[bytes]:
    """Yield whole lines: the last one of a stream that breaks off is none."""
    rest = b""
    for chunk in response.iter_bytes():
        *whole, rest = (rest + chunk).split(b"\n")
        yield from whole


class Stop:
    """Ends streams that other threads read: set once, for good."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._event = threading.Event()
        self._sockets: list[socket.socket] = []
        self._others: list[Stop] = []

    def take(self, connection: socket.socket) -> None:
        """Take a connection to end later, or now when it is too late."""
        with self._lock:
            self._sockets = [known for known in self._sockets if known.fileno() >= 0] + [connection]
        if self._event.is_set():
            self.set()

    def chain(self, other: Stop) -> None:
        """Set another one with this."""
        with self._lock:
            self._others.append(other)
        if self._event.is_set():
            other.set()

    def set(self) -> None:
        """End them all."""
        self._event.set()
        for other in self._others:
            other.set()
        with self._lock:
            for connection in self._sockets:
                # Not close: only a shutdown wakes the thread that waits for data. It may be closed already. Not that of
                # an SSLSocket either: it forgets its key, and what comes after is read as it is, encrypted.
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def is_set(self) -> bool:
        """Whether it was set."""
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        """Wait so long, or until it is set; return whether it is."""
        return self._event.wait(seconds)


def _strict(*, dry_run: bool) -> dict[str, str]:
    return {"fieldValidation": "Strict", "fieldManager": _MANAGER} | ({"dryRun": "All"} if dry_run else {})


def _change(line: bytes) -> Object:
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
        change: Object = json.loads(line)
        if change["type"] == "ERROR":
            raise _watch_error(change["object"])
        metadata = change["object"]["metadata"]
        if metadata["resourceVersion"] and (change["type"] == "BOOKMARK" or metadata["uid"]):
            return change
    raise BackendError("what came in a watch is no change", why=line[:200].decode("utf-8", "replace"))


def _watch_error(status: Object) -> BackendError:
    kind = Gone if status.get("code") == httpx.codes.GONE else BackendError
    return kind("the API server ended a watch", why=str(status.get("message", "")))
