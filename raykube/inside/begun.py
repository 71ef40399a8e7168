"""What a search began with; a resumed sweep keeps these values, whatever Tune is given then."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from raykube.inside import storage
from raykube.inside.space import described
from raykube.inside.stages import Stage
from raykube.inside.tasks import Task

log = logging.getLogger("raykube")
_SEARCH_FILE = "search.json"


def as_begun(stage: Stage, task: Task, trials: int, fit: int, *, goes_on: bool) -> tuple[int, int, tuple[str, ...]]:
    """Return the number of trials, how many run at once, and notes on what has changed since the search began.

    A new search records its values; one that `goes_on` keeps them. `fit` is how many trials the cluster fits at once.
    """
    path = storage.join(stage.path, _SEARCH_FILE)
    now = {"trials": trials, "at_once": min(trials, fit), "space": described(task.config)}
    begun = json.loads(storage.read_from(path) or "{}") if goes_on else {}
    if not begun:
        storage.write_text(path, json.dumps(now))
        return trials, min(trials, fit), ()
    at_once = begun.get("at_once", min(begun["trials"], fit))  # an older raykube did not note it
    notes = tuple(filter(None, (_changes_note(begun, now), _room_note(at_once, begun["trials"], fit))))
    for note in notes:
        log.warning("%s", note)
    return begun["trials"], at_once, notes


def _changes_note(begun: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return a note on what the script has changed since; "" if nothing but the order of keys."""

    def told(search: Mapping[str, Any], name: str) -> str:
        return json.dumps(search[name], sort_keys=True)

    changed = [name for name in ("trials", "space") if told(now, name) != told(begun, name)]
    if not changed:
        return ""
    note = f"the search went on as it began, with {begun['trials']} trials: changed since, and not heeded, are its "
    return f"{note}{' and '.join(changed)}; for another search give the run another name"


def _room_note(at_once: int, trials: int, fit: int) -> str:
    if at_once == min(trials, fit):
        return ""
    return f"the search went on with {at_once} trials at once, as it began; the cluster has room for {fit} now"
