"""Injection: which value each parameter of a handler gets.

A declaration's injections are resolved once, when its process starts, into values that live as long as the process and factories
that need the call (``Commands`` and ``Bus`` must know the event that they act upon). Calling a handler then is a plain call.
"""

import inspect
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

from ipe_events.clock import Clock
from ipe_events.declaration import Declared, declaration_error, injectable, providers
from ipe_events.runtime.agents import Agents, Snapshots
from ipe_events.runtime.commands import Commands
from ipe_events.runtime.log import Log
from ipe_events.runtime.outbox import Bus, Call, Outbox
from ipe_events.runtime.policies import Policies, PolicyStore
from ipe_events.runtime.state import Ledger, State
from ipe_events.telemetry.log import get_logger

T = TypeVar("T")

injectable(Clock, "Clock")


class Injector:
    """Builds what handlers ask for.

    Args:
        outbox: publishes for them.
        policies: keeps policy documents up to date.
    """

    def __init__(self, outbox: Outbox, policies: PolicyStore) -> None:
        self.outbox = outbox
        self.policies = policies
        self._provided: dict[type, Any] = {}
        self._cleanup = AsyncExitStack()

    async def provide_for(self, declared: Declared) -> None:
        """Build the provided things that a declaration needs, once per process."""
        for injection in declared.injections:
            factory = providers().get(injection.kind)
            if factory is not None and injection.kind not in self._provided:
                self._provided[injection.kind] = await self._build(factory)

    async def close(self) -> None:
        """Let providers clean up, the last one first."""
        await self._cleanup.aclose()

    async def _build(self, factory: Callable[..., Any]) -> Any:
        if inspect.isasyncgenfunction(factory):
            return await self._cleanup.enter_async_context(_managed(factory))
        built = factory()
        return await built if inspect.isawaitable(built) else built

    def bind(self, declared: Declared) -> "Bound":
        """Resolve a declaration's parameters.

        Raises:
            DeclarationError: a type that only exists elsewhere, e.g. a provider that was removed.
        """
        fixed: dict[str, Any] = {}
        per_call: dict[str, Callable[[Call], Any]] = {}
        for injection in declared.injections:
            kind = injection.kind
            if kind is Commands:
                per_call[injection.parameter] = Commands
            elif kind is Bus:
                per_call[injection.parameter] = Bus
            elif kind in self._provided:
                fixed[injection.parameter] = self._provided[kind]
            else:
                fixed[injection.parameter] = self._helper(declared, kind, injection.argument)
        return Bound(declared.function, fixed, per_call)

    def _helper(self, declared: Declared, kind: type, argument: type | None) -> Any:
        port, clock = self.outbox.port, self.outbox.clock
        if kind is State:
            return State(port, declared.name)
        if kind is Ledger:
            return Ledger(port, clock)
        if kind is Agents:
            return Agents(port, declared.name)
        if kind is Snapshots:
            return Snapshots(port, declared.name)
        if kind is Policies:
            return self.policies.select(declared, argument)
        if kind is Clock:
            return clock
        if kind is Log:
            return get_logger(declared.function.__module__).bind(handler=declared.id)
        raise declaration_error(declared.function, f"nobody builds {kind.__name__}")


class Bound:
    """A handler's function with its parameters resolved.

    Attributes:
        needs_call: whether calling it needs a ``Call``.
    """

    __slots__ = ("_fixed", "_function", "_per_call", "needs_call")

    def __init__(
        self, function: Callable[..., Any], fixed: Mapping[str, Any], per_call: Mapping[str, Callable[[Call], Any]]
    ) -> None:
        self._function = function
        self._fixed = dict(fixed)
        self._per_call = dict(per_call)
        self.needs_call = bool(per_call)

    def __call__(self, call: Call | None, *first: Any) -> Any:
        """Call the function; ``first`` is the event, or nothing for timers."""
        if call is None or not self._per_call:
            return self._function(*first, **self._fixed)
        made = {name: factory(call) for name, factory in self._per_call.items()}
        return self._function(*first, **self._fixed, **made)


@asynccontextmanager
async def _managed(factory: Callable[[], AsyncIterator[T]]) -> AsyncIterator[T]:
    iterator = factory()
    yield await anext(iterator)
    # what follows the generator's yield is its clean-up
    async for _surplus in iterator:
        raise RuntimeError(f"provider {factory!r} yields more than once")
