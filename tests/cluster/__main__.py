"""A real Kubernetes with KubeRay on this machine: python -m tests.cluster up | down | status | env | image | logs."""

import shlex
import sys

import click

from tests.cluster import addons, images, layout, machine
from tests.cluster.shell import ClusterError, console, run, step

_PACKAGES = "containerd runc containernetworking-plugins nftables conntrack iproute2 debootstrap iptables ipset"


@click.group(help=__doc__)
def main():
    """Collect the commands."""


@main.command()
@click.option("--with", "names", multiple=True, type=click.Choice(addons.NAMES), help="An add-on; may be repeated.")
@click.option("--install", is_flag=True, help="Install the Debian packages it needs first.")
def up(names, install):
    """Start the cluster, or heal it; cold 10 to 18 min, warm 15 s."""
    if install:
        with step(f"apt-get install {_PACKAGES}"):
            run("apt-get", "update", "-qq")
            run("apt-get", "install", "-y", "-qq", "--no-install-recommends", *_PACKAGES.split())
    machine.up(names)
    console.print(f"up: export KUBECONFIG={layout.KUBECONFIG}")


@main.command()
def down():
    """End it, and leave no process, mount, link, namespace or table."""
    machine.down()


@main.command()
def status():
    """Show every component; exit code 1 if one does not run."""
    rows = machine.status()
    for name, state in rows:
        click.echo(f"{name:<26}{state}")
    sys.exit(any(state.startswith(("ended", "not", "Not")) for _, state in rows))


@main.command()
def env():
    """Print what a shell evaluates to use kubectl: eval "$(python -m tests.cluster env)"."""
    for name, value in machine.environment().items():
        click.echo(f"export {name}={shlex.quote(value)}")


@main.command()
def image():
    """Build the images and hand them to the running cluster."""
    images.load(images.ALL)


@main.command()
@click.argument("component")
@click.option("--lines", default=50, show_default=True)
def logs(component, lines):
    """Show the end of a component's log."""
    click.echo(machine.log(component, lines))


if __name__ == "__main__":
    try:
        main.main(standalone_mode=False)
    except ClusterError as error:
        console.print(f"error: {error}", markup=False)
        sys.exit(1)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
