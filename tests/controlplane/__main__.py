"""`python -m tests.controlplane build|up`: the tests' real Kubernetes for a person or a Makefile."""

import signal
import sys
import tempfile
from pathlib import Path

import click

from tests.controlplane import build as builder
from tests.controlplane import keeper
from tests.controlplane.plane import ControlPlane
from tests.controlplane.process import ProcessFailed


@click.group()
def main() -> None:
    """A real etcd and kube-apiserver (and friends), without containers or nodes."""


@main.command()
@click.option("--if-possible", is_flag=True, help="Where nothing can be built, say so and succeed, unless CI=true.")
def build(*, if_possible: bool) -> None:
    """Find the binaries or build them (minutes, once per machine); prints their folder."""
    try:
        click.echo(builder.find_or_build().folder)
    except builder.Unavailable as error:
        if not if_possible or builder.must_exist():
            raise
        click.echo(f"tests on the real Kubernetes will be skipped: {error}", err=True)


@main.command()
@click.option("--workloads/--no-workloads", default=True, help="Run controller-manager, scheduler and kwok nodes, too.")
@click.option("--audit", is_flag=True, help="Write the API server's audit log.")
def up(*, workloads: bool, audit: bool) -> None:
    """Run a cluster until Ctrl-C; prints the path of its kubeconfig as soon as it is ready."""
    binaries = builder.find_or_build()
    with (
        tempfile.TemporaryDirectory(prefix="ipe-controlplane-") as folder,
        ControlPlane(binaries, Path(folder), "controlplane", audit=audit) as plane,
    ):
        if workloads:
            plane.start_workloads()
        click.echo(plane.cluster.kubeconfig)
        click.echo(
            f"{plane.cluster.server} is ready; try: {binaries['kubectl']} --kubeconfig "
            f"{plane.cluster.kubeconfig} get namespaces\nCtrl-C ends it and deletes everything.",
            err=True,
        )
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            signal.pause()
        except KeyboardInterrupt:
            click.echo("stopping", err=True)


@main.command(hidden=True)
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("binaries", type=click.Path(path_type=Path))
def keep(folder: Path, binaries: Path) -> None:
    """Hold the clusters of one test run until its last worker is gone."""
    keeper.keep(folder, builder.Binaries(binaries))


if __name__ == "__main__":
    try:
        main(prog_name="python -m tests.controlplane")
    except (builder.Unavailable, ProcessFailed) as error:
        sys.exit(f"error: {error}")
