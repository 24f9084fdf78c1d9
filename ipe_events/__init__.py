"""IPE Events: handlers decide, agents act, the bus remembers.

These are the public names of the SDK. They are resolved when first used, so importing the package costs next to nothing, and a
file of handlers loads neither NATS nor HTTP.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ipe_events.clock import Clock
    from ipe_events.events.change import Change
    from ipe_events.events.message import Event, Message
    from ipe_events.handler import Backoff, Batch, Reject, Retry, Skip, every, handler, provide, service
    from ipe_events.runtime.agents import Agents, Snapshots
    from ipe_events.runtime.commands import Commands
    from ipe_events.runtime.log import Log
    from ipe_events.runtime.outbox import Bus
    from ipe_events.runtime.policies import Policies
    from ipe_events.runtime.state import Ledger, State

_HOMES = {
    "Agents": "ipe_events.runtime.agents",
    "Backoff": "ipe_events.handler",
    "Batch": "ipe_events.handler",
    "Bus": "ipe_events.runtime.outbox",
    "Change": "ipe_events.events.change",
    "Clock": "ipe_events.clock",
    "Commands": "ipe_events.runtime.commands",
    "Event": "ipe_events.events.message",
    "Ledger": "ipe_events.runtime.state",
    "Log": "ipe_events.runtime.log",
    "Message": "ipe_events.events.message",
    "Policies": "ipe_events.runtime.policies",
    "Reject": "ipe_events.handler",
    "Retry": "ipe_events.handler",
    "Skip": "ipe_events.handler",
    "Snapshots": "ipe_events.runtime.agents",
    "State": "ipe_events.runtime.state",
    "every": "ipe_events.handler",
    "handler": "ipe_events.handler",
    "provide": "ipe_events.handler",
    "service": "ipe_events.handler",
}

__all__ = [
    "Agents",
    "Backoff",
    "Batch",
    "Bus",
    "Change",
    "Clock",
    "Commands",
    "Event",
    "Ledger",
    "Log",
    "Message",
    "Policies",
    "Reject",
    "Retry",
    "Skip",
    "Snapshots",
    "State",
    "every",
    "handler",
    "provide",
    "service",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'ipe_events' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """This package: importing its submodule ``handler`` leaves the public name ``handler`` to the decorator."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "handler" and isinstance(value, ModuleType):
            value = value.handler
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
