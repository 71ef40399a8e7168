"""Ray's Job API and Serve REST API over HTTP, without importing Ray.

The paths and fields are those of Ray's dashboard (``/api/jobs/``, ``/api/serve/applications/``). They are the same for
a head on this machine and for one behind a Kubernetes API server.
"""

from __future__ import annotations

import contextlib
import json
import re
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import httpx

from raykube.backends.transport import listening, shown
from raykube.errors import BackendError, Conflict, Forbidden, NotFound, Unreachable

# The first submit on a fresh head waits for its job agent to come up, which takes seconds.
_TIMEOUT = httpx.Timeout(60, connect=5)
_LOG_INTERVAL_S = 0.2
_NO_HEAD = (502, 503, 504)
_LOGS = "/api/v0/logs"
_MOST_ACTORS = 10_000  # Ray refuses to list more
#: What Ray says of a log whose file or node is not there (any more), and of one whose node does not answer.
_GONE = re.compile(r"Agent for node id: \S+ doesn't exist|A file is not found at")
_SILENT = re.compile(r"Failed to query the data source|StatusCode\.(UNAVAILABLE|DEADLINE_EXCEEDED)")


class RayApi:
    """One Ray head, reached with `http` below the path `base`; `headers` hold its token."""

    def __init__(self, http: httpx.Client, base: str, headers: Mapping[str, str]) -> None:
        self._http = http
        self._base = base
        self._headers = headers

    @classmethod
    def at(cls, address: str, token: str) -> RayApi:
        """Return the API of the head at `address`, e.g. ``http://127.0.0.1:8265``. Its connections end with it."""
        # trust_env off: a proxy for the internet must not get requests for this head, nor its token.
        # verify only for https: reading the certificates costs more than a dozen requests.
        http = httpx.Client(base_url=address, timeout=_TIMEOUT, trust_env=False, verify=address.startswith("https:"))
        api = cls(http, "", {"Authorization": f"Bearer {token}"})
        weakref.finalize(api, http.close)
        return api

    @classmethod
    def behind(cls, http: httpx.Client, path: str, token: str) -> RayApi:
        """Return the API of a head below `path` of a Kubernetes API server, of which `http` is a client."""
        # The header Authorization is for the API server.
        return cls(http, path, {"x-ray-authorization": f"Bearer {token}"} if token else {})

    def version(self) -> dict[str, Any]:
        """Return ``{"ray_version", "session_name", …}``."""
        return _object(self._json("GET", "/api/version"))

    def submit(self, body: Mapping[str, Any]) -> None:
        """Start a job. `body` is that of ``POST /api/jobs/`` and names its ``submission_id``.

        Raises:
            Conflict: a job with that submission id exists.
        """
        self._json("POST", "/api/jobs/", body)

    def job(self, submission_id: str) -> dict[str, Any]:
        """Return Ray's JobDetails: status, message, error_type, driver_exit_code, and times in ms."""
        return _object(self._json("GET", f"/api/jobs/{quote(submission_id, safe='')}"))

    def jobs(self) -> list[dict[str, Any]]:
        """Return the details of every job and driver that the head knows."""
        answer: list[dict[str, Any]] = self._json("GET", "/api/jobs/")
        return answer

    def nodes(self) -> list[str]:
        """Return the ids of the live nodes."""
        found = self._json("GET", "/nodes?view=summary")["data"]["summary"]
        return [each["raylet"]["nodeId"] for each in found if each.get("raylet", {}).get("state") == "ALIVE"]

    def stop(self, submission_id: str) -> None:
        """Ask a job to stop: SIGTERM first, SIGKILL three seconds later."""
        self._json("POST", f"/api/jobs/{quote(submission_id, safe='')}/stop")

    def serve_status(self) -> dict[str, Any]:
        """Return Serve's whole state; ``applications`` maps names to ``{status, message, deployments}``."""
        return _object(self._json("GET", "/api/serve/applications/"))

    def serve_deploy(self, applications: Sequence[Mapping[str, Any]], http_options: Mapping[str, Any]) -> None:
        """Make the applications of the head exactly `applications`."""
        body = {"proxy_location": "HeadOnly", "http_options": http_options, "applications": applications}
        self._json("PUT", "/api/serve/applications/", body)

    def serve_shutdown(self) -> None:
        """Remove every application and Serve itself."""
        self._json("DELETE", "/api/serve/applications/")

    def actors(self, namespace: str) -> list[dict[str, Any]]:
        """Return the actors of a Ray namespace, ended ones too: ``class_name``, ``node_id``, ``pid``, and more."""
        only = {"filter_keys": "ray_namespace", "filter_predicates": "=", "filter_values": namespace}
        answer = self._send("GET", "/api/v0/actors", params={"limit": _MOST_ACTORS, **only}).json()
        return [*answer["data"]["result"]["result"]]

    def log(self, node_id: str, filename: str, *, last_lines: int = -1) -> bytes:
        """Return a file of a node's log folder, or only its last lines; -1 means all.

        Raises:
            NotFound: there is no such file or node.
        """
        params = {"node_id": node_id, "filename": filename, "lines": last_lines}
        return self._send("GET", f"{_LOGS}/file", params=params).content

    def log_parts(self, node_id: str, filename: str) -> Iterator[bytes]:
        """Yield a whole file of a node's log folder in parts, as they arrive. Raises NotFound."""
        params: dict[str, str | int] = {"node_id": node_id, "filename": filename, "lines": -1}
        asked = self._http.stream("GET", f"{self._base}{_LOGS}/file", headers=self._headers, params=params)
        with listening(self._silence), asked as response:
            if response.is_error:
                response.read()
                raise _refusal("GET", f"{_LOGS}/file", response)
            yield from response.iter_bytes()

    def log_files(self, node_id: str, pattern: str) -> list[str]:
        """Return the files of a node's log folder whose path matches a pattern."""
        answer = self._send("GET", _LOGS, params={"node_id": node_id, "glob": pattern}).json()
        return sorted(file for files in answer["data"]["result"].values() for file in files)

    def log_path(self, node_id: str, filename: str) -> tuple[str, dict[str, Any]]:
        """Return path and options of a request that follows a log file as it grows."""
        params = {"node_id": node_id, "filename": filename, "lines": -1, "interval": _LOG_INTERVAL_S}
        return f"{self._base}{_LOGS}/stream", {"params": params, "headers": self._headers}

    def upload(self, package_uri: str, data: bytes) -> None:
        """Upload a code package, which the head hands to its workers; `package_uri` is ``gcs://_ray_pkg_HASH.zip``."""
        protocol, _, name = package_uri.partition("://")
        self._send("PUT", f"/api/packages/{protocol}/{name}", content=data)

    def _json(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        response = self._send(method, path, json=body)
        try:
            return response.json() if response.text and not response.is_redirect else {}
        except ValueError as error:
            words = f"{method} {path}: {response.text.strip()[:200]}"
            raise Unreachable("what answers in the place of the Ray head is none", why=words) from error

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        with listening(self._silence):
            response = self._http.request(method, f"{self._base}{path}", headers=self._headers, **options)
        if response.is_error:
            raise _refusal(method, path, response)
        return response

    def _silence(self, words: str) -> Unreachable:
        where = f"{shown(str(self._http.base_url))}{self._base}"
        return Unreachable(f"no answer from the Ray head at {where}", why=words)


def tells_of_none(words: str) -> bool:
    """Whether a head says that there is no such log file, or no such node any more."""
    return bool(_GONE.search(words))


def _object(answer: Any) -> dict[str, Any]:
    return dict(answer)


def _refusal(method: str, path: str, response: httpx.Response) -> BackendError:
    """Map an HTTP error to ours, with the last line of the answer (the head sends whole tracebacks)."""
    words = response.text.strip()
    last = _status_message(words) or (words.splitlines()[-1] if words else f"HTTP {response.status_code}")
    what = f"the Ray head refused {method} {path}"
    # Ray answers a duplicate submission id with 500 and a traceback, not with 409.
    if "already exists" in words and method == "POST":
        return Conflict(what, why=last)
    if "No available agent" in words:
        return Unreachable("the Ray head does not take jobs yet", why=last)
    if response.status_code in _NO_HEAD:
        return Unreachable("the Ray head does not answer", why=last)
    if response.is_server_error and path.startswith(_LOGS):
        return _about_a_log(words)(what, why=last)
    kinds = {401: Forbidden, 403: Forbidden, 404: NotFound}
    return kinds.get(response.status_code, BackendError)(what, why=last)


def _status_message(words: str) -> str:
    """Return the message of a Kubernetes Status, the API server's answer if it cannot reach a head; else ""."""
    with contextlib.suppress(ValueError):
        status = json.loads(words)
        if isinstance(status, dict) and status.get("kind") == "Status":
            return str(status.get("message") or "")
    return ""


def _about_a_log(words: str) -> type[BackendError]:
    """Return the error that a head means by a plain 500 to a request for a log."""
    if tells_of_none(words):
        return NotFound
    return Unreachable if _SILENT.search(words) else BackendError
