"""Every command, option and argument of the command line: each is a promise."""

import click

from raykube.cli import raykube

PLACE = "--on -n --namespace --context"
PLAN = "--dry-run -o --output --json"
CODE = "--working-dir --excludes --pip --runtime-env --runtime-env-json --env"
RESERVED = "--entrypoint-num-cpus --entrypoint-num-gpus --entrypoint-memory --entrypoint-resources"
LIMITS = "--max-retries --timeout-s --pending-timeout-s --keep-cluster-s"
#: This table is changed on purpose or not at all. The arguments stand last, in their order.
PROMISED = {
    "doctor": f"{PLACE} --json",
    "job submit": f"{PLACE} {PLAN} {CODE} {RESERVED} {LIMITS} -f --filename --cluster --workers --name --metadata-json "
    "--queue --no-wait entrypoint...",
    "job list": f"{PLACE} --json",
    "job status": f"{PLACE} --json name",
    "job logs": f"{PLACE} -f --follow --source name",
    "job wait": f"{PLACE} --timeout-s --json name",
    "job result": f"{PLACE} --json name",
    "job why": f"{PLACE} --json name",
    "job stop": f"{PLACE} names...",
    "job delete": f"{PLACE} names...",
    "service deploy": f"{PLACE} {PLAN} {CODE} --model --route-prefix --replicas --num-gpus --deployment --workers "
    "--args --timeout-s name import_path",
    "service list": f"{PLACE} --json",
    "service status": f"{PLACE} --json name",
    "service why": f"{PLACE} --json name",
    "service forward": f"{PLACE} --port name",
    "service logs": f"{PLACE} -f --follow name",
    "service delete": f"{PLACE} names...",
    "cluster create": f"{PLACE} {PLAN} --workers --timeout-s --no-wait name",
    "cluster list": f"{PLACE} --json",
    "cluster status": f"{PLACE} --json name",
    "cluster why": f"{PLACE} --json name",
    "cluster forward": f"{PLACE} --port name",
    "cluster delete": f"{PLACE} names...",
}


def commands(group, *before):
    """Yield each command below a group, by its words."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, *before, name)
        else:
            yield " ".join([*before, name]), command


def taken(command):
    """Return the options of a command, sorted, and after them its arguments."""
    options = [word for each in command.params if isinstance(each, click.Option) for word in each.opts]
    arguments = [each for each in command.params if isinstance(each, click.Argument)]
    return sorted(options), [f"{each.name}{'...' if each.nargs == -1 else ''}" for each in arguments]


def promised(words):
    options = [word for word in words.split() if word.startswith("-")]
    return sorted(options), words.split()[len(options) :]


def test_commands_options_and_arguments_are_the_agreed_ones():
    found = {words: taken(command) for words, command in commands(raykube)}
    assert found == {words: promised(text) for words, text in PROMISED.items()}
