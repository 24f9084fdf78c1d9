"""Test kit for handlers: ``TestBus``, ``change``, ``FakeClock``, ``assert_idempotent``, ``FakeCluster``; names load lazily."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ipe_events.testing.changes import change
    from ipe_events.testing.clocks import FakeClock
    from ipe_events.testing.fake.cluster import FakeCluster
    from ipe_events.testing.testbus import Published, Result, StartTestBus, TestBus, assert_idempotent

_HOMES = {
    "FakeClock": "ipe_events.testing.clocks",
    "FakeCluster": "ipe_events.testing.fake.cluster",
    "Published": "ipe_events.testing.testbus",
    "Result": "ipe_events.testing.testbus",
    "StartTestBus": "ipe_events.testing.testbus",
    "TestBus": "ipe_events.testing.testbus",
    "assert_idempotent": "ipe_events.testing.testbus",
    "change": "ipe_events.testing.changes",
}

__all__ = ["FakeClock", "FakeCluster", "Published", "Result", "StartTestBus", "TestBus", "assert_idempotent", "change"]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'ipe_events.testing' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value
