"""``ipe dlq``: what handlers gave up on, why, and once more from the start.

A dead letter is a copy of the message with the reason in its headers. Replaying publishes it again on its original subject, with
its original event id and a message id of its own that names the replay, so the stream does not take it for a double. A header
names the one handler that gave up on it; all others let it pass. The replay is an operator's act and goes on the record.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from ipe_events.cli.acts import record_act
from ipe_events.cli.common import Duration, Session, common_options, output_options, pass_session, run
from ipe_events.cli.printers import Column, Table, clean, print_items, to_json
from ipe_events.cli.record import Entry, NoSuchEvent, Query, parse_ref
from ipe_events.clock import SYSTEM
from ipe_events.errors import BusNotFound, SchemaError, UsageError
from ipe_events.events.headers import REPLAY_HANDLER, REPLAY_OF
from ipe_events.subjects import DLQ, topic_of

if TYPE_CHECKING:
    from ipe_events.bus.connection import Bus
    from ipe_events.bus.jsapi import Stored

_REASON = "ipe-dlq-"


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter's reason, from its headers."""

    entry: Entry

    def header(self, name: str) -> str:
        """One of the reason's headers."""
        return (self.entry.headers or {}).get(f"{_REASON}{name}", "")

    def as_data(self) -> dict[str, Any]:
        """The dead letter as a JSON object."""
        return {
            "ref": self.entry.ref, "time": self.entry.time.isoformat(), "handler": self.entry.handler, "event": self.entry.id,
            "subject": self.header("subject"), "stream": self.header("stream"), "sequence": self.header("sequence"),
            "attempts": self.header("attempts"), "error": self.header("error"), "message": self.header("message"),
        }  # fmt: skip


TABLE: Table[Letter] = Table(
    columns=(
        Column("REF", lambda letter: letter.entry.ref),
        Column("TIME", lambda letter: f"{letter.entry.time:%Y-%m-%d %H:%M:%S}"),
        Column("HANDLER", lambda letter: letter.entry.handler),
        Column("ATTEMPTS", lambda letter: letter.header("attempts")),
        Column("ERROR", lambda letter: letter.header("error")),
        Column("MESSAGE", lambda letter: letter.header("message")),
        Column("SUBJECT", lambda letter: letter.header("subject"), wide=True),
        Column("EVENT", lambda letter: letter.entry.id, wide=True),
    ),
    name=lambda letter: letter.entry.ref,
    data=Letter.as_data,
    empty="no dead letters in that time",
)


@click.group()
def command() -> None:
    """See and replay the messages that handlers gave up on."""


@command.command("list")
@click.option("--handler", default="", metavar="NAME", help="Only this handler's.")
@click.option("--since", type=Duration(), default="30d", show_default=True, metavar="TIME", help="How far back.")
@click.option("--limit", type=click.IntRange(min=0), default=50, show_default=True, help="The newest so many; 0: all.")
@common_options
@output_options
@pass_session
def list_(session: Session, *, handler: str, since: float, limit: int) -> None:
    """List dead letters, oldest first."""
    run(_list(session, handler, since, limit))


async def _list(session: Session, handler: str, since: float, limit: int) -> None:
    from ipe_events.cli.reading import read

    query = Query(topics=(DLQ.name,), handler=handler)
    async with session.bus() as bus:
        found = await read(bus, query, since=SYSTEM.now() - timedelta(seconds=since), limit=limit)
    print_items(session, map(Letter, found.entries), TABLE)
    if found.matched > len(found.entries):
        session.note(f"the newest {len(found.entries)} of {found.matched}; --limit 0 shows all")


@command.command()
@click.argument("ref")
@common_options
@output_options
@pass_session
def show(session: Session, ref: str) -> None:
    """Show one dead letter whole, by the REF that `ipe dlq list` prints."""
    run(_show(session, ref))


async def _show(session: Session, ref: str) -> None:
    from ipe_events.cli.record import entry_of

    async with session.bus() as bus:
        stored = await _stored(bus, ref)
    letter = Letter(entry_of(ref, stored.subject, stored.time, stored.headers, stored.body))
    if session.output in {"json", "yaml", "name"}:
        print_items(session, [letter], TABLE)
        return
    for key, value in (letter.entry.headers or {}).items():
        click.echo(f"{clean(key)}: {clean(value)}")
    click.echo()
    text = stored.body.decode("utf-8", "replace")
    click.echo(to_json(letter.entry.data) if letter.entry.data is not None else clean(text))


@command.command()
@click.argument("refs", nargs=-1, required=True, metavar="REF…")
@click.option("--reason", default="", help="Why, for the record.")
@common_options
@pass_session
def replay(session: Session, refs: tuple[str, ...], reason: str) -> None:
    """Publish dead letters again, each for the one handler that gave up on it."""
    run(_replay(session, refs, reason))


async def _replay(session: Session, refs: tuple[str, ...], reason: str) -> None:
    async with session.bus() as bus:
        letters = [await _letter(bus, ref) for ref in refs]  # each must have its receiver before the first is published
        for letter in letters:
            await _publish_again(bus, letter)
            await record_act(bus, "replay", letter.ref, reason=reason, subject=letter.subject, handler=letter.handler)
            session.note(f"{letter.ref} is published again on {letter.subject} for {letter.handler}")


async def _stored(bus: "Bus", ref: str) -> "Stored":
    position = parse_ref(ref)
    if position is None or position[0] != DLQ.stream:
        raise UsageError(f"{ref!r} is not the REF of a dead letter", where="dlq", fix="take it from `ipe dlq list`, as IPE_DLQ:7")
    stored = await bus.get_message(DLQ.stream, seq=position[1])
    if stored is None:
        raise NoSuchEvent(f"{ref} does not exist (any more)", where="dlq", fix="see `ipe dlq list`")
    return stored


@dataclass(frozen=True, slots=True)
class _Replay:
    """A dead letter that can be published again."""

    ref: str
    stored: "Stored"
    subject: str
    handler: str


async def _letter(bus: "Bus", ref: str) -> _Replay:
    """Reads a dead letter and makes sure that somebody waits for its replay.

    Raises:
        NoSuchEvent: it is not in the stream (any more).
        SchemaError: no handler's runtime wrote it.
        BusNotFound: its handler does not consume the stream any more.
    """
    from urllib.parse import unquote

    stored = await _stored(bus, ref)
    subject, stream, handler = (unquote(stored.headers.get(f"{_REASON}{name}", "")) for name in ("subject", "stream", "consumer"))
    if not (subject and stream and handler):
        raise SchemaError(f"{ref} does not say where it came from", where="dlq", fix="it was not written by a handler of ours")
    if topic_of(subject) is DLQ:
        raise SchemaError(f"{ref} came from {subject}, itself a dead letter's subject", where="dlq")
    try:
        await bus.js_api(f"CONSUMER.INFO.{stream}.{handler}")
    except BusNotFound as missing:
        raise BusNotFound(
            f"{ref} is for {handler}, which consumes nothing of {stream}",
            where="dlq",
            fix="start the handler first; what came from a snapshot comes again with the next one",
        ) from missing
    return _Replay(ref, stored, subject, handler)


async def _publish_again(bus: "Bus", letter: _Replay) -> None:
    """Publishes the message that a dead letter keeps."""
    headers = {name: value for name, value in letter.stored.headers.items() if not name.startswith((_REASON, "Nats-"))}
    headers[REPLAY_OF] = letter.ref
    headers[REPLAY_HANDLER] = letter.handler
    moment = SYSTEM.now().isoformat()
    await bus.publish(letter.subject, letter.stored.body, id=f"replay/{letter.ref}/{moment}", headers=headers)
