"""Creating, owning and deleting objects that others may create and delete at the same time."""

from __future__ import annotations

import base64
import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from raykube import differences, marks
from raykube.backends.kuberay.runs.rayjobs import selected
from raykube.backends.kubernetes.fields import is_leaving, labels_of, name_of, spec_of
from raykube.backends.kubernetes.kubeapi import Kube, Object
from raykube.backends.kubernetes.refusals import Unable, UnknownKind
from raykube.errors import BackendError, Conflict, Forbidden, NotFound, RaykubeError, Unreachable

GONE_S = 90.0
_POLL_S = 0.1
_TRIES = 5
#: Selects the events that tell of something wrong.
WARNINGS = {"fieldSelector": "type=Warning"}
_CONTENT = ("data", "binaryData", "spec")
_OWNERS = ("RayJob", "RayService", "RayCluster")
_NOUNS = {"RayJob": "run", "RayService": "service", "RayCluster": "cluster"}
_COMMANDS = _NOUNS | {"RayJob": "job"}
_log = logging.getLogger("raykube")
OPERATOR = "look whether the KubeRay operator runs: kubectl get pods -A | grep kuberay"


def found(kube: Kube, kind: str, name: str, *, otherwise: str = "") -> Object:
    """Return one of Ray's objects, by name.

    Raises:
        NotFound: there is none; `otherwise` is added to the next step, which is to list those there are.
    """
    try:
        return kube.get(kind, name)
    except NotFound as error:
        raise NotFound(
            f"there is no {_NOUNS[kind]} {name} in namespace {kube.namespace} of {kube.server}",
            why=error.why,
            next_step=f"see: raykube {_COMMANDS[kind]} list{otherwise}",
        ) from error


def visible(kube: Kube, kind: str, **selectors: str) -> list[Object]:
    """Return the objects of a kind; none if this user may not see them, or the cluster does not know the kind."""
    with contextlib.suppress(Forbidden, UnknownKind):
        return kube.listed(kind, **selectors)
    return []


def is_ours(thing: Mapping[str, Any]) -> bool:
    """Whether raykube made an object."""
    return marks.MANAGED_BY.items() <= labels_of(thing).items()


def check_free(kube: Kube, thing: Mapping[str, Any]) -> None:
    """Refuse a name that another kind of Ray's objects already has.

    A name shared by a run and a service could mean only one of them. And KubeRay names a head's Service after its
    owner, whatever the owner's kind: two owners of one name would share a Service, and one would lose its head.

    Raises:
        Conflict: an object of another kind has the name.
    """
    name = thing["metadata"]["name"]
    for kind in (each for each in _OWNERS if each != thing["kind"]):
        with contextlib.suppress(Forbidden):  # of a kind that this user may not see nothing is known
            known = kube.find(kind, name)
            if known and not _on_another(thing, known):
                raise Conflict(f"the name {name!r} is taken by a {_NOUNS[kind]}", next_step="choose another name")


def _on_another(*pair: Mapping[str, Any]) -> bool:
    """Whether the two are a RayCluster and a RayJob that has no cluster of its own."""
    kinds = {each["kind"]: each for each in pair}
    return kinds.keys() == {"RayJob", "RayCluster"} and bool(selected(kinds["RayJob"]))


def created(kube: Kube, thing: Mapping[str, Any]) -> Object | None:
    """Create an object and return it; return None when one of that name exists."""
    try:
        return kube.create(thing)
    except Conflict:
        return None


def owned(part: Mapping[str, Any], owner: Object) -> dict[str, Any]:
    """Return an object as owned by `owner`: it is deleted along with it."""
    metadata = owner["metadata"]
    reference = {"apiVersion": "ray.io/v1", "kind": owner["kind"], "name": metadata["name"], "uid": metadata["uid"]}
    # Not blockOwnerDeletion: some servers grant it only to users who may change the owner's finalizers, and nothing
    # needs it: owners are deleted before what they own.
    references = [{**reference, "controller": True}]
    return {**part, "metadata": {**part["metadata"], "ownerReferences": references}}


def claim(kube: Kube, part: Mapping[str, Any], owner: Object) -> Object:
    """Create an object owned by `owner`, and return the object that has its name now: the new or an existing one.

    An existing object of `owner` is returned as it is. One whose owners are all gone is replaced. One with the same
    content is shared with its other owners, and deleted with the last of them; if nobody owns it, it is used as it is.
    One with other content that nobody owns is updated if raykube made it.

    Raises:
        Conflict: an object with other content is somebody else's, and is left alone; or others create and delete it at
            the same time.
    """
    body, kind, name = owned(part, owner), part["kind"], part["metadata"]["name"]
    for _ in range(_TRIES):
        if made := created(kube, body):
            return made
        known = kube.find(kind, name)
        if known is None:
            continue
        holders = known["metadata"].get("ownerReferences") or []
        if not holders:
            return _unowned(kube, known, body)
        if any(each["uid"] == owner["metadata"]["uid"] for each in holders):
            return known
        if not (living := next((each for each in holders if _lives(kube, each)), None)):
            delete(kube, known)
        elif not _says_the_same(known, body):
            raise _taken(known, f"it belongs to {living['kind']} {living['name']}, and holds something else")
        elif shared := _shared(kube, known, body):
            return shared
    raise _taken({"kind": kind, **part}, "others create and delete it at once")


def _unowned(kube: Kube, known: Object, body: Mapping[str, Any]) -> Object:
    if _says_the_same(known, body):
        return known
    if not is_ours(known):
        raise _taken(known, "nobody owns it, and it holds something else")
    references = {"ownerReferences": body["metadata"]["ownerReferences"]}
    content = {key: body[key] for key in (*_CONTENT, "stringData") if key in body}
    return kube.patch(body["kind"], name_of(known), {"metadata": references, **content})


def _says_the_same(known: Mapping[str, Any], body: Mapping[str, Any]) -> bool:
    """Whether an object has all the wanted content; what the server has added does not count."""
    texts = {key: base64.b64encode(text.encode()).decode() for key, text in (body.get("stringData") or {}).items()}
    wanted = {**{key: body.get(key) or {} for key in _CONTENT}, "data": {**(body.get("data") or {}), **texts}}
    return not any([*differences.of_objects(value, known.get(key) or {}, key)] for key, value in wanted.items())


def _shared(kube: Kube, known: Object, body: Mapping[str, Any]) -> Object | None:
    """Add our owner to an object that others own, and return it; return None when it was changed meanwhile."""
    metadata = known["metadata"]
    (ours,) = body["metadata"]["ownerReferences"]
    references = [*metadata["ownerReferences"], {**ours, "controller": False}]  # Kubernetes allows one controller
    change = {"metadata": {"ownerReferences": references, "resourceVersion": metadata.get("resourceVersion")}}
    try:
        return kube.patch(body["kind"], name_of(known), change)
    except Conflict:
        return None


def _lives(kube: Kube, reference: Mapping[str, Any]) -> bool:
    """Whether an owner still exists; one of a kind that is not KubeRay's always counts as existing."""
    if reference["kind"] not in _OWNERS:
        return True
    known = kube.find(reference["kind"], reference["name"])
    return known is not None and known["metadata"]["uid"] == reference["uid"]


def _taken(known: Mapping[str, Any], why: str) -> Conflict:
    what = f"{known['kind']} {known['metadata']['name']}"
    step = f"choose another name, or look whether it is in use: kubectl describe {what.lower()}"
    return Conflict(f"the name of {what} is taken", why=why, next_step=step)


def difference(known: Object, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return the patch that gives `known` the spec of `wanted`, and adds the labels and annotations of `wanted`."""
    metadata = {key: wanted["metadata"][key] for key in ("labels", "annotations") if key in wanted["metadata"]}
    return {"metadata": metadata, "spec": replacement(spec_of(known), wanted["spec"])}


def replacement(known: Any, wanted: Any) -> Any:
    """Return the merge patch that turns `known` into exactly `wanted`."""
    if not isinstance(known, Mapping) or not isinstance(wanted, Mapping):
        return wanted
    gone = {key: None for key in known if key not in wanted}
    return gone | {key: replacement(known.get(key), value) for key, value in wanted.items()}


def delete(kube: Kube, thing: Object) -> None:
    """Delete exactly this object, not a newer one of its name; what it owns is deleted after it."""
    uid = {"uid": thing["metadata"]["uid"]}
    try:
        kube.delete(thing["kind"], name_of(thing), propagationPolicy="Background", preconditions=uid)
    except (NotFound, Conflict):
        return


def wait_gone(kube: Kube, kind: str, name: str) -> None:
    """Wait until an object that was deleted is gone, so that its name is free.

    Raises:
        BackendError: its finalizers hold it, or the API server does not say whether it is gone.
    """

    def left() -> BackendError | None:
        known = kube.find(kind, name)
        if not known or not is_leaving(known):
            return None
        return BackendError(
            f"{kind} {name} is not gone {GONE_S:g} s after it was deleted",
            why=f"its finalizers: {known['metadata'].get('finalizers')}",
            next_step=OPERATOR,
        )

    until_gone(left)


def until_gone(left: Callable[[], BackendError | None]) -> None:
    """Wait until `left` returns None, even if the server is away meanwhile; raise what it returns after ``GONE_S``."""
    deadline = time.monotonic() + GONE_S
    while error := _left_or_unreachable(left):
        if time.monotonic() > deadline:
            raise error
        time.sleep(_POLL_S)


def _left_or_unreachable(left: Callable[[], BackendError | None]) -> BackendError | None:
    try:
        return left()
    except Unreachable as error:
        return error


@contextlib.contextmanager
def needed_by(kube: Kube, owner: Object, *, is_new: bool) -> Iterator[None]:
    """Remove a newly made owner if the block that makes what it needs fails: it would wait in vain on its cluster.

    Raises:
        BackendError: it could not be removed either.
    """
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if is_new:
            _log.info("interrupted before %s %s had all that it needs: it is removed", owner["kind"], name_of(owner))
            _undo(kube, owner, interrupt)
        raise
    except RaykubeError as error:
        # A server that does not answer cannot remove it either. Sending the same plan again makes what is missing.
        if is_new and (isinstance(error, Unable) or not isinstance(error, Unreachable)):
            _undo(kube, owner, error)
        raise


def _undo(kube: Kube, owner: Object, refusal: BaseException) -> None:
    kind, name = owner["kind"], name_of(owner)
    try:
        delete(kube, owner)
        wait_gone(kube, kind, name)
    except BackendError as error:
        raise BackendError(
            f"{kind} {name} is left without what it needs: {error.what}",
            why=str(refusal),
            next_step=f"raykube {_COMMANDS[kind]} delete {name}",
        ) from refusal
