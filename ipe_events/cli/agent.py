"""``ipe agent run``: serve clusters.

What the agent may do is the cluster owner's word, so it comes from a file; the flags below are for first steps and for a laptop.
From a kubeconfig the agent only reads unless told otherwise. On a terminal the first synchronisation is shown as it goes; without
one, log lines tell it.
"""

import asyncio
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from ipe_events.cli.common import Session, common_options, pass_session, run, until_stopped
from ipe_events.tasks import end

if TYPE_CHECKING:
    from ipe_events.agent.config import AgentConfig
    from ipe_events.events.registry import AgentStatus


@click.group("agent")
def command() -> None:
    """Serve clusters: collect their changes, act on commands, answer questions."""


@command.command("run")
@click.option("--config", "config_file", metavar="FILE", help="AgentConfig (YAML): clusters, what is collected, grants, limits.")
@click.option("--kubeconfig", metavar="FILE", help="Clusters from this kubeconfig.  [$KUBECONFIG or ~/.kube/config]")
@click.option("--kube-context", "contexts", metavar="GLOB", multiple=True, help="Contexts to serve.  [the current one]")
@click.option("--in-cluster", is_flag=True, help="Serve the cluster in whose pod this runs.")
@click.option("--name", metavar="NAME", help="The cluster's name on the bus, when there is one.  [its context]")
@click.option("--collect", "always", metavar="RESOURCE", multiple=True, help="Collect this whether or not a handler asks.")
@click.option("--grant", "grants", metavar="HANDLER[=MODE]", multiple=True, help="Let a handler observe, propose or enforce.")
@click.option("--allow-writes/--read-only", "writes", default=None, help="Whether commands may change clusters.")
@click.option("--lease-namespace", metavar="NAMESPACE", help="Where the Lease of the writing agent lives.  [ipe-system]")
@click.option("--health-port", type=click.IntRange(0, 65_535), metavar="PORT", help="Serve /livez, /readyz and /metrics.")
@common_options
@pass_session
def run_command(
    session: Session,
    config_file: str | None,
    kubeconfig: str | None,
    contexts: tuple[str, ...],
    in_cluster: bool,
    name: str | None,
    always: tuple[str, ...],
    grants: tuple[str, ...],
    writes: bool | None,
    lease_namespace: str | None,
    health_port: int | None,
) -> None:
    """Run the agent until SIGTERM or Ctrl-C.

    \b
    Examples:
      ipe agent run --config agent.yaml
      ipe agent run --kube-context 'prod-*' --collect pods
      ipe agent run --kube-context kind-dev --grant scale-guard=enforce --allow-writes --lease-namespace default
    """
    from ipe_events.agent.config import AgentConfig, Clusters, load_config, quick_grant
    from ipe_events.events.refs import ResourceRef

    config = load_config(config_file) if config_file else AgentConfig()
    if kubeconfig or contexts or in_cluster:
        clusters = Clusters(
            name=name or "",
            in_cluster=in_cluster,
            kubeconfig=kubeconfig,
            contexts=contexts,
            allow_exec=config.clusters.allow_exec,
        )
        config = config.model_copy(update={"clusters": clusters})
    elif name:
        config = config.model_copy(update={"clusters": config.clusters.model_copy(update={"name": name})})
    updates: dict[str, object] = {"grants": (*config.grants, *map(quick_grant, grants))}
    if always:
        named = (str(ResourceRef.parse(text)) for text in always)
        updates["collect"] = config.collect.model_copy(update={"always": (*config.collect.always, *named)})
    if writes is not None:
        updates["act"] = config.act.model_copy(update={"writes": writes})
    if lease_namespace:
        updates["lease"] = config.lease.model_copy(update={"namespace": lease_namespace})
    if health_port is not None:
        updates["health_port"] = health_port
    run(_serve(session, config.model_copy(update=updates)))


async def _serve(session: Session, config: "AgentConfig") -> None:
    from ipe_events.agent.app import run_agent

    terminal = sys.stderr.isatty() and not session.quiet and not session.verbose
    session.configure_log("warning" if terminal or session.quiet else "info")
    stop = asyncio.Event()

    async def wait() -> None:
        await until_stopped()
        stop.set()

    waiting = asyncio.create_task(wait())
    progress = Progress() if terminal else None
    try:
        await run_agent(config, session.bus_settings(), stop=stop, on_progress=progress)
    finally:
        if progress is not None:
            progress.close()
        await end(waiting)


class Progress:
    """Shows the first synchronisation on a terminal: a line per cluster while it runs, one that stays when it is done."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True)
        self._status = self._console.status("connecting")
        self._status.start()
        self._done: set[str] = set()
        self._open = True

    def __call__(self, statuses: "Sequence[AgentStatus]") -> None:
        """Show where each cluster is."""
        for status in statuses:
            if status.state == "connected" and status.cluster not in self._done:
                self._done.add(status.cluster)
                self._console.print(f"[green]✓[/] {summary(status)}", highlight=False)
        waiting = [status for status in statuses if status.cluster not in self._done]
        if waiting:
            self._status.update("; ".join(map(summary, waiting)))
        elif self._open:
            self.close()
            self._console.print("All clusters are on the bus. Ctrl-C ends the agent.", style="dim", highlight=False)

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._open = False
        self._status.stop()


def summary(status: "AgentStatus") -> str:
    """One cluster in one line: ``prod-eu v1.37.2: connected, 12 resources, 3,214 objects, 1 refused (secrets)``."""
    refused = sorted(name for name, state in status.resources.items() if state.startswith("refused"))
    parts = [
        status.state,
        f"{len(status.resources) - len(refused)} resources",
        f"{sum(status.objects.values()):,} objects",
    ]
    if refused:
        parts.append(f"{len(refused)} refused ({', '.join(refused[:5])}{'…' if len(refused) > 5 else ''})")
    if status.writes:
        parts.append("writes")
    version = f" {status.server_version}" if status.server_version else ""
    return f"{status.cluster}{version}: {', '.join(parts)}"
