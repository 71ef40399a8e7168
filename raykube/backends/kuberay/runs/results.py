"""What a run's script returned: from its head or, once that is gone, from its storage."""

from __future__ import annotations

from raykube import wire
from raykube.backends.kuberay import storage
from raykube.backends.kuberay.runs.look import Look
from raykube.backends.kuberay.runs.rayjobs import storage_of, was_in_ray
from raykube.errors import BackendError, Forbidden, NotFound
from raykube.wire import Result


def result(look: Look) -> Result | None:
    """Return a run's result; None when its script has not returned one (yet).

    Raises:
        Forbidden: this user may not ask the head, and the storage has none.
        BackendError: the head does not answer, or is gone, and there is no storage that would have kept it.
    """
    away, text = None, None
    try:
        text = _from_head(look)
    except BackendError as error:  # a user who may not ask the head may still read the storage
        away = error
    if text is None:
        text = storage.read(look.kube, look.job, wire.RESULT_FILE).decode()
    if away and not text:
        _check(look, away)
    return Result.from_json(text) if text else None


def _from_head(look: Look) -> str | None:
    """Return the result in the state that the run's pod leaves, "" for none yet; None when there is no such state.

    Raises:
        NotFound: the cluster is gone, or the driver's node.
        Forbidden, BackendError: the head may not be asked, or does not answer.
    """
    head, node = look.driver()
    if not node:
        return None
    try:
        return head.state(look.name, node).get("result")
    except NotFound:
        head.api.log(node, head.log_file, last_lines=1)  # a hand-written RayJob leaves no state, but has a log
        return None


def _check(look: Look, away: BackendError) -> None:
    """Raise if there may be a result that cannot be read. If a storage has none, the script returned none."""
    if isinstance(away, Forbidden):
        raise away
    if storage_of(look.job) or not was_in_ray(look.job):
        return
    if not isinstance(away, NotFound):
        raise away
    if look.status().is_terminal:
        raise storage.lost(look.job, f"the result of {look.name}, if it had one,", wire.RESULT_FILE)
