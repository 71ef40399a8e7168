"""Whether the API server answers, who it is, and whether its clock and this machine's agree."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator

from raykube.backends.kubernetes import kubeconfig, kubefiles
from raykube.backends.kubernetes.clock import clock_of
from raykube.backends.kubernetes.credentials import NoCredential
from raykube.backends.kubernetes.kubeapi import Kube
from raykube.backends.kubernetes.refusals import NoApiServer, UnknownKind
from raykube.doctor.check import Check, refused
from raykube.errors import Forbidden, Unreachable

#: How many seconds this machine's clock may be off: ages are told by it, and credentials expire by it.
_CLOCK_S = 5.0
#: The oldest Kubernetes on which KubeRay's makers test 1.6.
_OLDEST = (1, 29)
_ADDRESS = "see that its address in the kubeconfig is right and that this machine's network reaches it (VPN, proxy)"


def checks(kube: Kube) -> Iterator[Check]:
    """Look at the server; if it does not answer, or not to this user, the check ``server`` is the last one."""
    source = f"context {kube.context}" if kubefiles.paths() else "none; asks as this pod's service account"
    yield Check("kubeconfig", True, f"{source}, namespace {kube.namespace}")
    try:
        kube.send("GET", "/version")  # not timed: it connects, and a plugin may ask for a login
        begun = time.time()
        answer = kube.send("GET", "/version")
        told = kube.object_of(answer)
    except Unreachable as error:
        yield refused("server", error) if isinstance(error, (NoCredential, NoApiServer)) else unreachable(error)
        return
    except UnknownKind as error:  # every API server has a version
        yield Check("server", False, f"{kube.server} is no Kubernetes API server: {error.why}", _ADDRESS)
        return
    except Forbidden as error:  # it tells even its version only to users whom it knows
        yield dataclasses.replace(refused("server", error), ok=False)
        return
    ended = time.time()
    yield _reached(kube, ended - begun)
    yield _version(told)
    if date := answer.headers.get("date"):
        yield clock(date, (begun + ended) / 2)


def unreachable(error: Unreachable) -> Check:
    """Return why the server cannot be reached, as a check."""
    if "CERTIFICATE_VERIFY_FAILED" in error.why or "certificate" in error.why.lower():
        step = "name the server's own authority in the kubeconfig: certificate-authority-data of the cluster"
        return Check("server", False, f"{error.what}: its certificate is not trusted: {error.why}", step)
    return Check("server", False, refused("server", error).found, _ADDRESS)


def _reached(kube: Kube, seconds: float) -> Check:
    found = f"{kube.server} answers in {seconds * 1000:.0f} ms"
    if not kube.server.startswith("https://"):
        return Check("server", False, f"{found}, without TLS: tokens can be read on the way", "use its https address")
    if kubeconfig.load(kube.context).cluster.insecure:
        step = "replace insecure-skip-tls-verify by certificate-authority-data in the kubeconfig"
        return Check("server", False, f"{found}, but nothing proves that it is the server meant", step)
    return Check("server", True, f"{found}, TLS verified")


def _version(told: dict[str, str]) -> Check:
    numbers = ("".join(filter(str.isdigit, told.get(key, ""))) or "0" for key in ("major", "minor"))
    recent = tuple(map(int, numbers)) >= _OLDEST
    oldest = ".".join(map(str, _OLDEST))
    return Check(
        "kubernetes", recent or None, told.get("gitVersion", "unknown"), f"KubeRay is tested on {oldest} and up"
    )


def clock(date: str, here: float) -> Check:
    """Compare the ``Date`` of an answer with this machine's time `here` when it was made."""
    ahead = here - clock_of(date)
    if abs(ahead) <= _CLOCK_S:
        return Check("clock", True, "as the server's, within a second" if abs(ahead) <= 1 else f"{ahead:+.0f} s")
    words = f"this machine is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the server"
    return Check(
        "clock", False, f"{words}: ages would be told wrong, credentials renewed late", "set both clocks by NTP"
    )
