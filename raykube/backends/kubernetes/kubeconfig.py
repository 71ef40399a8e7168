"""Which Kubernetes, as whom, and in which namespace: read as kubectl reads it.

``KUBECONFIG`` (several files are joined, the first to name something wins), else ``~/.kube/config``, else the service
account of the pod that this runs in. lightkube reads what users and clusters are, and makes TLS of it.
"""

from __future__ import annotations

import base64
import contextlib
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

_KINDS = ("cluster", "user")
#: What a plugin is told of its cluster where it wants that, by the keys of the kubeconfig.
_TOLD = (
    *("server", "tls-server-name", "insecure-skip-tls-verify", f"{kubefiles.FILES[0]}-data"),
    *("proxy-url", "disable-compression"),
)
_MODES = ("Never", "IfAvailable", "Always")
#: Logs, watches and forwarded ports each keep a connection for as long as they go on, and none may starve the others.
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=20)
#: What is read from a file or from the text itself: its key, and lightkube's.
_CERTIFICATES: Mapping[type, Mapping[str, str]] = {
    Cluster: {"certificate-authority": "certificate_auth"},
    User: {"client-certificate": "client_cert", "client-key": "client_key"},
}


class NotConfigured(ConfigError):
    """Nothing on this machine speaks of a Kubernetes."""


@dataclass(frozen=True)
class Config:
    """What a context says.

    Attributes:
        context: its name; ``default`` in a pod that has no kubeconfig.
        namespace: that it names, else ``default``; in a pod that of the pod.
        cluster: address and certificates of the API server.
        user: who asks, and by what.
        proxy: address of a proxy on the way to the server; "" for that of the environment, if any.
        server_name: that the server's certificate must be for; "" for that of its address.
        manner: in which the user's plugin is asked.
        impersonated: headers that have the server take requests for those of another user (``as`` and its like).
    """

    context: str
    namespace: str
    cluster: Cluster = field(repr=False)  # its address may hold a password, as that of a proxy may
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
    paths = kubefiles.paths()
    try:
        joined = kubefiles.joined(paths)
        _check_names(joined, context, paths)
        found = KubeConfig.from_dict(_alone(joined, context)) if paths else KubeConfig.from_service_account()
        chosen = found.get(context or None)
    except (LightkubeError, OSError, KeyError, TypeError) as error:
        raise _unreadable(error, context, paths) from error
    if chosen is None:
        raise _unreadable(LightkubeError("no current context"), "", paths)
    # lightkube knows nothing of these.
    cluster = _said(joined, "cluster", chosen.context.cluster)
    manner = _manner(_said(joined, "user", chosen.context.user).get("exec") or {}, cluster)
    proxy, name = cluster.get("proxy-url") or "", cluster.get("tls-server-name") or ""
    acting = tuple(_impersonated(_said(joined, "user", chosen.context.user)))
    user = chosen.user or User()
    return Config(chosen.context_name, chosen.namespace, chosen.cluster, user, proxy, name, manner, acting)


def _impersonated(user: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the headers that have the server take a user's requests for those of somebody else."""
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


def _said(joined: Mapping[str, Any], kind: str, name: str | None) -> Mapping[str, Any]:
    entries = joined.get(f"{kind}s", ())
    return next((each[kind] for each in entries if each["name"] == name), {})


def _manner(plugin: Mapping[str, Any], cluster: Mapping[str, Any]) -> Manner:
    mode = plugin.get("interactiveMode") or Manner.interactive_mode
    if mode not in _MODES:
        raise ConfigError(f"the kubeconfig's interactiveMode {mode} is not known", next_step=nearest(mode, _MODES))
    if not plugin.get("provideClusterInfo"):
        return Manner(mode)
    told = {key: cluster[key] for key in _TOLD if cluster.get(key)}
    if (authority := cluster.get(kubefiles.FILES[0])) and f"{kubefiles.FILES[0]}-data" not in told:
        with contextlib.suppress(OSError):  # which client() tells
            told[f"{kubefiles.FILES[0]}-data"] = base64.b64encode(Path(authority).read_bytes()).decode()
    for each in cluster.get("extensions") or ():
        if each.get("name") == "client.authentication.k8s.io/exec" and "extension" in each:
            told["config"] = each["extension"]
    return Manner(mode, told)


def client(config: Config, timeout: httpx.Timeout) -> httpx.Client:
    """Return an HTTP client of the API server, which sends the user's credentials with each request.

    Raises:
        ConfigError: a certificate cannot be read, or something is asked for that is not known here.
    """
    if problems := [*_certificate_problems(config.cluster), *_certificate_problems(config.user)]:
        raise ConfigError.of(f"context {config.context} of the kubeconfig cannot be used", problems)
    try:
        tls = verify_cluster(config.cluster, config.user, str)
        if config.server_name:
            _expect(tls, config.server_name)
        auth, proxy, server = auth_of(config.user, tls, config.manner), _proxy_of(config), config.cluster.server
        return httpx.Client(
            base_url=server,
            verify=tls,
            auth=auth,
            headers=[*config.impersonated],
            proxy=proxy,
            timeout=timeout,
            limits=_LIMITS,
            trust_env=False,
        )
    except httpx.InvalidURL:  # whose words are a part of it, as of a password
        why = "the address of its server, or of the proxy on the way there, is no URL"
        raise _unusable(config, f"{why}; a / or # in a password is written %2F or %23") from None
    except (LightkubeError, OSError, ValueError, ImportError) as error:
        raise _unusable(config, str(error)) from error


def _unusable(config: Config, why: str) -> ConfigError:
    what = f"context {config.context} of the kubeconfig cannot be used"
    return ConfigError(what, why=why, next_step="see: kubectl config view --minify")


def _proxy_of(config: Config) -> str | None:
    """Return the proxy on the way to the server: the kubeconfig's own, else that of the environment.

    httpx would look there too, but takes no networks in ``NO_PROXY``: it misses some and breaks on others.
    """
    if config.proxy:
        return config.proxy
    url, known = httpx.URL(config.cluster.server), getproxies()
    found = known.get(url.scheme) or known.get("all")
    if not found or _is_direct(url.host, url.port or 443, known.get("no", "")):
        return None
    return found if "://" in found else f"http://{found}"


def _is_direct(host: str, port: int, said: str) -> bool:
    """Whether a host is this machine, or ``NO_PROXY`` names it, its domain or, if it is an address, a network of it."""
    entries = [each.strip() for each in said.split(",")]
    if "*" in entries or host == "localhost" or proxy_bypass(host if ":" in host else f"{host}:{port}"):
        return True
    with contextlib.suppress(ValueError):  # a name
        address = ip_address(host)
        return address.is_loopback or any(address in network for network in _networks(entries))
    return False


def _networks(entries: list[str]) -> Iterator[IPv4Network | IPv6Network]:
    for entry in entries:
        with contextlib.suppress(ValueError):  # a name
            yield ip_network(entry, strict=False)


def _expect(tls: ssl.SSLContext, name: str) -> None:
    """Have a server's certificate be for `name`, whatever its address; httpx cannot say so behind a proxy."""

    def named(wrap: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *words, **options: wrap(*words, **{**options, "server_hostname": name})

    for each in ("wrap_socket", "wrap_bio"):
        setattr(tls, each, named(getattr(tls, each)))


def _check_names(joined: Mapping[str, Any], context: str, paths: list[Path]) -> None:
    """Have what a context names be there, and be whole.

    Raises:
        ConfigError: it is not.
    """
    name = _name(joined, context)
    said, where = _said(joined, "context", name), ", ".join(map(str, paths))
    if not said:
        return
    if not said["cluster"]:
        raise ConfigError(f"context {name} names no cluster", next_step="see: kubectl config get-contexts")
    for kind in _KINDS:
        wanted, known = said.get(kind), [each["name"] for each in joined[f"{kind}s"]]
        if wanted and wanted not in known:
            what = f"context {name} names {kind} {wanted}, which is not in {where}"
            raise ConfigError(what, next_step=nearest(wanted, known))
    plugin = _said(joined, "user", said.get("user")).get("exec", {"command": "-", "apiVersion": "-"})
    if missing := [Problem(f"exec.{key}", "is required") for key in ("command", "apiVersion") if not plugin.get(key)]:
        raise ConfigError.of(f"user {said['user']} of the kubeconfig {where} cannot be used", missing)


def _name(joined: Mapping[str, Any], context: str) -> str:
    return context or joined.get("current-context") or ""


def _alone(joined: Mapping[str, Any], context: str) -> dict[str, Any]:
    """Return a kubeconfig with what one context names and no more: what others do may be unfinished."""
    name = _name(joined, context)
    names = {"context": name, **_said(joined, "context", name)}
    kept = {
        f"{kind}s": [each for each in joined[f"{kind}s"] if each["name"] == names.get(kind)][:1]
        for kind in ("context", *_KINDS)
    }
    return {**joined, **kept}


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


def _unreadable(error: Exception, context: str, paths: list[Path]) -> ConfigError:
    where = ", ".join(map(str, paths))
    if context and "not found" in str(error):
        known = [entry["name"] for entry in kubefiles.joined(paths)["contexts"]] if paths else ["default"]
        what = f"there is no context {context!r} in {where or 'this pod, which has no kubeconfig'}"
        return ConfigError(what, why=str(error), next_step=nearest(context, known))
    nowhere = f"neither {' nor '.join(kubefiles.named())} nor a pod's service account"
    what, step = f"no Kubernetes is configured: {where or nowhere}", "see: kubectl config get-contexts"
    return (ConfigError if paths else NotConfigured)(what, why=str(error), next_step=step)
