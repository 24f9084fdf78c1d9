"""``ipe events``: the record, listed, followed, shown, and walked from cause to effect."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import click

from ipe_events.cli.common import Duration, Session, common_options, output_options, pass_session, run
from ipe_events.cli.printers import Column, Stream, Table, clean, print_items, to_json
from ipe_events.cli.record import RECORDED, Entry, Query
from ipe_events.cli.topics import topic_named
from ipe_events.cli.trail import Step
from ipe_events.clock import SYSTEM
from ipe_events.errors import UsageError
from ipe_events.events.refs import ResourceRef

TABLE: Table[Entry] = Table(
    columns=(
        Column("TIME", lambda entry: f"{entry.time:%H:%M:%S.%f}"[:-3]),
        Column("TOPIC", lambda entry: entry.topic),
        Column("CLUSTER", lambda entry: entry.cluster),
        Column("WHAT", lambda entry: entry.verb),
        Column("OBJECT", lambda entry: entry.target),
        Column("HANDLER", lambda entry: entry.handler, wide=True),
        Column("SUMMARY", lambda entry: entry.summary),
        Column("REF", lambda entry: entry.ref),
        Column("ID", lambda entry: entry.id, wide=True),
    ),
    name=lambda entry: entry.ref,
    data=lambda entry: entry.as_data(),
    empty="no event matches in that time (look further back with --since)",
)
_WIDTHS = (12, 8, 10, 9, 34, 0)

_SINCE = click.option(
    "--since", type=Duration(), default="24h", show_default=True, metavar="TIME", help="How far back the record is read."
)


def filters(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that choose events; they arrive as one ``query``."""
    options = [
        click.option("--topic", "topics", multiple=True, metavar="NAME", help="Only this topic (repeatable; `ipe topics list`)."),
        click.option("--cluster", default="", metavar="GLOB", help="Only these clusters."),
        click.option("-n", "--namespace", default="", help="Only this namespace."),
        click.option("--resource", default="", metavar="NAME", help="Only this resource, as `deployments.apps`."),
        click.option("--verb", default="", help="Only this: added, modified, deleted, patch, scale, gap…"),
        click.option("--handler", default="", metavar="NAME", help="Only what this handler wrote."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def query_of(**given: Any) -> Query:
    """The query that the options of ``filters`` mean.

    Raises:
        UsageError: a topic or resource that does not exist or parse.
    """
    known = {topic.name for topic in RECORDED}
    for name in given["topics"]:
        if topic_named(name).name not in known:
            raise UsageError(
                f"topic {name!r} is no part of the record", where="--topic", fix=f"one of {', '.join(sorted(known))}"
            )
    if given["resource"]:
        ResourceRef.parse(given["resource"])
    return Query(**given)


@click.group()
def command() -> None:
    """Read the record: changes, findings, commands, outcomes, gaps."""


@command.command("list")
@filters
@click.option("--since", type=Duration(), default="1h", show_default=True, metavar="TIME", help="How far back.")
@click.option("--limit", type=click.IntRange(min=0), default=50, show_default=True, help="The newest so many; 0: all.")
@click.option("-w", "--watch", is_flag=True, help="Stay, and print what comes.")
@common_options
@output_options
@pass_session
def list_(session: Session, /, *, since: float, limit: int, watch: bool, **given: Any) -> None:
    """List what happened, oldest first."""
    query = query_of(**given)
    run(_tail(session, query, since) if watch else _list(session, query, since, limit))


async def _list(session: Session, query: Query, since: float, limit: int) -> None:
    from ipe_events.cli.reading import read

    async with session.bus() as bus:
        found = await read(bus, query, since=SYSTEM.now() - timedelta(seconds=since), limit=limit)
    print_items(session, found.entries, TABLE)
    if found.matched > len(found.entries):
        session.note(f"the newest {len(found.entries)} of {found.matched}; --limit 0 shows all")


@command.command()
@filters
@click.option("--since", type=Duration(), default=None, metavar="TIME", help="Begin so long ago.  [now]")
@common_options
@output_options
@pass_session
def tail(session: Session, /, *, since: float | None, **given: Any) -> None:
    """Follow what happens, until Ctrl-C; `-o json` prints one object per line."""
    run(_tail(session, query_of(**given), since))


async def _tail(session: Session, query: Query, since: float | None) -> None:
    from ipe_events.cli.reading import follow

    stream = Stream(session, TABLE, _WIDTHS)
    start = None if since is None else SYSTEM.now() - timedelta(seconds=since)
    async with session.bus() as bus:
        async for entry in follow(bus, query, since=start):
            stream.print(entry)


@command.command()
@click.argument("event")
@_SINCE
@common_options
@output_options
@pass_session
def show(session: Session, event: str, since: float) -> None:
    """Show one event whole: by id (or its beginning), or by the REF that lists print."""
    run(_show(session, event, since))


async def _show(session: Session, event: str, since: float) -> None:
    from ipe_events.cli.reading import find

    async with session.bus() as bus:
        entry = await find(bus, event, since=SYSTEM.now() - timedelta(seconds=since))
        stream, _, seq = entry.ref.rpartition(":")
        found = await bus.get_message(stream, seq=int(seq))
    body = found.body if found is not None else b""
    if session.output in {"json", "yaml", "name"}:
        whole = {**entry.as_data(), "headers": dict(entry.headers or {}), "body": _body(body)}
        print_items(session, [entry], Table(TABLE.columns, TABLE.name, lambda _entry: whole))
        return
    click.echo(clean(entry.subject))
    for key, value in (entry.headers or {}).items():
        click.echo(f"{clean(key)}: {clean(value)}")
    click.echo()
    parsed = _body(body)
    click.echo(to_json(parsed) if not isinstance(parsed, str) else clean(parsed))


@command.command()
@click.argument("event")
@_SINCE
@common_options
@output_options
@pass_session
def trace(session: Session, event: str, since: float) -> None:
    """Show what led to an event and what it led to, as one tree of causes."""
    run(_trace(session, event, since))


async def _trace(session: Session, event: str, since: float) -> None:
    from ipe_events.cli.reading import trail_around

    async with session.bus() as bus:
        trail, entry = await trail_around(bus, event, since=SYSTEM.now() - timedelta(seconds=since))
    steps = trail.tree(trail.root_of(entry))
    if session.output in {"table", "wide"}:
        for line in draw(steps, entry.id):
            click.echo(line)
        return
    table: Table[Step] = Table(
        (), lambda step: step.entry.ref, lambda step: {**step.entry.as_data(), "depth": step.depth, "join": step.how}
    )
    print_items(session, steps, table)


def draw(steps: list[Step], marked: str = "") -> list[str]:
    """A causal tree as lines; the event that was asked for is marked with ``*``."""
    lines = []
    for step in steps:
        entry = step.entry
        branch = "" if step.depth == 0 else "   " * (step.depth - 1) + "└─ "
        star = " *" if entry.id == marked else ""
        who = f" ({entry.handler})" if entry.handler and entry.topic != "outcome" else ""
        place = f"{entry.cluster} {entry.target}".strip()
        moment = f"{entry.time:%H:%M:%S.%f}"[:-3]
        lines.append(clean(f"{moment}  {branch}{entry.topic}{who}  {place}  {entry.summary}  [{entry.ref}]{star}"))
    return lines


def _body(body: bytes) -> Any:
    import json

    try:
        return json.loads(body)
    except ValueError:
        return body.decode("utf-8", "replace")
