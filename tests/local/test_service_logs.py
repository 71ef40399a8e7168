"""The log of services on a real head: what their replicas log and print, in every way."""

import httpx
import pytest

import raykube as rk
from tests.basics import until
from tests.saying import SAY, counted, once, until_said

pytestmark = pytest.mark.local

APP = (
    SAY
    + """
from ray import serve

@serve.deployment
class Model:
    def __init__(self, name):
        self.name = name
        say(name + " built")

    def __call__(self, request):
        what = request.query_params["say"]
        say(what)
        if what == "dies":
            os._exit(3)
        return what

def app(args):
    encoding = {"logging_config": {"encoding": args["encoding"]}}
    return Model.options(**encoding).bind(args["name"])
"""
)


@pytest.fixture(scope="module")
def services(tmp_path_factory):
    """Give two services whose names begin alike; the second logs as JSON."""
    folder = tmp_path_factory.mktemp("code")
    (folder / "talks.py").write_text(APP)
    made = []
    for name, encoding in {"talks": "TEXT", "talks_on": "JSON"}.items():
        app = {"name": name, "args": {"name": name, "encoding": encoding}, "route_prefix": f"/{name}"}
        app |= {"import_path": "talks:app", "ray_actor_options": {"num_cpus": 0.5}}
        service = rk.Service(name=name.replace("_", "-"), apps=(rk.App(**app),), working_dir=folder)
        made.append(rk.deploy(service, "local"))
    yield made
    for each in made:
        each.delete()


def ask(service, what):
    return httpx.get(service.url, params={"say": what}, timeout=60, trust_env=False).text


@pytest.mark.parametrize("which", [0, 1])
def test_log_of_a_service_shows_all_that_its_replica_writes_once(services, which):
    one, other = services[which], services[1 - which]
    assert ask(one, f"asked {which}") == f"asked {which}"
    assert ask(other, "elsewhere")
    assert ask(one, f"last {which}")
    built = f"{('talks', 'talks_on')[which]} built"
    for lines in (list(one.logs()), until_said(one.logs(follow=True), f"last {which}")):
        for what in (built, f"asked {which}", f"last {which}"):
            assert counted(lines, what) == once(what)
        assert not any(line.startswith((":job_id:", ":actor_name:")) for line in lines)
    assert not counted(one.logs(), f"asked {1 - which}")


def test_log_of_a_service_shows_what_a_replica_wrote_before_it_died(services):
    one = services[0]
    ask(one, "dies")
    built = once("talks built")
    until(lambda: counted(one.logs(), "talks built") == built + built, "another replica is built", 60)
    assert counted(one.logs(), "dies") == once("dies")
