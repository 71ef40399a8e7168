"""Which Kubernetes, as whom, and in which namespace: read as kubectl reads it.

``KUBECONFIG`` (several files are joined, the first to name something wins), else ``~/.kube/config``, else the service
account of the pod that this runs in. lightkube turns their entries into users, clusters and TLS contexts.
"""

from __future__ import annotations

import base64
import contextlib
import os
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import getproxies, proxy_bypass

import httpx
from lightkube.config.client_adapter import verify_cluster
from lightkube.config.kubeconfig import KubeConfig
from lightkube.config.models import Cluster, User
from lightkube.core.exceptions import ConfigError as LightkubeError

from raykube.backends.kubernetes import kubefiles
from raykube.backends.kubernetes.credentials import Manner, auth_of
from raykube.errors import ConfigError, Problem
from raykube.names import nearest

_REQUIRED = ("command", "apiVersion")
_SEE = "see: kubectl config get-contexts"
_MOUNT = "give this pod its service account's token (automountServiceAccountToken: true), or set KUBECONFIG"
#: The keys of a cluster's entry that its plugin is told, if it asks for that.
_TOLD = (
    *("server", "tls-server-name", "insecure-skip-tls-verify", f"{kubefiles.AUTHORITY}-data"),
    *("proxy-url", "disable-compression"),
)
_MODES = ("Never", "IfAvailable", "Always")
#: Each log, watch and forwarded port holds a connection while it lasts, and none may starve the others.
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=20)
#: What a kubeconfig holds as a file's path or as data: its key there, and its attribute in lightkube.
_CERTIFICATES: Mapping[type, Mapping[str, str]] = {
    Cluster: {kubefiles.AUTHORITY: "certificate_auth"},
    User: {"client-certificate": "client_cert", "client-key": "client_key"},
}


class NotConfigured(ConfigError):
    """This machine has neither a kubeconfig nor a pod's service account."""


@dataclass(frozen=True)
class Config:
    """The configuration of one context.

    Attributes:
        context: its name; ``default`` in a pod that has no kubeconfig.
        namespace: the one that it names, else ``default``; in a pod, the pod's.
        cluster: address and certificates of the API server.
        user: who asks, and with which credentials.
        proxy: address of a proxy before the server; "" for the one of the environment, if any.
        server_name: the name that the server's certificate must be for; "" for the one in its address.
        manner: how to run the user's plugin.
        impersonated: headers with which the server takes requests for another user's (``as`` and the like).
    """

    context: str
    namespace: str
    cluster: Cluster = field(repr=False)  # its address may hold a password, and so may a proxy's
    user: User = field(repr=False)
    proxy: str = field(default="", repr=False)
    server_name: str = ""
    manner: Manner = field(default_factory=Manner, repr=False)
    impersonated: tuple[tuple[str, str], ...] = ()


def load(context: str = "") -> Config:
    """Return the configuration of `context`, by default the current one.

    Raises:
        ConfigError: there is none, it cannot be read, or it has no such context.
    """
    if not (paths := kubefiles.paths()):
        return _of_pod(context)
    where, joined = ", ".join(map(str, paths)), kubefiles.joined(paths)
    if not (name := context or joined.get("current-context") or ""):
        raise ConfigError(f"no Kubernetes is configured: {where}", why="no current context", next_step=_SEE)
    chosen = _entry(joined, "context", name, f"there is no context {name!r} in {where}")
    if not chosen["cluster"]:
        raise ConfigError(f"context {name} names no cluster", next_step=_SEE)
    cluster, user = (
        _entry(joined, kind, said, f"context {name} names {kind} {said}, which is not in {where}")
        if (said := chosen.get(kind))
        else {}
        for kind in ("cluster", "user")
    )
    plugin = user.get("exec") or {}
    if "exec" in user and (missing := [Problem(key, "is required") for key in _lacking(plugin)]):
        raise ConfigError.of(f"user {chosen['user']} of the kubeconfig {where} cannot be used", missing)
    return Config(
        context=name,
        namespace=chosen.get("namespace") or "default",
        cluster=Cluster.from_dict(cluster, lazy=False),  # type: ignore[no-untyped-call]
        user=User.from_dict(user, lazy=False),  # type: ignore[no-untyped-call]
        # lightkube does not read these.
        proxy=cluster.get("proxy-url") or "",
        server_name=cluster.get("tls-server-name") or "",
        manner=_manner(plugin, cluster),
        impersonated=tuple(_impersonated(user)),
    )


def _lacking(plugin: Mapping[str, Any]) -> Iterator[str]:
    """Yield the required keys that a plugin's entry lacks."""
    yield from (f"exec.{key}" for key in _REQUIRED if not plugin.get(key))
    for index, entry in enumerate(plugin.get("env") or ()):
        yield from (f"exec.env[{index}].{key}" for key in ("name", "value") if key not in entry)


def _of_pod(context: str) -> Config:
    """Return the configuration from the service account of the pod that this runs in."""
    try:
        found = KubeConfig.from_service_account()
    except (LightkubeError, OSError, KeyError) as error:
        what = f"no Kubernetes is configured: neither {' nor '.join(kubefiles.named())} nor a pod's service account"
        step = _MOUNT if os.environ.get("KUBERNETES_SERVICE_HOST") else _SEE  # which every pod has
        raise NotConfigured(what, why=str(error), next_step=step) from error
    ((name, said),), (cluster,), (user,) = found.contexts.items(), found.clusters.values(), found.users.values()
    if context not in ("", name):
        what = f"there is no context {context!r} in this pod, which has no kubeconfig"
        raise ConfigError(what, next_step=nearest(context, [name]))
    return Config(name, said.namespace or "default", cluster, user)


def _entry(joined: Mapping[str, Any], kind: str, name: str, missing: str) -> Mapping[str, Any]:
    """Return the first entry of that name; `missing` is the error's text if there is none."""
    entries = joined[f"{kind}s"]
    found: Mapping[str, Any] | None = next((each[kind] for each in entries if each["name"] == name), None)
    if found is None:
        raise ConfigError(missing, next_step=nearest(name, [each["name"] for each in entries]))
    return found


def _impersonated(user: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the headers with which the server takes a user's requests for somebody else's."""
    for key, header in (("as", "Impersonate-User"), ("as-uid", "Impersonate-Uid")):
        if user.get(key):
            yield header, str(user[key])
    for group in user.get("as-groups") or ():
        yield "Impersonate-Group", str(group)
    for key, values in (user.get("as-user-extra") or {}).items():
        if not isinstance(values, list):
            step = "write entries that begin with - "
            raise ConfigError(f"as-user-extra.{key} of the kubeconfig is no list", next_step=step)
        for value in values:
            yield f"Impersonate-Extra-{quote(str(key), safe='')}", str(value)


def _manner(plugin: Mapping[str, Any], cluster: Mapping[str, Any]) -> Manner:
    mode = plugin.get("interactiveMode") or Manner.interactive_mode
    if mode not in _MODES:
        raise ConfigError(f"the kubeconfig's interactiveMode {mode} is not known", next_step=nearest(mode, _MODES))
    if not plugin.get("provideClusterInfo"):
        return Manner(mode)
    told = {key: cluster[key] for key in _TOLD if cluster.get(key)}
    if (authority := cluster.get(kubefiles.AUTHORITY)) and f"{kubefiles.AUTHORITY}-data" not in told:
        with contextlib.suppress(OSError):  # client() reports it
            told[f"{kubefiles.AUTHORITY}-data"] = base64.b64encode(Path(authority).read_bytes()).decode()
    for each in cluster.get("extensions") or ():
        if each.get("name") == "client.authentication.k8s.io/exec" and "extension" in each:
            told["config"] = each["extension"]
    return Manner(mode, told)


def client(config: Config, timeout: httpx.Timeout) -> httpx.Client:
    """Return an HTTP client of the API server, which sends the user's credentials with each request.

    Raises:
        ConfigError: a certificate cannot be read, or the kubeconfig asks for something that is not supported.
    """
    if problems := [*_certificate_problems(config.cluster), *_certificate_problems(config.user)]:
        raise ConfigError.of(f"context {config.context} of the kubeconfig cannot be used", problems)
    try:
        tls = _as_kubectl(verify_cluster(config.cluster, config.user, str))
        if config.server_name:
            _expect(tls, config.server_name)
        auth, proxy, server = auth_of(config.user, tls, config.manner), _proxy_of(config), config.cluster.server
        return httpx.Client(
            base_url=server,
            verify=tls,
            auth=auth,
            headers=[*config.impersonated],
            proxy=_trusted(proxy) if proxy else None,
            timeout=timeout,
            limits=_LIMITS,
            trust_env=False,
        )
    except httpx.InvalidURL:  # its words quote a part of the address, perhaps of a password
        why = "the address of its server, or of the proxy on the way there, is no URL"
        raise _unusable(config, f"{why}; a / or # in a password is written %2F or %23") from None
    except (LightkubeError, OSError, ValueError, ImportError) as error:
        raise _unusable(config, str(error)) from error


def _unusable(config: Config, why: str) -> ConfigError:
    what = f"context {config.context} of the kubeconfig cannot be used"
    return ConfigError(what, why=why, next_step="see: kubectl config view --minify")


def _as_kubectl(tls: ssl.SSLContext) -> ssl.SSLContext:
    """Have certificates checked as kubectl does.

    From 3.13 on, Python refuses the authorities that some clusters have made, Amazon's EKS among them
    (github.com/kubernetes-client/python/issues/2394).
    """
    tls.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return tls


def _trusted(proxy: str) -> httpx.Proxy:
    is_tls = proxy.startswith("https:")
    return httpx.Proxy(proxy, ssl_context=_as_kubectl(httpx.create_ssl_context()) if is_tls else None)


def _proxy_of(config: Config) -> str | None:
    """Return the proxy on the way to the server: the kubeconfig's own, else that of the environment.

    httpx reads the environment too, but cannot handle networks in ``NO_PROXY``: it misses some and fails on others.
    """
    if config.proxy:
        return config.proxy
    url, known = httpx.URL(config.cluster.server), getproxies()
    found = known.get(url.scheme) or known.get("all")
    if not found or _is_direct(url.host, url.port or 443, known.get("no", "")):
        return None
    return found if "://" in found else f"http://{found}"


def _is_direct(host: str, port: int, said: str) -> bool:
    """Whether a host is this machine, or ``NO_PROXY`` (`said`) names it, its domain or, for an address, its network."""
    entries = [each.strip() for each in said.split(",")]
    if "*" in entries or host == "localhost" or proxy_bypass(host if ":" in host else f"{host}:{port}"):
        return True
    with contextlib.suppress(ValueError):  # a name, not an address
        address = ip_address(host)
        return address.is_loopback or any(address in network for network in _networks(entries))
    return False


def _networks(entries: list[str]) -> Iterator[IPv4Network | IPv6Network]:
    for entry in entries:
        with contextlib.suppress(ValueError):  # a name, not a network
            yield ip_network(entry, strict=False)


def _expect(tls: ssl.SSLContext, name: str) -> None:
    """Require a server's certificate to be for `name`, whatever its address; httpx cannot do so behind a proxy."""

    def named(wrap: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *words, **options: wrap(*words, **{**options, "server_hostname": name})

    for each in ("wrap_socket", "wrap_bio"):
        setattr(tls, each, named(getattr(tls, each)))


def _certificate_problems(owner: Cluster | User) -> Iterator[Problem]:
    for key, attribute in _CERTIFICATES[type(owner)].items():
        file, data = getattr(owner, attribute), getattr(owner, f"{attribute}_data")
        try:
            pem = Path(file).read_bytes() if file and not data else base64.b64decode(data or "")
        except OSError as error:
            yield Problem(key, f"{file}: {error.strerror}", "name a file that you can read")
        except ValueError as error:
            yield Problem(f"{key}-data", f"is not base64: {error}", "write the whole of it, in one line")
        else:
            if (file or data) and b"-----BEGIN " not in pem:
                yield Problem(f"{key}-data" if data else key, "holds no PEM: it has no line -----BEGIN …")
