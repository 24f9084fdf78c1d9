"""``ipe commands``: what handlers asked for, joined with what became of it."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import click

from ipe_events.cli.common import Duration, Session, common_options, output_options, pass_session, run
from ipe_events.cli.printers import Column, Table, print_items, print_record, to_json
from ipe_events.cli.record import Entry, NoSuchEvent, Query
from ipe_events.clock import SYSTEM
from ipe_events.subjects import COMMAND, OUTCOME

STATUSES = ("applied", "refused", "failed", "expired", "rejected", "unknown", "dry-run", "pending", "unanswered")
"""How outcomes end a command, then what a command without an outcome is."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A command and its outcome, if there is one in the time that was read."""

    command: Entry
    outcome: Entry | None
    now: datetime

    @property
    def status(self) -> str:
        """The outcome's status; without one ``pending``, or ``unanswered`` when the command has expired."""
        if self.outcome is not None:
            return self.outcome.status
        expires = (self.command.data or {}).get("expires")
        try:
            late = datetime.fromisoformat(str(expires)) < self.now
        except (ValueError, TypeError):
            late = False
        return "unanswered" if late else "pending"

    def as_data(self) -> dict[str, Any]:
        """Command and outcome as a JSON object."""
        outcome = dict(self.outcome.data or {}) if self.outcome is not None else None
        return {
            "id": self.command.id, "ref": self.command.ref, "time": self.command.time.isoformat(),
            "cluster": self.command.cluster, "handler": self.command.handler, "verb": self.command.verb,
            "target": self.command.target, "status": self.status,
            "command": dict(self.command.data or {}), "outcome": outcome,
        }  # fmt: skip


TABLE: Table[Asked] = Table(
    columns=(
        Column("ID", lambda asked: asked.command.id[:12]),
        Column("TIME", lambda asked: f"{asked.command.time:%H:%M:%S}"),
        Column("CLUSTER", lambda asked: asked.command.cluster),
        Column("HANDLER", lambda asked: asked.command.handler),
        Column("OBJECT", lambda asked: asked.command.target),
        Column("ASKED", lambda asked: asked.command.summary),
        Column("STATUS", lambda asked: asked.status),
        Column("WHY", lambda asked: _why(asked)),
        Column("REF", lambda asked: asked.command.ref, wide=True),
    ),
    name=lambda asked: asked.command.id,
    data=Asked.as_data,
    empty="no handler asked for anything in that time (look further back with --since)",
)


def _why(asked: Asked) -> str:
    """What the outcome says beyond its status: the guardrail, the API's reason, the message."""
    data = (asked.outcome.data if asked.outcome is not None else None) or {}
    return ": ".join(str(data[key]) for key in ("guardrail", "reason", "message") if data.get(key))


@click.group()
def command() -> None:
    """See what handlers asked for and what became of it."""


@command.command("list")
@click.option("--cluster", default="", metavar="GLOB", help="Only these clusters.")
@click.option("--handler", default="", metavar="NAME", help="Only this handler's.")
@click.option("--status", type=click.Choice(STATUSES), help="Only those with this status.")
@click.option("--since", type=Duration(), default="24h", show_default=True, metavar="TIME", help="How far back.")
@click.option("--limit", type=click.IntRange(min=0), default=50, show_default=True, help="The newest so many; 0: all.")
@common_options
@output_options
@pass_session
def list_(session: Session, *, cluster: str, handler: str, status: str | None, since: float, limit: int) -> None:
    """List commands with their outcomes, oldest first."""
    found = [asked for asked in run(_load(session, cluster, handler, since)) if not status or asked.status == status]
    shown = found[-limit:] if limit else found
    print_items(session, shown, TABLE)
    if len(shown) < len(found):
        session.note(f"the newest {len(shown)} of {len(found)}; --limit 0 shows all")


@command.command()
@click.argument("command_id", metavar="ID")
@click.option("--since", type=Duration(), default="7d", show_default=True, metavar="TIME", help="How far back.")
@common_options
@output_options
@pass_session
def show(session: Session, command_id: str, since: float) -> None:
    """Show one command whole, by its id or a unique beginning of it."""
    found = [asked for asked in run(_load(session, "", "", since)) if asked.command.id.startswith(command_id)]
    if len(found) != 1:
        what = f"{len(found)} commands begin with {command_id!r}" if found else f"no command {command_id!r} in that time"
        raise NoSuchEvent(what, where="commands", fix="give more of the id" if found else "look further back with --since")
    asked = found[0]
    data = asked.command.data or {}
    fields: dict[str, object] = {
        "ID": asked.command.id,
        "Status": asked.status,
        "Why": _why(asked),
        "Cluster": asked.command.cluster,
        "Object": asked.command.target,
        "Asked": asked.command.summary,
        "Handler": asked.command.handler,
        "Cause": asked.command.cause,
        "Issued": data.get("issued"),
        "Expires": data.get("expires"),
        "Dry run": data.get("dry_run", False),
        "Action": to_json(data.get("action"), indent=None),
        "Precondition": to_json(data.get("precondition"), indent=None),
        "Written": f"uid {asked.outcome.uid}, resourceVersion {asked.outcome.resource_version}"
        if asked.outcome is not None and asked.outcome.resource_version
        else "",
        "Trace": f"ipe events trace {asked.command.ref}",
    }
    print_record(session, asked, TABLE, {key: value for key, value in fields.items() if value not in ("", None)})


async def _load(session: Session, cluster: str, handler: str, since: float) -> list[Asked]:
    from ipe_events.cli.reading import read

    now = SYSTEM.now()
    start = now - timedelta(seconds=since)
    async with session.bus() as bus:
        asked = await read(bus, Query(topics=(COMMAND.name,), cluster=cluster, handler=handler), since=start, limit=0)
        told = await read(bus, Query(topics=(OUTCOME.name,), cluster=cluster, handler=handler), since=start, limit=0)
    outcomes = {entry.cause: entry for entry in told.entries}
    return [Asked(entry, outcomes.get(entry.id), now) for entry in asked.entries]
