"""A simulated Kubernetes API server: ``FakeCluster``.

The names load when they are first used: ``ipe_events.testing.faults`` words its refusals with this package's ``status``, and the
server in turn needs the faults.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ipe_events.testing.fake.auth import Rule
    from ipe_events.testing.fake.cluster import FakeCluster
    from ipe_events.testing.fake.status import StatusError

__all__ = ["FakeCluster", "Rule", "StatusError"]

_HOMES = {"FakeCluster": "cluster", "Rule": "auth", "StatusError": "status"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
