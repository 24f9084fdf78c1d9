"""``ipe context``: named ways to reach the bus, so that no command needs a URL.

Secrets are named by file, never given: a command line is seen by everybody on the machine. Contexts of the ``nats`` command line
are listed and used as they are.
"""

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from ipe_events.cli.common import Session, common_options, output_options, pass_session
from ipe_events.cli.printers import Column, Table, print_items, print_record
from ipe_events.errors import UsageError

if TYPE_CHECKING:
    from ipe_events.bus.contexts import Context

TABLE: "Table[Context]" = Table(
    columns=(
        Column("CURRENT", lambda context: "*" if context.current else ""),
        Column("NAME", lambda context: context.name),
        Column("SERVERS", lambda context: ",".join(context.settings.servers)),
        Column("AUTHENTICATION", lambda context: _authentication(context)),
        Column("FROM", lambda context: context.origin, wide=True),
    ),
    name=lambda context: context.name,
    data=lambda context: {
        "name": context.name,
        "current": context.current,
        "origin": context.origin,
        "servers": list(context.settings.servers),
        "authentication": _authentication(context),
    },
    empty="no context yet (add one with `ipe context add NAME --server nats://HOST:4222`)",
)


def _authentication(context: "Context") -> str:
    """The kind of credentials and the file that holds them; never the credentials."""
    settings = context.settings
    kinds = {
        "creds": settings.creds_file,
        "nkey": settings.nkey_seed_file,
        "token": settings.token_file or ("(in the file)" if settings.token else ""),
        "user": settings.user,
        "certificate": settings.tls_cert,
    }
    return ", ".join(f"{kind} {value}" for kind, value in kinds.items() if value) or "none"


@click.group()
def command() -> None:
    """Remember how to reach a bus, by name."""


@command.command()
@click.argument("name")
@click.option("--server", "servers", multiple=True, required=True, metavar="URL", help="nats:// or tls:// URL (repeatable).")
@click.option("--user", default="", help="User name; needs --password-file.")
@click.option("--password-file", default="", metavar="FILE", help="File that holds the user's password.")
@click.option("--token-file", default="", metavar="FILE", help="File that holds a token.")
@click.option("--creds", "creds_file", default="", metavar="FILE", help="A .creds file (JWT and seed).")
@click.option("--nkey", "nkey_seed_file", default="", metavar="FILE", help="File that holds an nkey seed.")
@click.option("--tls-ca", default="", metavar="FILE", help="PEM file with the authorities to trust.")
@click.option("--tls-cert", default="", metavar="FILE", help="PEM file with our certificate.")
@click.option("--tls-key", default="", metavar="FILE", help="PEM file with its key.")
@click.option("--inbox-prefix", default="_INBOX", show_default=True, help="First tokens of our inboxes.")
@click.option("--js-domain", default="", metavar="NAME", help="JetStream domain, behind a leaf node.")
@click.option("--use", "make_current", is_flag=True, help="Make it the current one.")
@common_options
@pass_session
def add(session: Session, /, *, name: str, servers: tuple[str, ...], make_current: bool, **given: Any) -> None:
    """Add a context, or replace it; the first one becomes the current one."""
    from ipe_events.bus.contexts import Contexts
    from ipe_events.bus.settings import BusSettings

    for server in servers:
        _check_server(server)
    if given["user"] and not given["password_file"]:
        raise UsageError("--user without --password-file", where="context add", fix="put the password into a file and name it")
    settings = BusSettings(servers=servers, **given)
    settings.client_options()  # reads every file: what is wrong is said now
    contexts = Contexts()
    contexts.add(name, settings, use=make_current)
    session.note(f"context {name} is in {contexts.file}" + (" and is the current one" if contexts.current() == name else ""))


def _check_server(server: str) -> None:
    """Refuse what is no URL of a NATS server, and a password on the command line."""
    parts = urlsplit(server)
    if parts.username or parts.password:
        raise UsageError("credentials in a URL are seen by everybody", where="--server", fix="--user and --password-file")
    if parts.scheme not in {"nats", "tls"} or not parts.hostname:
        raise UsageError(f"{server!r} is no NATS URL", where="--server", fix="nats://HOST:4222 or tls://HOST:4222")


@command.command()
@click.argument("name")
@common_options
@pass_session
def use(session: Session, name: str) -> None:
    """Make a context the current one."""
    from ipe_events.bus.contexts import Contexts

    Contexts().use(name)
    session.note(f"{name} is the current context")


@command.command("list")
@common_options
@output_options
@pass_session
def list_(session: Session) -> None:
    """List the contexts, those of the nats command line too."""
    from ipe_events.bus.contexts import Contexts

    print_items(session, Contexts().list(), TABLE)


@command.command()
@click.argument("name", required=False)
@common_options
@output_options
@pass_session
def show(session: Session, name: str | None) -> None:
    """Show a context, by default the one that commands would use now."""
    from ipe_events.bus.contexts import Context, Contexts

    chosen = name or session.context
    found = next((one for one in Contexts().list() if (one.name == chosen if chosen else one.current)), None)
    if chosen and found is None:
        Contexts().get(chosen)  # says which ones are known
    if found is None:
        settings = session.bus_settings()
        found = Context("(none)", settings, settings.source, current=True)
    fields = {
        "Name": found.name,
        "Current": found.current,
        "Servers": ", ".join(found.settings.servers),
        "Authentication": _authentication(found),
        "TLS": found.settings.wants_tls,
        "From": found.settings.source,
    }
    print_record(session, found, TABLE, fields)


@command.command()
@click.argument("name")
@common_options
@pass_session
def remove(session: Session, name: str) -> None:
    """Remove a context."""
    from ipe_events.bus.contexts import Contexts

    Contexts().remove(name)
    session.note(f"context {name} is removed")
