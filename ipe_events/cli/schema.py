"""``ipe schema``: the generated contracts of what travels on the bus."""

from pathlib import Path

import click

from ipe_events.cli.common import FINDINGS, Session, common_options, pass_session

_FOLDER = click.option(
    "--dir",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("schemas"),
    show_default=True,
    help="The folder.",
)


@click.group()
def command() -> None:
    """Export or check the JSON Schemas and the AsyncAPI document."""


@command.command()
@_FOLDER
@common_options
@pass_session
def export(session: Session, folder: Path) -> None:
    """Write the schemas of this version into a folder; golden examples that exist are kept."""
    from ipe_events.schemas import export as write

    written = write(folder)
    session.note(f"{len(written)} files written below {folder}" if written else f"{folder} is up to date")


@command.command()
@_FOLDER
@common_options
@pass_session
def check(session: Session, folder: Path) -> int:
    """Compare a folder with this version's schemas; exit code 1 when it is stale."""
    from ipe_events.schemas import check as compare

    stale = compare(folder)
    for line in stale:
        click.echo(line)
    if stale:
        session.note(f"{len(stale)} differences (fix: ipe schema export --dir {folder})")
        return FINDINGS
    session.note(f"{folder} is up to date")
    return 0
