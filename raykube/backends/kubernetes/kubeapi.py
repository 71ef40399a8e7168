"""Kubernetes' REST API with plain dicts, over httpx.

lightkube's typed calls are not used: they have neither strict field validation nor a place for fields that a newer
server knows. Only kubeconfig.py and credentials.py use lightkube: its classes for clusters and users, a pod's service
account, TLS contexts, and fixed tokens and passwords. Joined kubeconfigs, token files, exec plugins and proxies are
raykube's own.
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
from raykube.backends.kubernetes.refusals import VersionGone, is_passed_on, no_api_server, refusal
from raykube.backends.transport import listening, shown
from raykube.errors import BackendError, ConfigError, Forbidden, NotFound, Unreachable
from raykube.names import is_namespace, is_object_name

Object = dict[str, Any]

_KUEUE = "apis/kueue.x-k8s.io"
#: The versions of a group that raykube knows, newest first; its requests are the same in all of them.
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
#: Pauses in seconds before a server with too many requests is asked again; it proposes 1 itself.
_BUSY_S = (1.0, 1.0, 2.0, 4.0)
#: The server sends a bookmark about every minute; a watch that is silent for longer has lost its connection.
_WATCH_TIMEOUT = httpx.Timeout(90, connect=5)
#: A log may be silent for days. After so many seconds of silence the kernel probes the other side, at this interval and
#: so many times before it gives up. macOS lacks the first option, and uses its own default.
_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}


class Kube:
    """One namespace of one cluster.

    Every method may raise Unreachable, Forbidden, or another BackendError with the server's own words.

    Args:
        config: the configuration of the context, if it has been read already.
    """

    def __init__(self, context: str = "", namespace: str = "", config: kubeconfig.Config | None = None) -> None:
        config = config or kubeconfig.load(context)
        #: Its address, without user and password, so that it can be shown.
        self.server: str = shown(config.cluster.server)
        self.context = config.context
        self.namespace: str = _valid_namespace(namespace or config.namespace)
        self._config = config
        self._clock = Clock()
        #: The time by the server's clock, in Unix seconds.
        self.now = self._clock.now
        self._clients = {os.getpid(): self._client()}
        self._versions: dict[str, str] = {}

    @property
    def http(self) -> httpx.Client:
        """The client of this process: a forked child must not read its parent's answers from shared connections."""
        pid = os.getpid()
        if pid not in self._clients:
            self._clients[pid] = self._client()
        return self._clients[pid]

    def _client(self) -> httpx.Client:
        made = kubeconfig.client(self._config, _TIMEOUT)
        made.event_hooks = {"response": [self._clock.compare]}
        # Nobody closes a Kube, so its connections are closed when it is collected. Not when the interpreter ends:
        # threads that still use them would print tracebacks.
        weakref.finalize(self, made.close).atexit = False
        return made

    def get(self, kind: str, name: str) -> Object:
        """Return one object. Raises NotFound."""
        return self.json("GET", self._object_path(kind, name))

    def find(self, kind: str, name: str) -> Object | None:
        """Return one object, or None if it is not there."""
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
            Conflict: an object of that name exists.
            ManifestError: a field is unknown or invalid; nothing was created.
        """
        return self.json("POST", self._path(thing["kind"]), thing, params=_strict(dry_run=dry_run))

    def patch(self, kind: str, name: str, change: Mapping[str, Any], *, dry_run: bool = False) -> Object:
        """Merge a change into an object (``application/merge-patch+json``). Raises NotFound, ManifestError."""
        headers = {"content-type": "application/merge-patch+json"}
        return self.json(
            "PATCH", self._object_path(kind, name), change, params=_strict(dry_run=dry_run), headers=headers
        )

    def delete(self, kind: str, name: str, **options: Any) -> None:
        """Have an object deleted; `options` are those of DeleteOptions. Raises NotFound."""
        self.json("DELETE", self._object_path(kind, name), {"kind": "DeleteOptions", "apiVersion": "v1", **options})

    def pod_log(self, name: str, **params: Any) -> str:
        """Return what a container of a pod printed; bytes that are not UTF-8 show as U+FFFD."""
        response = self.send("GET", f"{self._object_path('Pod', name)}/log", params=params)
        return response.content.decode("utf-8", "replace")

    def pod_log_lines(self, name: str, stop: Stop, **params: Any) -> Iterator[bytes]:
        """Yield the lines that a container of a pod prints, as they arrive, until it ends or `stop` is set."""
        path, params = f"{self._object_path('Pod', name)}/log", {"follow": "true", **params}
        with self.growing(path, stop, params=params) as response:
            yield from _lines(response)

    def proxy(self, service: str) -> str:
        """Return the path below which the API server passes requests on to a head's dashboard. Raises NotFound."""
        return f"{self._object_path('Service', service)}:dashboard/proxy"

    def may(self, verb: str, resource: str, group: str = "") -> bool:
        """Whether this user may do `verb` in this namespace, to a resource such as ``pods`` or ``pods/log``."""
        name, _, part = resource.partition("/")
        asked = {"namespace": self.namespace, "verb": verb, "group": group, "resource": name, "subresource": part}
        body = {"apiVersion": _REVIEWS, "kind": "SelfSubjectAccessReview", "spec": {"resourceAttributes": asked}}
        return bool(self.json("POST", f"/apis/{_REVIEWS}/selfsubjectaccessreviews", body)["status"].get("allowed"))

    @contextlib.contextmanager
    def stream(self, path: str, stop: Stop | None = None, **options: Any) -> Iterator[httpx.Response]:
        """Open a response that is read as it arrives; `stop` ends it from another thread."""
        # `stop` keeps the connection and may still shut it down after this, so no other request may use it.
        options["headers"] = {"connection": "close", **(options.get("headers") or {})}
        with listening(self._silence), self.http.stream("GET", path, **options) as response:
            if response.is_error:
                response.read()
                raise refusal("GET", path, response)
            connection = response.extensions["network_stream"].get_extra_info("socket")
            _keep_alive(connection)
            if stop:
                stop.take(connection)
            yield response

    @contextlib.contextmanager
    def growing(self, path: str, stop: Stop, **options: Any) -> Iterator[httpx.Response]:
        """Open a response that is a growing log: it may be silent for days once it has begun.

        Raises:
            Unreachable: it did not begin within the usual timeout. The log may just be empty so far.
        """
        limits = _TIMEOUT.as_dict()
        with self.stream(path, stop, extensions={"timeout": limits}, **options) as response:
            limits["read"] = None  # looked up again when the body is read
            yield response

    def watch(self, kind: str, version: str, stop: Stop, **selectors: str) -> Iterator[Object]:
        """Yield the changes after a version, as ``{"type": "MODIFIED", "object": …}``, until the server ends it.

        Raises:
            VersionGone: the version is too old, or newer than the server; list again.
            BackendError: the server ended it with an error, or sent something that is no change.
        """
        params = {"watch": "1", "allowWatchBookmarks": "true", "resourceVersion": version, **selectors}
        with self.stream(self._path(kind), stop, params=params, timeout=_WATCH_TIMEOUT) as response:
            # Only shows that the server answers.
            yield {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": version}}}
            for line in _lines(response):
                if stop.is_set():
                    return
                yield _change(line)

    def snapshot(self, kind: str, **selectors: str) -> tuple[list[Object], str]:
        """Return the objects of a kind, and the version after which a watch is to start."""
        answer = self.json("GET", self._path(kind), params=selectors)
        return list(answer["items"]), str(answer["metadata"]["resourceVersion"])

    def json(self, method: str, path: str, body: Mapping[str, Any] | None = None, **options: Any) -> Object:
        """Send a request and return the JSON object of its answer."""
        return self.object_of(self.send(method, path, json=body, **options))

    def object_of(self, response: httpx.Response) -> Object:
        """Return the JSON object of an answer. Raises Unreachable if it is none, as something else has answered."""
        with contextlib.suppress(ValueError):
            if isinstance(answer := response.json(), dict):
                return answer
        raise no_api_server(self.server, response)

    def send(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send a request and return its answer; raise the errors of the API server."""
        for wait_s in (*_BUSY_S, None):
            with listening(self._silence):
                response = self.http.request(method, path, **options)
            if wait_s is None or response.status_code != httpx.codes.TOO_MANY_REQUESTS or is_passed_on(path):
                break
            time.sleep(wait_s)  # the server has done nothing yet
        if response.is_error:
            raise refusal(method, path, response)
        return response

    def _version(self, group: str) -> str:
        """Return the newest version of a group that both sides know. Raises UnknownKind if the server has none."""
        if group not in self._versions:
            served: set[str] = set()
            with contextlib.suppress(Forbidden):  # a user who may not ask gets the newest
                served = {each["version"] for each in self.json("GET", f"/{group}").get("versions") or ()}
            self._versions[group] = next((each for each in _VERSIONS[group] if each in served), _VERSIONS[group][0])
        return self._versions[group]

    def _object_path(self, kind: str, name: str) -> str:
        if not name:
            raise ConfigError(f"the name of a {kind} is empty", why="that would address all of them")
        # A name that came from some object may really be a path, into another namespace or to another kind.
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


def _valid_namespace(namespace: str) -> str:
    if is_namespace(namespace):
        return namespace
    raise ConfigError(
        f"there can be no namespace {namespace!r}",
        why="names of namespaces are of a-z, 0-9 and '-', and at most 63 characters long",
        next_step="correct it where it is given: -n, RAYKUBE_NAMESPACE, the manifest, or the context of the kubeconfig",
    )


def _keep_alive(connection: socket.socket) -> None:
    """Have the kernel find out when nobody is left at the other end: a mere reader would never notice."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _lines(response: httpx.Response) -> Iterator[bytes]:
    """Yield whole lines, without an unfinished last one of a stream that broke off."""
    rest = b""
    for chunk in response.iter_bytes():
        *whole, rest = (rest + chunk).split(b"\n")
        yield from whole


class Stop:
    """Ends streams that other threads read. Once set, it stays set."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._event = threading.Event()
        self._sockets: list[socket.socket] = []
        self._others: list[Stop] = []

    def take(self, connection: socket.socket) -> None:
        """Take a connection to end when this is set; at once if it already is."""
        with self._lock:
            self._sockets = [known for known in self._sockets if known.fileno() >= 0] + [connection]
        if self._event.is_set():
            self.set()

    def chain(self, other: Stop) -> None:
        """Have another Stop set together with this one."""
        with self._lock:
            self._others.append(other)
        if self._event.is_set():
            other.set()

    def set(self) -> None:
        """End all connections, and set the chained ones."""
        self._event.set()
        for other in self._others:
            other.set()
        with self._lock:
            for connection in self._sockets:
                # Not close(): only a shutdown wakes a thread that waits for data. Not SSLSocket.shutdown() either: it
                # drops the TLS state, so data that still arrives is read encrypted. OSError: it is closed already.
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)

    def is_set(self) -> bool:
        """Whether it was set."""
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        """Wait until it is set, at most so many seconds; return whether it is."""
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
    kind = VersionGone if status.get("code") == httpx.codes.GONE else BackendError
    return kind("the API server ended a watch", why=str(status.get("message", "")))
