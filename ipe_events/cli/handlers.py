"""``ipe handlers``: write a handler, test it, run it, see what runs.

``new`` writes a file that works and a test that passes, which is the shortest documentation there is. ``run`` takes files,
modules and installed names together in one process on one connection.
"""

import difflib
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ipe_events.cli.common import Session, common_options, output_options, pass_session, run
from ipe_events.cli.printers import Column, Table, print_items
from ipe_events.errors import ConfigError, SchemaError, SubjectError, UsageError

if TYPE_CHECKING:
    from ipe_events.bus.connection import Bus

_DESCRIPTION = re.compile(r"handler (?P<handler>\S+): ")
"""How ``runtime.consumption`` describes a handler's durable consumer."""
_IDENTIFIER = re.compile(r"[a-z][a-z0-9_]{0,60}")

_HANDLER = '''"""{title}: say in one sentence what it decides."""

from ipe_events import Change, Event, handler
from ipe_events.events import Finding, Severity


class {model}(Finding):
    """What {name} noticed.

    Attributes:
        replicas: how many were asked for.
    """

    replicas: int


@handler(on="deployments.apps", latest=True)
async def {name}(event: Event[Change]) -> {model} | None:
    change = event.payload
    if change.verb == "deleted" or (replicas := change.object["spec"].get("replicas", 1)) > 0:
        return None
    return {model}(
        cluster=change.cluster,
        subject=change.ref,
        severity=Severity.INFO,
        message=f"{{change}} asks for no replicas",
        evidence=(event.meta.id,),
        replicas=replicas,
    )
'''

_TEST = '''"""Tests of {name}: in memory, and the same on a real nats-server."""

from typing import Any

import pytest
from {name} import {model}, {name}

from ipe_events.testing import StartTestBus, assert_idempotent, change


def deployment(replicas: int) -> dict[str, Any]:
    return {{
        "kind": "Deployment",
        "apiVersion": "apps/v1",
        "metadata": {{"name": "cart", "namespace": "shop"}},
        "spec": {{"replicas": replicas}},
    }}


@pytest.mark.asyncio
@pytest.mark.parametrize("test_bus", ["memory", "nats"], indirect=True)
async def test_{name}(test_bus: StartTestBus) -> None:
    bus = await test_bus({name})
    await bus.send(change(deployment(0), cluster="prod"))
    (finding,) = bus.of({model})
    assert (finding.cluster, finding.subject.name, finding.replicas) == ("prod", "cart", 0)


@pytest.mark.asyncio
async def test_{name}_is_idempotent() -> None:
    await assert_idempotent({name}, change(deployment(0)))
'''


@dataclass(frozen=True, slots=True)
class Row:
    """A handler as ``list`` shows it."""

    name: str
    source: str
    subjects: tuple[str, ...] = ()
    resources: tuple[str, ...] = ()
    since: str = ""
    state: str = ""
    behind: int | None = None


TABLE: Table[Row] = Table(
    columns=(
        Column("NAME", lambda row: row.name),
        Column("FROM", lambda row: row.source),
        Column("STATE", lambda row: row.state),
        Column("BEHIND", lambda row: "" if row.behind is None else str(row.behind)),
        Column("RESOURCES", lambda row: ", ".join(row.resources)),
        Column("SINCE", lambda row: row.since),
        Column("SUBJECTS", lambda row: " ".join(row.subjects), wide=True),
    ),
    name=lambda row: row.name,
    data=lambda row: {
        "name": row.name, "from": row.source, "resources": list(row.resources),
        "subjects": list(row.subjects), "since": row.since, "state": row.state, "behind": row.behind,
    },
    empty="no handler has run on this bus, and none is installed",
)  # fmt: skip


@click.group()
def command() -> None:
    """Write, test and run handlers."""


@command.command("run")
@click.argument("sources", nargs=-1, required=True, metavar="FILE|NAME...")
@click.option("--health-port", type=click.IntRange(0, 65_535), metavar="PORT", help="Serve /livez /readyz /metrics; 0: any.")
@click.option("--health-host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Where to serve them.")
@common_options
@pass_session
def run_(session: Session, *, sources: tuple[str, ...], health_port: int | None, health_host: str) -> None:
    """Run handlers until SIGTERM or Ctrl-C; what they are working on is finished first."""
    from ipe_events.runtime.app import HandlerApp, run_handlers
    from ipe_events.runtime.registry import load

    session.configure_log("info")

    def started(app: HandlerApp) -> None:
        session.note(f"{len(app.declared)} handlers run: {', '.join(one.id for one in app.declared)}")
        if app.health is not None:
            session.note(f"health and metrics on http://{health_host}:{app.health.port}/")

    declared = load(list(sources))
    run(run_handlers(declared, session.bus_settings(), health_port=health_port, health_host=health_host, started=started))


@command.command("new")
@click.argument("name")
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False), default=Path(), help="Where to write the two files.")
@common_options
@pass_session
def new(session: Session, *, name: str, folder: Path) -> None:
    """Write a handler that works, NAME.py, and a test that passes, test_NAME.py."""
    if not _IDENTIFIER.fullmatch(name):
        raise UsageError(f"name {name!r} is no function's name", fix="lower-case letters, digits and _: `page_on_drift`")
    words = {"name": name, "model": "".join(part.capitalize() for part in name.split("_")) + "Found", "title": name}
    files = {folder / f"{name}.py": _HANDLER, folder / f"test_{name}.py": _TEST}
    for path in files:
        if path.exists():
            raise UsageError("the file exists already", where=str(path), fix="choose another name or folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in files.items():
            path.write_text(text.format(**words), encoding="utf-8")
            click.echo(path)
    except OSError as error:
        raise ConfigError(f"it cannot be written: {error.strerror}", where=str(folder)) from error
    session.note(f"next: ipe handlers test {folder / f'{name}.py'}")


@command.command("test")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@common_options
@pass_session
def test(session: Session, *, file: Path | None) -> int:
    """Run the tests of FILE (test_FILE beside it), or all below this folder, with pytest."""
    target = Path()
    if file is not None:
        target = file if file.name.startswith("test_") or file.is_dir() else file.with_name(f"test_{file.name}")
        if not target.exists():
            raise ConfigError("there is no such test", where=str(target), fix="`ipe handlers new` writes one beside a handler")
    if subprocess.run([sys.executable, "-c", "import pytest, pytest_asyncio"], capture_output=True, check=False).returncode:
        raise ConfigError("pytest is not installed", fix="pip install pytest pytest-asyncio")
    folder = target if target.is_dir() else target.parent
    arguments = [
        sys.executable,
        "-m",
        "pytest",
        str(target),
        "-q",
        "--rootdir",
        str(folder),
        "-o",
        f"pythonpath={folder.resolve()}",
    ]
    arguments += ["-o", "asyncio_default_fixture_loop_scope=function"]
    session.detail(" ".join(arguments))
    return subprocess.run(arguments, check=False).returncode  # noqa: S603 - our own interpreter on the user's own file


@command.command("list")
@common_options
@output_options
@pass_session
def list_(session: Session) -> None:
    """List handlers that have declared themselves on the bus, and installed ones.

    STATE is what the server sees: a handler that is `reading` has asked for more; one that is `silent` has not, since it is
    stopped, or has its hands full. BEHIND counts the messages that it has not settled. Timers and services have neither.
    """
    run(_list(session))


async def _list(session: Session) -> None:
    from ipe_events.events.registry import read_declaration
    from ipe_events.runtime.announce import HANDLERS_BUCKET
    from ipe_events.runtime.registry import installed

    rows: dict[str, Row] = {name: Row(name, f"installed: {entry.value}") for name, entry in installed().items()}
    async with session.bus() as bus:
        bucket = await bus.kv(HANDLERS_BUCKET)
        consumers = await _consumers_of_handlers(bus)
        async for entry in bucket.entries():
            try:
                found = read_declaration(entry.key, entry.value)
            except SchemaError as error:
                session.note(
                    f"warning: the declaration under key {entry.key} of bucket {HANDLERS_BUCKET} cannot be read: {error}"
                )
                continue
            mine = [info for _, info in consumers.get(found.handler, ())]
            state = ("reading" if any(info.get("num_waiting") for info in mine) else "silent") if mine else ""
            behind = sum(int(info["num_pending"]) + int(info["num_ack_pending"]) for info in mine) if mine else None
            since = f"{found.time:%Y-%m-%d %H:%M:%S}"
            rows[found.handler] = Row(found.handler, "bus", found.subjects, found.resources, since, state, behind)
    print_items(session, [rows[name] for name in sorted(rows)], TABLE)


@command.command()
@click.argument("name")
@click.option("--reason", default="", help="Why, for the record.")
@common_options
@pass_session
def remove(session: Session, name: str, reason: str) -> None:
    """Forget a handler that is gone for good: its declaration, and its place in the streams.

    Agents stop collecting what nobody else asks for. Should it ever run again, it begins where `start=` says. What it keeps in
    its State stays.
    """
    run(_remove(session, name, reason))


async def _remove(session: Session, name: str, reason: str) -> None:
    from ipe_events.cli.acts import record_act
    from ipe_events.runtime.announce import HANDLERS_BUCKET
    from ipe_events.subjects import escape

    async with session.bus() as bus:
        bucket = await bus.kv(HANDLERS_BUCKET)
        consumers = (await _consumers_of_handlers(bus)).get(name, [])
        known = {entry.key async for entry in bucket.entries(headers_only=True)}
        if escape(name) not in known and not consumers:
            near = difflib.get_close_matches(name, map(_readable, known), n=1)
            fix = f"did you mean {near[0]}?" if near else "see `ipe handlers list`"
            raise UsageError(f"no handler {name!r} has declared itself", where="handlers", fix=fix)
        if any(info.get("num_waiting") for _, info in consumers):
            raise ConfigError(f"{name} runs", where="handlers", fix="stop it first; a moment later it no longer reads")
        for stream, info in consumers:
            await bus.js_api(f"CONSUMER.DELETE.{stream}.{info['name']}")
        await bucket.delete(escape(name))
        await record_act(bus, "remove", f"handler {name}", reason=reason)
    session.note(f"{name} is forgotten, with {len(consumers)} consumers")


def _readable(key: str) -> str:
    """The name behind a key; a key that nobody escaped is shown as it is."""
    from ipe_events.subjects import unescape

    try:
        return unescape(key)
    except SubjectError:
        return key


async def _consumers_of_handlers(bus: "Bus") -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """Handler → (stream, what NATS says) of its durables, which name their handler in their description."""
    from ipe_events.cli.reading import durables, streams_of
    from ipe_events.subjects import TOPICS

    found: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    bases = dict.fromkeys(topic.stream for topic in TOPICS if topic.stream)
    streams = dict.fromkeys([stream for base in bases for stream in await streams_of(bus, base)])
    async for stream, info in durables(bus, streams):
        owner = _DESCRIPTION.match(info["config"].get("description", ""))
        if owner is not None:
            found.setdefault(owner["handler"], []).append((stream, info))
    return found
