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
from raykube.backends.kubernetes.refusals import Unable
from raykube.errors import BackendError, Conflict, Forbidden, NotFound, RaykubeError, Unreachable

GONE_S = 90.0
_POLL_S = 0.1
_TRIES = 5
_CONTENT = ("data", "binaryData", "spec")
_OWNERS = ("RayJob", "RayService", "RayCluster")
_NOUNS = {"RayJob": "run", "RayService": "service", "RayCluster": "cluster"}
_COMMANDS = _NOUNS | {"RayJob": "job"}
_log = logging.getLogger("raykube")
OPERATOR = "look whether the KubeRay operator runs: kubectl get pods -A | grep kuberay"


def found(kube: Kube, kind: str, name: str, *, otherwise: str = "") -> Object:
    """Return one of Ray's objects, by name.

    Raises:
        NotFound: there is none; `otherwise` adds what else to do than to see which there are.
    """
    try:
        return kube.get(kind, name)
    except NotFound as error:
        raise NotFound(
            f"there is no {_NOUNS[kind]} {name} in namespace {kube.namespace} of {kube.server}",
            why=error.why,
            next_step=f"see: raykube {_COMMANDS[kind]} list{otherwise}",
        ) from error


def is_ours(thing: Mapping[str, Any]) -> bool:
    """Whether raykube has made an object."""
    return marks.MANAGED_BY.items() <= labels_of(thing).items()


def check_free(kube: Kube, thing: Mapping[str, Any]) -> None:
    """Refuse a name that Ray's objects of another kind have.

    Of a run and a service of one name only one could be spoken of. The Service of a head is named after what the head
    is for, of whatever kind: KubeRay gives two of one name the same, and one loses its head.

    Raises:
        Conflict: one of another kind has it.
    """
    name = thing["metadata"]["name"]
    for kind in (each for each in _OWNERS if each != thing["kind"]):
        with contextlib.suppress(Forbidden):  # who may not see that kind has none
            known = kube.find(kind, name)
            if known and not _on_another(thing, known):
                raise Conflict(f"the name {name!r} is taken by a {_NOUNS[kind]}", next_step="choose another name")


def _on_another(*pair: Mapping[str, Any]) -> bool:
    """Whether of a run and a cluster the run has no cluster of its own."""
    kinds = {each["kind"]: each for each in pair}
    return kinds.keys() == {"RayJob", "RayCluster"} and bool(selected(kinds["RayJob"]))


def created(kube: Kube, thing: Mapping[str, Any]) -> Object | None:
    """Create an object and return it; None when one of that name exists."""
    try:
        return kube.create(thing)
    except Conflict:
        return None


def owned(part: Mapping[str, Any], owner: Object) -> dict[str, Any]:
    """Return an object as the owner's own: it goes when the owner does."""
    metadata = owner["metadata"]
    reference = {"apiVersion": "ray.io/v1", "kind": owner["kind"], "name": metadata["name"], "uid": metadata["uid"]}
    # Not blockOwnerDeletion: some servers grant it only to who may change the finalizers of the owner, and nobody waits
    # for it: owners are deleted before what they own.
    references = [{**reference, "controller": True}]
    return {**part, "metadata": {**part["metadata"], "ownerReferences": references}}


def claim(kube: Kube, part: Mapping[str, Any], owner: Object) -> Object:
    """Create an object as the owner's own, and return what has its name now: that, or what the owner had already.

    What an owner that is gone has left makes room. What says the same is shared with its owners, and goes with the last
    of them; if nobody owns it, it is used as it is. What nobody owns and raykube made is brought up to date.

    Raises:
        Conflict: it is somebody else's and says something else: it is left alone.
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
    """Whether an object says all that is wanted; what the server has added is no difference."""
    texts = {key: base64.b64encode(text.encode()).decode() for key, text in (body.get("stringData") or {}).items()}
    wanted = {**{key: body.get(key) or {} for key in _CONTENT}, "data": {**(body.get("data") or {}), **texts}}
    return not any([*differences.of_objects(value, known.get(key) or {}, key)] for key, value in wanted.items())


def _shared(kube: Kube, known: Object, body: Mapping[str, Any]) -> Object | None:
    """Make an object that others own ours too; None when it was changed meanwhile."""
    metadata = known["metadata"]
    (ours,) = body["metadata"]["ownerReferences"]
    references = [*metadata["ownerReferences"], {**ours, "controller": False}]  # Kubernetes allows one controller
    change = {"metadata": {"ownerReferences": references, "resourceVersion": metadata.get("resourceVersion")}}
    try:
        return kube.patch(body["kind"], name_of(known), change)
    except Conflict:
        return None


def _lives(kube: Kube, reference: Mapping[str, Any]) -> bool:
    """Whether an owner is still there; of kinds that are none of KubeRay's nobody here can tell."""
    if reference["kind"] not in _OWNERS:
        return True
    known = kube.find(reference["kind"], reference["name"])
    return known is not None and known["metadata"]["uid"] == reference["uid"]


def _taken(known: Mapping[str, Any], why: str) -> Conflict:
    what = f"{known['kind']} {known['metadata']['name']}"
    step = f"choose another name, or look whether it is in use: kubectl describe {what.lower()}"
    return Conflict(f"the name of {what} is taken", why=why, next_step=step)


def difference(known: Object, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return the patch that makes `known` say what `wanted` says; what only the server or others added to it stays."""
    metadata = {key: wanted["metadata"][key] for key in ("labels", "annotations") if key in wanted["metadata"]}
    return {"metadata": metadata, "spec": replacement(spec_of(known), wanted["spec"])}


def replacement(known: Any, wanted: Any) -> Any:
    """Return the merge patch that leaves of `known` just `wanted`."""
    if not isinstance(known, Mapping) or not isinstance(wanted, Mapping):
        return wanted
    gone = {key: None for key in known if key not in wanted}
    return gone | {key: replacement(known.get(key), value) for key, value in wanted.items()}


def delete(kube: Kube, thing: Object) -> None:
    """Delete just this object, not one that has taken its name meanwhile; what it owns goes after it."""
    uid = {"uid": thing["metadata"]["uid"]}
    try:
        kube.delete(thing["kind"], name_of(thing), propagationPolicy="Background", preconditions=uid)
    except (NotFound, Conflict):
        return


def wait_gone(kube: Kube, kind: str, name: str) -> None:
    """Wait until an object that was deleted is gone, so that its name is free.

    Raises:
        BackendError: it stays, held by its finalizers; or nobody tells whether it does.
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
    """Wait until nothing is left, else raise what `left` returns of it; a server that is away meanwhile may be back."""
    deadline = time.monotonic() + GONE_S
    while error := _told(left):
        if time.monotonic() > deadline:
            raise error
        time.sleep(_POLL_S)


def _told(left: Callable[[], BackendError | None]) -> BackendError | None:
    try:
        return left()
    except Unreachable as error:
        return error


@contextlib.contextmanager
def needed_by(kube: Kube, owner: Object, *, is_new: bool) -> Iterator[None]:
    """Remove an owner that was just made if it does not get what it needs: it would wait for that, on its cluster.

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
        # Where nobody answers nothing can be removed either: the same plan, sent again, makes what is missing.
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
