"""The pytest plugin that users of the test kit get by installing the package.

pytest imports it in every run of every project, so it imports nothing itself: the kit is loaded when a fixture is used.

``test_bus`` makes a ``TestBus``. The same test runs on a real nats-server too when it is parametrised:

    @pytest.mark.parametrize("test_bus", ["memory", "nats"], indirect=True)
    async def test_page(test_bus): ...
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from ipe_events.testing.clocks import FakeClock
    from ipe_events.testing.fake.cluster import FakeCluster
    from ipe_events.testing.testbus import StartTestBus, TestBus

MODES = ("memory", "nats")


@pytest.fixture
def fake_clock() -> FakeClock:
    """A clock that stands still until the test moves it."""
    from ipe_events.testing.clocks import FakeClock

    return FakeClock()


try:
    import pytest_asyncio
except ImportError:  # pragma: no cover - a project without pytest-asyncio gets the synchronous fixtures only
    pass
else:

    @pytest_asyncio.fixture
    async def test_bus(request: pytest.FixtureRequest, fake_clock: FakeClock, tmp_path: Path) -> AsyncIterator[StartTestBus]:
        """``await test_bus(handler, …)`` gives a running ``TestBus``, in memory or (``"nats"``) on a real server of its own."""
        mode = getattr(request, "param", "memory")
        if mode not in MODES:
            raise pytest.UsageError(f"test_bus is parametrised with {mode!r}; known: {', '.join(MODES)}")
        from ipe_events.testing.testbus import TestBus

        async with AsyncExitStack() as stack:
            server = None
            if mode == "nats":
                from ipe_events.bus.embedded import EmbeddedServer, EmbeddedSettings

                embedded = await stack.enter_async_context(EmbeddedServer(EmbeddedSettings(store=str(tmp_path / "nats"))))
                server = embedded.url

            async def run(*functions: Callable[..., Any], **options: Any) -> TestBus:
                return await stack.enter_async_context(TestBus(*functions, server=server, **{"clock": fake_clock, **options}))

            yield run

    @pytest_asyncio.fixture
    async def fake_cluster() -> AsyncIterator[FakeCluster]:
        """A simulated cluster that speaks the Kubernetes API over HTTP."""
        from ipe_events.testing.fake.cluster import FakeCluster

        async with FakeCluster() as cluster:
            yield cluster
