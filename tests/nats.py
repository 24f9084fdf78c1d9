"""A real nats-server for tests: own store folder, free port, killed and restarted at will, with users or TLS when asked for.

``nats_server`` is a fresh server per test; ``shared_nats`` one per session, for tests that keep to streams of their own;
``nats_factory`` makes servers with extra configuration. ``bus`` is a connection to ``nats_server``.
"""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio

from ipe_events.bus.connection import Bus, BusSettings
from ipe_events.bus.embedded import MAX_PAYLOAD, server_binary
from tests.helpers import free_port

READY_SECONDS = 10.0


@dataclass
class NatsServer:
    """A nats-server process.

    Attributes:
        folder: store, configuration and log.
        extra: more lines for the configuration file.
        jetstream: whether JetStream is on.
        port: stays the same over restarts.
    """

    folder: Path
    extra: str = ""
    jetstream: bool = True
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def settings(self) -> BusSettings:
        return BusSettings(servers=(self.url,))

    @property
    def log(self) -> str:
        return (self.folder / "nats.log").read_text(errors="replace")

    def start(self) -> "NatsServer":
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "nats.conf"
        lines = [f'listen: "127.0.0.1:{self.port}"', f"max_payload: {MAX_PAYLOAD}", f'logfile: "{self.folder / "nats.log"}"']
        if self.jetstream:
            lines.append(f'jetstream {{ store_dir: "{self.folder / "store"}", max_file_store: 1TB, max_memory_store: 256MB }}')
        config.write_text("\n".join([*lines, self.extra]) + "\n")
        config.chmod(0o600)
        self.process = subprocess.Popen([server_binary(), "-c", config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._await_ready()
        return self

    def kill(self) -> None:
        """SIGKILL, as a crash."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM, as an administrator."""
        self._end(signal.SIGTERM)

    def restart(self) -> None:
        """Starts again on the same port and store."""
        if self.process:
            self.stop()
        self.start()

    def _end(self, number: signal.Signals) -> None:
        if self.process:
            self.process.send_signal(number)
            self.process.wait(timeout=20)
            self.process = None

    def _await_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            assert self.process
            if self.process.poll() is not None:
                raise AssertionError(f"nats-server ended with {self.process.returncode}: {self.log[-2000:]}")
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            time.sleep(0.005)
        raise AssertionError(f"nats-server does not listen: {self.log[-2000:]}")


Factory = Callable[..., NatsServer]


@pytest.fixture
def nats_factory(tmp_path: Path) -> Iterator[Factory]:
    """Makes started servers; arguments are those of ``NatsServer`` but the folder."""
    servers: list[NatsServer] = []

    def make(**options: object) -> NatsServer:
        server = NatsServer(tmp_path / f"nats-{len(servers)}", **options)  # type: ignore[arg-type]  # passed through
        servers.append(server)
        return server.start()

    yield make
    for server in servers:
        server.kill()


@pytest.fixture
def nats_server(nats_factory: Factory) -> NatsServer:
    """A fresh server."""
    return nats_factory()


@pytest.fixture(scope="session")
def shared_nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """One server for tests that keep to streams and subjects of their own; never kill it."""
    server = NatsServer(tmp_path_factory.mktemp(f"shared-nats-{os.getpid()}")).start()
    yield server
    server.kill()


@pytest_asyncio.fixture
async def bus(nats_server: NatsServer) -> AsyncIterator[Bus]:
    """A connection to ``nats_server``."""
    async with await Bus.connect(nats_server.settings, name="test") as connection:
        yield connection
