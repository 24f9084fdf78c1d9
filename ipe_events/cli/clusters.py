"""``ipe clusters``: what the agents say of their clusters, and how long ago they said it."""

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from ipe_events.cli.common import Session, common_options, output_options, pass_session, run
from ipe_events.cli.printers import Column, Table, print_items, print_record
from ipe_events.clock import SYSTEM
from ipe_events.durations import ago
from ipe_events.errors import BusNotFound, ConfigError, SchemaError, UsageError

if TYPE_CHECKING:
    from ipe_events.bus.connection import Bus
    from ipe_events.events.registry import AgentStatus

LATE_SECONDS = 60.0
"""An agent that has not written its status for so long counts as silent."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """One cluster: its agent's last status, and that status' age in seconds."""

    status: "AgentStatus"
    age: float

    @property
    def state(self) -> str:
        """The agent's word, or ``silent`` when it is too old to be believed."""
        return "silent" if self.age > LATE_SECONDS else self.status.state

    @property
    def watched(self) -> int:
        """How many resources are watched."""
        return sum(state == "watching" for state in self.status.resources.values())

    @property
    def troubles(self) -> dict[str, str]:
        """Resource → why it is not collected."""
        return {name: state for name, state in self.status.resources.items() if state.startswith(("refused", "failing"))}

    def as_data(self) -> dict[str, Any]:
        """The cluster as a JSON object."""
        said = self.status.model_dump(mode="json")
        return {"name": self.status.cluster, "age_seconds": round(self.age, 1), **said, "state": self.state}


TABLE: Table[Cluster] = Table(
    columns=(
        Column("NAME", lambda cluster: cluster.status.cluster),
        Column("STATE", lambda cluster: cluster.state),
        Column("VERSION", lambda cluster: cluster.status.server_version),
        Column("RESOURCES", lambda cluster: f"{cluster.watched}/{len(cluster.status.resources)}"),
        Column("OBJECTS", lambda cluster: sum(cluster.status.objects.values())),
        Column("WRITES", lambda cluster: cluster.status.writes),
        Column("SEEN", lambda cluster: f"{ago(cluster.age)} ago"),
        Column("EPOCH", lambda cluster: cluster.status.epoch, wide=True),
        Column("UID", lambda cluster: cluster.status.cluster_uid, wide=True),
        Column("AGENT", lambda cluster: cluster.status.agent, wide=True),
        Column("TROUBLE", lambda cluster: "; ".join(f"{key} {why}" for key, why in cluster.troubles.items()), wide=True),
    ),
    name=lambda cluster: cluster.status.cluster,
    data=Cluster.as_data,
    empty="no agent has reported a cluster yet (start one with `ipe agent run`)",
)


async def load(bus: "Bus", now: datetime) -> tuple[list[Cluster], list[str]]:
    """All clusters with a status, sorted by name, and the keys whose value cannot be read."""
    from ipe_events.events.registry import read_status

    try:
        bucket = await bus.kv("ipe_agents")
    except BusNotFound:
        return [], []
    found, unreadable = [], []
    async for entry in bucket.entries():
        try:
            status = read_status(entry.key, entry.value)
        except SchemaError:
            unreadable.append(entry.key)
        else:
            found.append(Cluster(status, (now - status.time).total_seconds()))
    return sorted(found, key=lambda cluster: cluster.status.cluster), unreadable


@click.group()
def command() -> None:
    """See which clusters are served and how they are."""


@command.command("list")
@common_options
@output_options
@pass_session
def list_(session: Session) -> None:
    """List the clusters that agents serve."""
    print_items(session, run(_load(session)), TABLE)


@command.command()
@click.argument("name")
@common_options
@output_options
@pass_session
def show(session: Session, name: str) -> None:
    """Show one cluster: its agent, and each resource with its state and number of objects."""
    clusters = run(_load(session))
    found = _named(clusters, name)
    status = found.status
    fields: dict[str, object] = {
        "Name": status.cluster,
        "State": f"{found.state} (seen {ago(found.age)} ago)",
        "Kubernetes": status.server_version,
        "UID": status.cluster_uid,
        "Epoch": status.epoch,
        "Agent": status.agent,
        "Writes": status.writes,
    }
    for resource, state in sorted(status.resources.items()):
        count = status.objects.get(resource)
        fields[f"  {resource}"] = state if count is None else f"{state}, {count} objects"
    print_record(session, found, TABLE, fields)


@command.command()
@click.argument("name")
@click.option("--reason", default="", help="Why, for the record.")
@common_options
@pass_session
def remove(session: Session, name: str, reason: str) -> None:
    """Forget a cluster that is gone for good: its agent's last word, so that nobody waits for it.

    Its changes stay on the record. An agent that serves it again picks up where the record ends.
    """
    run(_remove(session, name, reason))


async def _remove(session: Session, name: str, reason: str) -> None:
    from ipe_events.cli.acts import record_act
    from ipe_events.subjects import escape

    async with session.bus() as bus:
        found = _named((await load(bus, SYSTEM.now()))[0], name)
        if found.state != "silent":
            fix = f"stop its agent first; it counts as silent after {LATE_SECONDS:.0f} s"
            raise ConfigError(f"the agent of {name} spoke {ago(found.age)} ago", where="clusters", fix=fix)
        await (await bus.kv("ipe_agents")).delete(escape(name))
        await record_act(bus, "remove", f"cluster {name}", reason=reason)
    session.note(f"{name} is forgotten")


def _named(clusters: list[Cluster], name: str) -> Cluster:
    found = next((cluster for cluster in clusters if cluster.status.cluster == name), None)
    if found is None:
        known = ", ".join(cluster.status.cluster for cluster in clusters) or "none"
        raise UsageError(f"no agent serves a cluster {name!r}", where="clusters", fix=f"known: {known}")
    return found


async def _load(session: Session) -> list[Cluster]:
    async with session.bus() as bus:
        clusters, unreadable = await load(bus, SYSTEM.now())
    for key in unreadable:
        session.note(f"warning: the status under key {key} of bucket ipe_agents cannot be read")
    return clusters
