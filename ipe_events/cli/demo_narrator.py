"""How the demo speaks: numbered steps with the time they took and the command that shows the same again.

For people it prints sentences, for programs (``-o json``) one object per step. It also listens: ``Listener`` follows the bus from
its first message and lets a step wait for exactly the event that it is about.
"""

import asyncio
import textwrap
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import click

from ipe_events.cli.common import Session
from ipe_events.cli.printers import clean, colourful, tell, to_json
from ipe_events.cli.reading import follow
from ipe_events.cli.record import Entry, Query
from ipe_events.clock import SYSTEM, Clock
from ipe_events.errors import IpeError
from ipe_events.tasks import end

if TYPE_CHECKING:
    from ipe_events.bus.connection import Bus

T = TypeVar("T")

_REMEMBERED = 20_000
"""Events that the listener keeps; the demo makes a few thousand."""


class StepFailed(IpeError):
    """A step of the story did not happen in its time."""


class Narrator:
    """Prints the story.

    Args:
        session: how to print.
        pace: seconds to pause between chapters, for people who read.
    """

    def __init__(self, session: Session, pace: float, clock: Clock = SYSTEM) -> None:
        self._session = session
        self._pace = pace
        self._clock = clock
        self._begun = clock.monotonic()
        self._step = 0
        self._json = session.output == "json"

    @property
    def seconds(self) -> float:
        """Since the story began."""
        return self._clock.monotonic() - self._begun

    async def chapter(self, title: str) -> None:
        """Begin a chapter: a pause, and its title."""
        if self._step and self._pace:
            await asyncio.sleep(self._pace)
        if not self._json:
            tell(f"\n{self._bold(title)}")

    def step(self, name: str, text: str, *, show: str = "", seconds: float | None = None, detail: str = "") -> None:
        """Tell that a step has happened.

        Args:
            name: stable, for programs.
            text: one sentence.
            show: the command that shows it again.
            seconds: how long it took, when that is of interest.
            detail: lines to print below, as they are.
        """
        self._step += 1
        if self._json:
            said = {"version": 1, "step": name, "ok": True, "at": round(self.seconds, 3), "text": text, "show": show}
            tell(to_json(said if seconds is None else {**said, "seconds": round(seconds, 3)}, indent=None))
            return
        took = f" (after {seconds:.2f} s)" if seconds is not None else ""
        mark = click.style("✔", fg="green") if colourful() else "✔"
        lines = textwrap.wrap(f"{clean(text)}{took}", 110, subsequent_indent="             ")
        tell(f"  {self.seconds:5.1f}s {mark}  " + "\n".join(lines))
        if detail:
            tell(textwrap.indent(detail, "             "))
        if show:
            tell(f"             {self._dim('$ ' + show)}")

    def failed(self, text: str) -> None:
        """Tell which step did not happen."""
        if self._json:
            tell(to_json({"version": 1, "step": "failed", "ok": False, "at": round(self.seconds, 3), "text": text}, indent=None))
            return
        mark = click.style("✘", fg="red") if colourful() else "✘"
        tell(f"  {self.seconds:5.1f}s {mark}  {clean(text)}")

    def say(self, text: str) -> None:
        """A line outside the steps; not for programs."""
        if not self._json:
            tell(text)

    @staticmethod
    def _bold(text: str) -> str:
        return click.style(text, bold=True) if colourful() else text

    @staticmethod
    def _dim(text: str) -> str:
        return click.style(text, fg="cyan") if colourful() else text


class Listener:
    """Follows the bus and hands out the events that steps wait for; an async context manager.

    Args:
        bus: the connection.
        trouble: what failed behind the stage, if anything: then nothing more will come.
    """

    def __init__(self, bus: "Bus", trouble: Callable[[], IpeError | None]) -> None:
        self._bus = bus
        self._trouble = trouble
        self._seen: deque[Entry] = deque(maxlen=_REMEMBERED)
        self._waiting: list[tuple[Callable[[Entry], bool], asyncio.Future[Entry]]] = []
        self._task: asyncio.Task[None] | None = None
        self.total = 0
        """Events seen so far."""

    async def __aenter__(self) -> "Listener":
        self._task = asyncio.create_task(self._listen(), name="demo-listener")
        return self

    async def __aexit__(self, *_exc: object) -> None:
        assert self._task is not None
        await end(self._task)

    def count(self, wanted: Callable[[Entry], bool]) -> int:
        """How many remembered events are wanted ones."""
        return sum(map(wanted, self._seen))

    async def until(self, what: str, wanted: Callable[[Entry], bool], seconds: float) -> Entry:
        """The first wanted event, past or coming.

        Raises:
            StepFailed: none came in that time; says ``what`` was awaited.
            IpeError: what failed behind the stage meanwhile.
        """
        for entry in self._seen:
            if wanted(entry):
                return entry
        future: asyncio.Future[Entry] = asyncio.get_running_loop().create_future()
        self._waiting.append((wanted, future))
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while not future.done():
            if (trouble := self._trouble()) is not None:
                raise trouble
            if loop.time() > deadline:
                raise StepFailed(f"did not happen within {seconds:g} s: {what}", fix="look at the log with `ipe demo -v`")
            await asyncio.wait([future], timeout=0.05)
        return future.result()

    async def _listen(self) -> None:
        try:
            # from the first message on, so that nothing is missed between the stage and the listener
            async for entry in follow(self._bus, Query(), since=SYSTEM.now().replace(year=2000)):
                self.total += 1
                self._seen.append(entry)
                for wanted, future in list(self._waiting):
                    if not future.done() and wanted(entry):
                        future.set_result(entry)
                self._waiting = [(wanted, future) for wanted, future in self._waiting if not future.done()]
        except IpeError as error:
            for _, future in self._waiting:
                if not future.done():
                    future.set_exception(error)
            raise


async def eventually(what: str, probe: Callable[[], T | None], seconds: float) -> T:
    """The first answer of ``probe`` that is not None; asked every few milliseconds.

    Raises:
        StepFailed: there was none in that time.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while (found := probe()) is None:
        if loop.time() > deadline:
            raise StepFailed(f"did not happen within {seconds:g} s: {what}", fix="look at the log with `ipe demo -v`")
        await asyncio.sleep(0.02)
    return found
