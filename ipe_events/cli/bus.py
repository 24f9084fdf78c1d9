"""``ipe bus``: run a bus on this machine, and bring the streams of any bus to what they should be.

What should be is data (``ipe_events.bus.topology``); ``plan`` shows the difference, ``apply`` makes it and refuses to lose
messages unless told to. ``serve`` runs the embedded server with everything in place.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ipe_events.cli.common import Duration, Session, common_options, output_options, pass_session, run, until_stopped
from ipe_events.cli.printers import Column, Table, print_items, print_record
from ipe_events.errors import ConfigError

if TYPE_CHECKING:
    from ipe_events.bus.topology import Plan, Step, TopologySettings

_SETTINGS = click.option(
    "-f", "--file", "file", type=click.Path(path_type=Path, dir_okay=False), help="YAML file with replicas, limits, shards."
)


@dataclass(frozen=True, slots=True)
class Difference:
    """One step of a plan; ``step`` is None for what is as it should be."""

    kind: str
    name: str
    step: "Step | None"

    @property
    def action(self) -> str:
        """What would be done."""
        return "ok" if self.step is None else self.step.action

    @property
    def detail(self) -> str:
        """Which fields change, and what is lost."""
        if self.step is None:
            return ""
        changed = ", ".join(map(str, self.step.changes))
        lost = f" (loses messages; it holds {self.step.messages})" if self.step.destructive else ""
        return f"{changed}{lost}"


TABLE: Table[Difference] = Table(
    columns=(
        Column("ACTION", lambda one: one.action),
        Column("KIND", lambda one: one.kind),
        Column("NAME", lambda one: one.name),
        Column("CHANGES", lambda one: one.detail),
    ),
    name=lambda one: one.name,
    data=lambda one: {
        "action": one.action, "kind": one.kind, "name": one.name,
        "destructive": one.step.destructive if one.step is not None else False,
        "changes": [{"field": change.field, "old": change.old, "new": change.new, "destructive": change.destructive}
                    for change in one.step.changes] if one.step is not None else [],
    },
    empty="nothing to do",
)  # fmt: skip


@click.group()
def command() -> None:
    """Run, plan and size the NATS JetStream bus."""


@command.command()
@click.option("--store", default="", metavar="DIR", help="Folder for streams and log.  [the user's data folder]")
@click.option(
    "--port", type=click.IntRange(0, 65_535), default=4222, show_default=True, help="Port of the loopback; 0: a free one."
)
@_SETTINGS
@common_options
@pass_session
def serve(session: Session, *, store: str, port: int, file: Path | None) -> None:
    """Run a nats-server on this machine, streams and buckets in place, until Ctrl-C."""
    run(_serve(session, store, port, _settings(file)))


async def _serve(session: Session, store: str, port: int, settings: "TopologySettings") -> None:
    from ipe_events.bus.connection import Bus
    from ipe_events.bus.embedded import EmbeddedServer, EmbeddedSettings
    from ipe_events.bus.topology import ensure

    session.configure_log("info")
    async with EmbeddedServer(EmbeddedSettings(store=store, port=port)) as server:
        async with await Bus.connect(server.settings, name="ipe-bus-serve") as bus:
            made = await ensure(bus, settings)
        click.echo(server.url)
        session.note(f"NATS JetStream runs on {server.url}, store {server.store}, {len(made.steps)} streams and buckets made")
        session.note(f"remember it: ipe context add local --server {server.url} --use")
        await until_stopped()
    session.note("stopped")


@command.command()
@_SETTINGS
@common_options
@output_options
@pass_session
def plan(session: Session, file: Path | None) -> None:
    """Show what `ipe bus apply` would change."""
    print_items(session, _differences(run(_plan(session, _settings(file)))), TABLE)


@command.command()
@_SETTINGS
@click.option("--allow-destructive", is_flag=True, help="Also do what loses messages.")
@common_options
@output_options
@pass_session
def apply(session: Session, *, file: Path | None, allow_destructive: bool) -> None:
    """Create and change streams, buckets and object stores as they should be."""
    done = run(_apply(session, _settings(file), allow_destructive=allow_destructive))
    print_items(session, [one for one in _differences(done) if one.step is not None], TABLE)


async def _plan(session: Session, settings: "TopologySettings") -> "Plan":
    from ipe_events.bus import topology

    async with session.bus() as bus:
        return await topology.plan(bus, topology.desired(settings))


async def _apply(session: Session, settings: "TopologySettings", *, allow_destructive: bool) -> "Plan":
    from ipe_events.bus import topology

    async with session.bus() as bus:
        steps = await topology.plan(bus, topology.desired(settings))
        await topology.apply(bus, steps, allow_destructive=allow_destructive)
        return steps


def _differences(steps: "Plan") -> list[Difference]:
    return [
        *(Difference(step.asset.kind, step.asset.name, step) for step in steps.steps),
        *(Difference(asset.kind, asset.name, None) for asset in steps.unchanged),
    ]


def _settings(file: Path | None) -> "TopologySettings":
    """The topology's settings in a YAML file, or the defaults.

    Raises:
        ConfigError: the file cannot be read or holds something unusable.
    """
    import yaml
    from pydantic import ValidationError

    from ipe_events.bus.topology import TopologySettings

    if file is None:
        return TopologySettings()
    try:
        data: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot be read: {error}", where=str(file), fix="give a YAML file") from error
    try:
        return TopologySettings.model_validate(data or {})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the document"
        known = ", ".join(TopologySettings.model_fields)
        raise ConfigError(f"{place}: {first['msg'].lower()}", where=str(file), fix=f"known keys: {known}") from error


@command.command()
@click.option("--clusters", type=int, default=10, show_default=True, help="How many clusters.")
@click.option("--objects", type=int, default=5_000, show_default=True, help="Objects per cluster.")
@click.option("--namespaces", type=int, default=50, show_default=True, help="Namespaces per cluster.")
@click.option("--resources", type=int, default=15, show_default=True, help="Kinds that are collected.")
@click.option("--events-per-second", type=float, default=200.0, show_default=True, help="Changes of the whole fleet, on average.")
@click.option("--bytes-per-event", type=int, default=6_000, show_default=True, help="Body of one change.")
@click.option("--handlers", type=int, default=4, show_default=True, help="Handlers that read all changes.")
@click.option("--retention", type=Duration(), default="72h", show_default=True, metavar="TIME", help="How long changes are kept.")
@click.option(
    "--dedup", type=Duration(), default="10m", show_default=True, metavar="TIME", help="How long message ids are remembered."
)
@click.option("--replicas", type=int, default=1, show_default=True, help="Copies of each stream.")
@common_options
@output_options
@pass_session
def size(session: Session, /, *, retention: float, dedup: float, **given: Any) -> None:
    """Compute subjects, memory, disk and shards that a fleet needs; asks no server."""
    from dataclasses import asdict

    from ipe_events.bus.size import Fleet, size

    needs = asdict(size(Fleet(**given, retention_hours=retention / 3600, dedup_minutes=dedup / 60)))
    table: Table[dict[str, Any]] = Table((), lambda _needs: "size", lambda needs: needs)
    shown = {name.replace("_bytes", "").replace("_", " "): _amount(name, value) for name, value in needs.items()}
    print_record(session, needs, table, shown)


def _amount(name: str, value: float) -> str:
    """A figure for people: bytes in powers of 1024."""
    if "bytes" not in name:
        return f"{value:,}"
    from ipe_events.bus.size import binary

    return binary(value) + ("/s" if name.endswith("per_second") else "")
