"""``ipe topics``: the families of subjects, from the one table that also configures the streams."""

import difflib

import click

from ipe_events.cli.common import Session, common_options, output_options, pass_session
from ipe_events.cli.printers import Column, Table, print_items
from ipe_events.errors import UsageError
from ipe_events.subjects import TOPICS, Topic

TABLE: Table[Topic] = Table(
    columns=(
        Column("NAME", lambda topic: topic.name),
        Column("SUBJECT", lambda topic: topic.pattern),
        Column("STREAM", lambda topic: topic.stream or "(service)"),
        Column("WHAT", lambda topic: topic.doc, wide=True),
    ),
    name=lambda topic: topic.name,
    data=lambda topic: {"name": topic.name, "subject": topic.pattern, "stream": topic.stream, "doc": topic.doc},
)


def topic_named(name: str) -> Topic:
    """The topic of that name.

    Raises:
        UsageError: there is none; names the nearest ones.
    """
    found = {topic.name: topic for topic in TOPICS}
    if name not in found:
        near = difflib.get_close_matches(name, found, n=3, cutoff=0.4)
        fix = f"did you mean {' or '.join(near)}?" if near else "see `ipe topics list`"
        raise UsageError(f"unknown topic {name!r}", where="topics", fix=fix)
    return found[name]


@click.group()
def command() -> None:
    """See the families of subjects on the bus."""


@command.command("list")
@click.argument("names", nargs=-1, metavar="[NAME]…")
@common_options
@output_options
@pass_session
def list_(session: Session, names: tuple[str, ...]) -> None:
    """List the topics, or those named."""
    print_items(session, [topic_named(name) for name in names] or TOPICS, TABLE)
