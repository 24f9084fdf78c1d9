"""What every command shares: options, the session they fill, errors as one line, durations, and the way to the bus.

A command is a click function that takes the ``Session`` (``@pass_session``), decorated with ``common_options`` (``--context``,
``--timeout``, ``--debug``, ``-q``, ``-v``) and, if it prints data, ``output_options`` (``-o``, ``--no-headers``). It does its
work in a coroutine handed to ``run``. It raises ``IpeError`` and returns nothing, or an exit code; ``cli.main`` does the rest.
Data goes to standard output; ``session.note`` and ``session.detail`` speak to people on standard error.
"""

import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ipe_events.durations import seconds
from ipe_events.errors import IpeError, UsageError

if TYPE_CHECKING:
    from ipe_events.bus.connection import Bus, BusSettings

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

OK = 0
FINDINGS = 1
"""Checks failed, or there is something to report."""
USAGE = 2
FAILURE = 3
INTERNAL = 70
"""Not foreseen: a bug of ours."""
INTERRUPTED = 130
CLOSED_PIPE = 141
"""Nobody reads any more what we print; what a shell says of a program that SIGPIPE ended."""

FORMATS = ("table", "wide", "json", "yaml", "name")


@dataclass(slots=True)
class Session:
    """One run of ``ipe``: what the shared options said.

    Attributes:
        context: name of the context that tells how to reach the bus; empty: the current one.
        timeout: seconds that connecting, and each question on the bus, may take.
        debug: show tracebacks and the libraries' logs.
        verbose: how often ``-v`` was given.
        quiet: say nothing on standard error but errors.
        output: one of ``FORMATS``.
        headers: whether tables have a header line.
    """

    context: str = ""
    timeout: float = 5.0
    debug: bool = False
    verbose: int = 0
    quiet: bool = False
    output: str = "table"
    headers: bool = True

    def note(self, text: str) -> None:
        """Tell a person something that is not data; silent with ``-q``."""
        if not self.quiet:
            click.echo(text, err=True)

    def detail(self, text: str) -> None:
        """Tell it only with ``-v``."""
        if self.verbose and not self.quiet:
            click.echo(text, err=True)

    def configure_log(self, usual: str = "error") -> None:
        """Send the log to standard error: from level ``usual`` (or ``IPE_LOG_LEVEL``) up; more with ``-v`` and ``--debug``."""
        from ipe_events.telemetry.log import configure

        configure(level="debug" if self.debug else "info" if self.verbose else os.environ.get("IPE_LOG_LEVEL", usual))

    def bus_settings(self) -> "BusSettings":
        """How to reach the bus: the context, the environment (``IPE_NATS_*``) or the default on loopback.

        Raises:
            ConfigError: the context does not exist or is malformed.
        """
        from ipe_events.bus.connection import BusSettings

        return BusSettings.resolve(self.context or None)

    @asynccontextmanager
    async def bus(self) -> "AsyncIterator[Bus]":
        """A connection to the bus, closed at the end.

        Raises:
            BusUnavailable: nobody answers there; names the servers.
        """
        from ipe_events.bus.connection import Bus

        self.configure_log()
        settings = replace(self.bus_settings(), connect_timeout=self.timeout)
        async with await Bus.connect(settings, name="ipe") as bus:
            yield bus


pass_session = click.make_pass_decorator(Session, ensure=True)


class Duration(click.ParamType[float]):
    """A stretch of time such as ``90s``, ``1h30m`` or ``500ms``; the value is in seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds, or a usage error that names the value."""
        try:
            return seconds(value, zero=True)
        except UsageError as error:
            self.fail(f"{error.message}; {error.fix}", param, ctx)


def _store(attribute: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    """A click callback that keeps an option's value in the session, unless the option was not given."""

    def callback(ctx: click.Context, param: click.Parameter, value: Any) -> None:
        source = ctx.get_parameter_source(param.name or "")
        if source not in {None, click.core.ParameterSource.DEFAULT, click.core.ParameterSource.DEFAULT_MAP}:
            setattr(ctx.ensure_object(Session), attribute, value)

    return callback


def _option(attribute: str, *names: str, **settings: Any) -> Callable[[F], F]:
    return click.option(*names, expose_value=False, callback=_store(attribute), **settings)


def _stack(decorators: list[Callable[[F], F]]) -> Callable[[F], F]:
    def apply(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


def common_options(function: F) -> F:
    """``--context``, ``--timeout``, ``--debug``, ``-q`` and ``-v``; they fill the session."""
    return _stack(
        [
            _option("context", "--context", metavar="NAME", help="Context that tells how to reach the bus (`ipe context list`)."),
            _option("timeout", "--timeout", type=Duration(), metavar="TIME", help="How long to wait for an answer.  [5s]"),
            _option("verbose", "-v", "--verbose", count=True, help="Say more on standard error."),
            _option("quiet", "-q", "--quiet", is_flag=True, help="Say nothing on standard error but errors."),
            _option("debug", "--debug", is_flag=True, is_eager=True, help="Show tracebacks and the libraries' logs."),
        ]
    )(function)


def output_options(function: F) -> F:
    """``-o`` and ``--no-headers``; they fill the session."""
    return _stack(
        [
            _option("output", "-o", "--output", type=click.Choice(FORMATS), help="How to print.  [table]"),
            _option("headers", "--no-headers", flag_value=False, default=True, help="Leave the header line out."),
        ]
    )(function)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine; Ctrl-C cancels it, awaits its clean-up and then counts as an interruption."""
    import asyncio

    return asyncio.run(work)


async def until_stopped() -> None:
    """Returns at SIGTERM or Ctrl-C: how a command that serves ends in good order, with exit code 0."""
    import asyncio

    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)
    for number in numbers:
        loop.add_signal_handler(number, stopped.set)
    try:
        await stopped.wait()
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors in a (nested) exception group, or the error itself."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


def describe(error: BaseException) -> str:
    """Any error as one line: ``where: what (fix: …)``."""
    found = list(leaves(error))
    known = [leaf for leaf in found if isinstance(leaf, IpeError)]
    first = known[0] if known else found[0]
    if isinstance(first, IpeError):
        text = str(first)
    elif isinstance(first, OSError) and first.filename:
        text = f"{first.filename}: {first.strerror}"
    else:
        text = f"internal: {type(first).__name__}: {first} (fix: run it again with --debug and report what it shows)"
    line = " ".join(text.split())
    return f"{line} (and {len(found) - 1} more)" if len(found) > 1 else line


def exit_code(error: BaseException) -> int:
    """The process's exit code for an error."""
    first = next((leaf for leaf in leaves(error) if isinstance(leaf, IpeError | OSError)), None)
    if isinstance(first, UsageError):
        return USAGE
    return INTERNAL if first is None else FAILURE
