"""Heads of this machine that answer as tests have them."""

import json
import time
from dataclasses import replace

from raykube.backends import Status
from raykube.backends.local import records
from raykube.backends.local.backend import Local
from raykube.errors import NotFound, Unreachable
from tests.servers import Quiet


class Ray:
    """The answers of a head: of one job, or that it has none. What it is asked for is kept in `asked`."""

    def __init__(self, job=None, *, takes=True):
        self.details, self.takes, self.asked = job, takes, []

    def job(self, submission_id):
        if self.details is None:
            raise NotFound(f"no {submission_id}")
        return self.details

    def stop(self, submission_id):
        self.asked.append(f"stop {submission_id}")

    def no_answer(self, *_):
        raise Unreachable("no answer")

    def submit(self, body):
        self.asked.append(f"submit {body['submission_id']}")
        if not self.takes:
            self.no_answer()


class Learning(Ray):
    """A head that knows a job once its POST is through; `meanwhile` happens while that is under way."""

    def __init__(self, meanwhile=lambda: None, **jobs):
        super().__init__()
        self.meanwhile, self.states = meanwhile, {name.replace("_", "-"): state for name, state in jobs.items()}

    def job(self, submission_id):
        if submission_id in self.states:
            return {"status": self.states[submission_id], "message": ""}
        raise NotFound(f"no {submission_id}")

    def submit(self, body):
        super().submit(body)
        self.meanwhile()
        self.states[body["submission_id"]] = "RUNNING"

    def stop(self, submission_id):
        if self.job(submission_id):
            super().stop(submission_id)
            self.states[submission_id] = "STOPPED"


def sent_anew(record, first, head="h"):
    """Have the name of a run sent again: after its end, or, with 1, after it was deleted. Return the new record."""
    new = replace(record, nonce="new", submitted=time.time(), first=first, head=head)
    records.save(new)
    records.reopen(record.name, first)
    return new


class Dashboard(Quiet):
    """A head. Its jobs run until asked for thrice; its Serve refuses what says so, and gives no answer to silence."""

    def do_GET(self):  # noqa: N802 - http.server calls it so
        if self.path == "/api/version" and self.server.refused:
            self.server.asked.append(self.path)
            self.answer(self.server.refused.pop(), {})
            return
        if self.path == "/api/serve/applications/":
            self.answer(200, {"applications": self.server.applications})
            return
        if self.path.startswith("/api/jobs/"):
            self.server.asked.append(self.path)
        state = "RUNNING" if len(self.server.asked) < 3 else "STOPPED"
        self.answer(200, {"ray_version": "2", "status": state})

    def do_PUT(self):  # noqa: N802 - http.server calls it so
        apps = json.loads(self.body())["applications"]
        self.server.attempts.append([app["runtime_env"]["env_vars"].get("RAYKUBE_ATTEMPT") for app in apps])
        self.server.asked.append([app["name"] for app in apps])
        words = {app["runtime_env"]["env_vars"].get("WORD") for app in apps}
        self.answer(400 if "refuse" in words else 503 if "silence" in words else 200, {})


class Answering(Local):
    """This machine, whose head gives these answers, one after another."""

    def __init__(self, *answers):
        self.answers = iter(answers)

    def status(self, name, kind=None):  # noqa: ARG002 - it has one run
        answer = next(self.answers)
        if isinstance(answer, Exception):
            raise answer
        return Status(name, "job", answer)


SILENT = Unreachable("no answer")
