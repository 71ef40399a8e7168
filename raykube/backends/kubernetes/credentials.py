"""Credentials of each request, renewed when needed: a wait may go on for hours."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
from lightkube.config.client_adapter import user_auth
from lightkube.config.models import User, UserExec

from raykube.backends.kubernetes.fields import seconds
from raykube.backends.transport import sendable
from raykube.errors import Unreachable

_Flow = Generator[httpx.Request, httpx.Response, None]


class NoCredential(Unreachable):
    """The token file or plugin gave no credential this time; a wait tries again."""


@dataclass(frozen=True)
class Manner:
    """How to run an exec plugin: the settings that lightkube does not read.

    Attributes:
        interactive_mode: ``Never``, ``IfAvailable`` or ``Always``: whether the plugin may, or must, use the terminal.
        cluster: what the plugin is told of the cluster; None if the kubeconfig does not ask for that.
    """

    interactive_mode: str = "IfAvailable"
    cluster: Mapping[str, Any] | None = None


def auth_of(user: User, tls: ssl.SSLContext, manner: Manner = Manner()) -> httpx.Auth | None:
    """Return what signs a user's requests; the client certificate of a plugin is put into `tls`.

    Raises:
        ValueError: the user's token cannot be sent.
    """
    if user.token_file:
        return TokenFile(user.token_file)
    if user.exec:
        return Plugin(user.exec, tls, manner)
    return user_auth(replace(user, token=sendable(user.token) if user.token else None))


class TokenFile(httpx.Auth):
    """A token in a file that is replaced at times, as a kubelet does hourly with that of a service account.

    Read for each request, which costs microseconds: a server may accept old tokens for long, but notes who sends them.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    def auth_flow(self, request: httpx.Request) -> _Flow:
        """Sign a request."""
        try:
            token = sendable(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            step = "the kubeconfig's tokenFile, or the pod's service account, must name a file that holds one token"
            raise NoCredential("the file with the token cannot be read", why=str(error), next_step=step) from error
        request.headers["Authorization"] = f"Bearer {token}"
        yield request


class Plugin(httpx.Auth):
    """An exec plugin (``client.authentication.k8s.io``), which gives a token, a client certificate, or both.

    It is run at the first request, and again once its answer has expired or the server no longer accepts it.
    """

    def __init__(self, plugin: UserExec, tls: ssl.SSLContext, manner: Manner) -> None:
        self._plugin = plugin
        self._tls = tls
        self._manner = manner
        self._lock = threading.Lock()
        self._given: Mapping[str, Any] | None = None

    def auth_flow(self, request: httpx.Request) -> _Flow:
        """Sign a request."""
        given = self._current()
        response = yield _signed(request, given)
        if response.status_code == httpx.codes.UNAUTHORIZED:
            yield _signed(request, self._current(refused=given))

    def _current(self, refused: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        with self._lock:  # threads that wait meanwhile use the same answer
            if self._given is None or self._given is refused or _is_over(self._given):
                self._given = self._run_plugin()
            return self._given

    def _run_plugin(self) -> Mapping[str, Any]:
        plugin, interactive = self._plugin, self._interactive()
        told = {} if self._manner.cluster is None else {"cluster": self._manner.cluster}
        spec = {"interactive": interactive} | told
        asked = {"apiVersion": plugin.apiVersion, "kind": "ExecCredential", "spec": spec}
        own = {each.name: each.value for each in plugin.env or ()}
        environ = {**os.environ, **own, "KUBERNETES_EXEC_INFO": json.dumps(asked)}
        try:
            words = [plugin.command, *(plugin.args or ())]
            stdin = None if interactive else subprocess.DEVNULL
            given = _valid_credential(json.loads(_output_of(words, environ, stdin))["status"])
            if "clientCertificateData" in given:
                _load(self._tls, given["clientCertificateData"] + "\n" + given["clientKeyData"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            what = f"{plugin.command}, which the kubeconfig names to log in, gave no credential"
            step = plugin.installHint or "see what it says by itself: kubectl get pods"
            raise NoCredential(what, why=f"{type(error).__name__}: {error}", next_step=step) from error
        return given

    def _interactive(self) -> bool:
        """Whether the plugin gets the terminal, to ask its user. Raises NoCredential if it must and there is none."""
        terminal, mode = os.isatty(0), self._manner.interactive_mode
        if mode == "Always" and not terminal:
            what = f"{self._plugin.command}, which the kubeconfig names to log in, has to ask somebody"
            why = "its interactiveMode is Always, and standard input is not a terminal"
            raise NoCredential(what, why=why, next_step="run this in a terminal, or name a way to log in without one")
        return terminal and mode != "Never"


def _output_of(words: list[str], environ: Mapping[str, str], stdin: int | None) -> bytes:
    """Return what a command prints; tell only the exit status if it fails, for an argument may be a secret.

    Its stderr goes to the user's terminal, e.g. "open this address to log in".
    """
    done = subprocess.run(words, env=environ, stdin=stdin, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise ValueError(f"exit status {done.returncode}")
    return done.stdout


def _valid_credential(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a plugin gave. Raises ValueError if its token cannot be sent, or its expiration is no time."""
    _is_over(given)
    return {**given, "token": sendable(str(given["token"]))} if given.get("token") else given


def _signed(request: httpx.Request, given: Mapping[str, Any]) -> httpx.Request:
    if token := given.get("token"):
        request.headers["Authorization"] = f"Bearer {token}"
    if "clientCertificateData" in given and "upgrade" not in request.headers:
        # A connection keeps the certificate that it was opened with: it is not kept, lest it outlast the certificate.
        request.headers["Connection"] = "close"
    return request


def _is_over(given: Mapping[str, Any]) -> bool:
    expires = given.get("expirationTimestamp")
    return bool(expires) and seconds(str(expires)) <= time.time()


def _load(tls: ssl.SSLContext, pem: str) -> None:
    """Have new connections show a certificate; ssl reads it and its key only from a file."""
    with tempfile.NamedTemporaryFile("w", prefix="raykube-", suffix=".pem") as file:  # made with mode 0600
        file.write(pem)
        file.flush()
        tls.load_cert_chain(file.name)
