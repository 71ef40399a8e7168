"""The add-on that keeps objects: an S3 server, a process of the host that pods reach as they reach the API server."""

from contextlib import contextmanager

from pyarrow import fs

from tests.cluster import layout
from tests.cluster.kubectl import apply

_ADDRESS = f"{layout.NODE_ADDRESS}:7070"
URL = f"http://{_ADDRESS}"
HEALTH = "/health"
#: The name of the Secret that :func:`keys` makes.
KEYS = "bucket-keys"
_USER = {"AWS_ACCESS_KEY_ID": "raykube", "AWS_SECRET_ACCESS_KEY": "only-for-tests"}
_REGION = "us-east-1"


def words():
    """Return the server's arguments; its objects go with the cluster."""
    objects = layout.DATA / "objects"
    objects.mkdir(parents=True, exist_ok=True)
    access, secret = _USER.values()
    who = ["--access", access, "--secret", secret, "--region", _REGION]
    return [*who, "--port", _ADDRESS, "--health", HEALTH, "--quiet", "posix", objects]


def keys(namespace):
    """Give a namespace a Secret with the environment in which AWS's and Arrow's clients reach the server."""
    environ = {**_USER, "AWS_ENDPOINT_URL": URL, "AWS_DEFAULT_REGION": _REGION}
    metadata = {"name": KEYS, "namespace": namespace}
    apply({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": environ})


def store():
    """Return a client of the server, as a pyarrow file system."""
    access, secret = _USER.values()
    where = {"endpoint_override": _ADDRESS, "scheme": "http", "region": _REGION}
    return fs.S3FileSystem(access_key=access, secret_key=secret, allow_bucket_creation=True, **where)


def names(path):
    """Return the names of all objects below ``BUCKET/KEY``, without it."""
    found = store().get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True))
    return sorted(each.path.removeprefix(f"{path}/") for each in found if each.is_file)


@contextmanager
def made(name):
    """Have a bucket for as long as the block runs, and give its URI."""
    store().create_dir(name)
    try:
        yield f"s3://{name}"
    finally:
        store().delete_dir_contents(name)
