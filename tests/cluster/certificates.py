"""Keys, certificates and tokens of one cluster, made anew with it, and the kubeconfigs that hold them."""

import base64
import datetime as dt
import ipaddress
import secrets
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.cluster import layout
from tests.cluster.shell import write

#: Who talks to the API server: a name of ours, its user, its group.
USERS = {
    "admin": ("admin", "system:masters"),
    "kube-controller-manager": ("system:kube-controller-manager", ""),
    "kube-scheduler": ("system:kube-scheduler", ""),
    "kube-proxy": ("system:kube-proxy", "system:node-proxier"),
    "kubelet": (f"system:node:{layout.NODE}", "system:nodes"),
    "coredns": ("system:coredns", "system:masters"),
}
_DAYS = 30


@dataclass(frozen=True)
class Pair:
    """A private key and its certificate."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    def save(self, name):
        """Write ``NAME.key`` and ``NAME.crt``; the key for its owner alone."""
        _save_key(name, self.key)
        write(layout.PKI / f"{name}.crt", self.certificate.public_bytes(serialization.Encoding.PEM).decode())
        return self


def make():
    """Make everything below the PKI folder, and a kubeconfig for each user."""
    layout.PKI.mkdir(parents=True, exist_ok=True, mode=0o700)
    authority = _authority("raykube-test").save("ca")
    front = _authority("raykube-test-front-proxy").save("front-proxy-ca")
    _issued(authority, "kube-apiserver", names=_names()).save("apiserver")
    _issued(authority, "kube-apiserver-kubelet-client", group="system:masters").save("apiserver-kubelet-client")
    _issued(front, "front-proxy-client").save("front-proxy-client")
    _save_key("service-account", key := ec.generate_private_key(ec.SECP256R1()))
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    write(layout.PKI / "service-account.pub", public.decode())
    tokens = {name: secrets.token_hex(32) for name in USERS}
    lines = [f'{tokens[name]},{user},{name},"{group}"\n' for name, (user, group) in USERS.items()]
    write(layout.PKI / "tokens.csv", "".join(lines))
    for name, token in tokens.items():
        _kubeconfig(name, token, authority.certificate)


def _names():
    cluster = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"]
    addresses = [layout.NODE_ADDRESS, layout.API_SERVICE, "127.0.0.1"]
    return [
        *(x509.DNSName(name) for name in ["localhost", *cluster]),
        *(x509.IPAddress(ipaddress.ip_address(address)) for address in addresses),
    ]


def _authority(name):
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    basics = x509.BasicConstraints(ca=True, path_length=None)
    known_by = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = _builder(subject, subject, key).add_extension(basics, critical=True)
    return Pair(key, builder.add_extension(known_by, critical=False).sign(key, hashes.SHA256()))


def _issued(authority, name, *, group="", names=()):
    key = ec.generate_private_key(ec.SECP256R1())
    parts = [x509.NameAttribute(NameOID.COMMON_NAME, name)]
    if group:
        parts.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, group))
    builder = _builder(x509.Name(parts), authority.certificate.subject, key)
    usages = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    builder = builder.add_extension(usages, critical=False)
    # Python from 3.13 on takes no certificate that does not say whose key has signed it.
    signed_by = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    builder = builder.add_extension(signed_by, critical=False)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return Pair(key, builder.sign(authority.key, hashes.SHA256()))


def _builder(subject, issuer, key):
    now = dt.datetime.now(dt.timezone.utc)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=_DAYS))
    )


def _save_key(name, key):
    path = layout.PKI / f"{name}.key"
    path.touch(mode=0o600)
    plain = serialization.NoEncryption()
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))


def _kubeconfig(name, token, authority):
    pem = authority.public_bytes(serialization.Encoding.PEM)
    server = {"server": layout.API, "certificate-authority-data": base64.b64encode(pem).decode()}
    path = layout.CONF / f"{name}.kubeconfig"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    write(
        path,
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "raykube-test", "cluster": server}],
            "users": [{"name": name, "user": {"token": token}}],
            "contexts": [{"name": "raykube-test", "context": {"cluster": "raykube-test", "user": name}}],
            "current-context": "raykube-test",
        },
    )
