"""``ipe``: noun, then verb. This module knows the nouns, loads the one that was asked for, and ends the process.

Every way a command can fail passes through ``Root.main``: an error becomes one line on standard error and an exit code
(0 fine, 1 findings or failed checks, 2 usage, 3 failure, 130 interrupted, 141 nobody reads on), a traceback is shown with
``--debug`` alone. The table of nouns repeats each command's one-line help, so that ``ipe --help`` imports none of them; a test
holds the two equal.
"""

import os
import sys
import traceback
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NoReturn

import click

from ipe_events.cli.common import CLOSED_PIPE, FAILURE, INTERRUPTED, USAGE, Session, common_options, describe, exit_code

NOUNS: dict[str, tuple[str, str]] = {
    "agent": ("ipe_events.cli.agent", "Serve clusters: collect their changes, act on commands, answer questions."),
    "bus": ("ipe_events.cli.bus", "Run, plan and size the NATS JetStream bus."),
    "clusters": ("ipe_events.cli.clusters", "See which clusters are served and how they are."),
    "commands": ("ipe_events.cli.commands", "See what handlers asked for and what became of it."),
    "completion": ("ipe_events.cli.completion", "Print the shell's completion script."),
    "context": ("ipe_events.cli.context", "Remember how to reach a bus, by name."),
    "demo": ("ipe_events.cli.demo", "Watch the whole story happen, on this machine, in twenty seconds."),
    "dlq": ("ipe_events.cli.dlq", "See and replay the messages that handlers gave up on."),
    "doctor": ("ipe_events.cli.doctor", "Check bus, clusters and handlers, and say how to fix what is wrong."),
    "events": ("ipe_events.cli.events", "Read the record: changes, findings, commands, outcomes, gaps."),
    "handlers": ("ipe_events.cli.handlers", "Write, test and run handlers."),
    "rbac": ("ipe_events.cli.rbac", "Print the Kubernetes rights that an agent needs."),
    "schema": ("ipe_events.cli.schema", "Export or check the JSON Schemas and the AsyncAPI document."),
    "topics": ("ipe_events.cli.topics", "See the families of subjects on the bus."),
    "version": ("ipe_events.cli.version", "Print the versions of ipe, Python and the libraries underneath."),
}
"""Noun → (module that holds ``command``, its one-line help)."""


class _NobodyReads(Exception):
    """Standard output or standard error is a pipe whose reader has gone."""


@contextmanager
def _past_click() -> Iterator[None]:
    """Carries a closed pipe past ``click``, which would end the process with 1: that is our word for a failed check."""
    try:
        yield
    except BrokenPipeError as error:
        raise _NobodyReads from error


class Root(click.Group):
    """The top of the command tree; nouns are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All nouns, sorted."""
        return sorted(NOUNS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a noun, imported now."""
        if cmd_name not in NOUNS:
            return None
        command = import_module(NOUNS[cmd_name][0]).command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """The noun's command; a noun that does not exist is told with its near matches, which click seeks in ``commands``."""
        if self.get_command(ctx, args[0]) is None and not args[0].startswith("-") and not ctx.resilient_parsing:
            raise click.exceptions.NoSuchCommand(args[0], possibilities=NOUNS, ctx=ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The nouns with their one-line help, from the table."""
        with formatter.section("Commands"):
            formatter.write_dl([(noun, NOUNS[noun][1]) for noun in sorted(NOUNS)])

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """As click does it; ``--help`` and ``--version`` print here."""
        with _past_click():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """As click does it; every other command prints here."""
        with _past_click():
            return super().invoke(ctx)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> NoReturn:
        """Run a command line and end the process with its exit code."""
        session = Session()
        options = {"complete_var": complete_var, "standalone_mode": False, "windows_expand_args": windows_expand_args, **extra}
        try:
            with _past_click():
                try:
                    code = super().main(args, prog_name or "ipe", obj=session, **options)
                    sys.stdout.flush()
                except (_NobodyReads, BrokenPipeError):
                    raise
                except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - here alone anything becomes a line and a code
                    code = _told(error, debug=session.debug)
        except _NobodyReads:
            # `ipe events list | head`: the reader has seen enough; Python must not complain again when it flushes at exit
            for stream in (sys.stdout, sys.stderr):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            sys.exit(CLOSED_PIPE)
        sys.exit(code if isinstance(code, int) else 0)


def _told(error: Exception | KeyboardInterrupt, *, debug: bool) -> int:
    """Say on standard error why a command ended, in one line; returns the exit code."""
    match error:
        case click.exceptions.NoArgsIsHelpError():
            click.echo(error.ctx.get_help(), err=True)
            return USAGE
        case click.ClickException():
            click.echo(f"error: {_usage(error)}", err=True)
            return USAGE if isinstance(error, click.UsageError) else FAILURE
        case KeyboardInterrupt() | click.Abort():
            click.echo("interrupted", err=True)
            return INTERRUPTED
    if debug:
        traceback.print_exception(error)
    click.echo(f"error: {describe(error)}", err=True)
    return exit_code(error)


def _usage(error: click.ClickException) -> str:
    """A wrong command line as ``where: what (fix: …)``."""
    context = getattr(error, "ctx", None)
    message = " ".join(error.format_message().split()).rstrip(".")
    message = message[:1].lower() + message[1:]
    if context is None:
        return message
    return f"{context.command_path}: {message} (fix: see `{context.command_path} --help`)"


def _print_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from ipe_events.version import __version__

        click.echo(f"ipe {__version__}")
        ctx.exit()


@click.group("ipe", cls=Root, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Print the version.")
@common_options
def cli() -> None:
    """Event-driven governance for fleets of Kubernetes clusters.

    Handlers decide, agents act, the bus remembers. Start with `ipe demo`.
    """


def main(environ: MutableMapping[str, str] = os.environ) -> NoReturn:
    """Entry point of ``ipe`` and ``kubectl-ipe``."""
    called = os.path.basename(sys.argv[0])  # noqa: PTH119 - pathlib costs start-up time here
    if called == "kubectl-ipe" and "_KUBECTL_IPE_COMPLETE" in environ:
        cli.main(prog_name="kubectl-ipe", complete_var="_KUBECTL_IPE_COMPLETE")
    cli.main(prog_name="kubectl ipe" if called.startswith("kubectl-") else "ipe", complete_var="_IPE_COMPLETE")
