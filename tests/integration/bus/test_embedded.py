"""The embedded server: locked, private, restarted, gone with its parent."""

import asyncio
import contextlib
import os
import signal
import socket
import stat
import sys
from pathlib import Path

import pytest

from ipe_events.bus.connection import Bus
from ipe_events.bus.embedded import MAX_PAYLOAD, EmbeddedServer, EmbeddedSettings
from ipe_events.bus.settings import BusSettings
from ipe_events.bus.topology import apply, desired, plan
from ipe_events.errors import ConfigError
from tests.helpers import eventually, free_port
from tests.integration.bus.helpers import make_stream


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def settings(tmp_path: Path, **options: object) -> EmbeddedSettings:
    return EmbeddedSettings(store=str(tmp_path / "store"), **options)  # type: ignore[arg-type]  # passed through


async def test_streams_are_there_after_a_stop_and_a_start(tmp_path: Path):
    async with EmbeddedServer(settings(tmp_path)) as server:
        async with await Bus.connect(server.settings, name="test") as bus:
            assert bus.max_payload == MAX_PAYLOAD
            await apply(bus, await plan(bus, desired(server.topology)))
            await bus.publish("ipe.cmd.a.b.c", b"{}")
        pid = server.pid
        assert pid
    assert not alive(pid)
    async with EmbeddedServer(settings(tmp_path)) as server, await Bus.connect(server.settings, name="test") as bus:
        assert [d.subject async for d in bus.read("IPE_CMD")] == ["ipe.cmd.a.b.c"]


async def test_a_second_one_on_the_same_store_is_told(tmp_path: Path):
    async with EmbeddedServer(settings(tmp_path)):
        with pytest.raises(ConfigError, match="another process runs an embedded NATS server on this store"):
            await EmbeddedServer(settings(tmp_path)).start()
    async with EmbeddedServer(settings(tmp_path)):
        pass


async def test_it_is_private(tmp_path: Path):
    config = {"authorization": {"users": [{"user": "ada", "password": "s3cret"}]}}
    server = EmbeddedServer(settings(tmp_path, config=config, client=BusSettings(user="ada", password="s3cret")))
    async with server, await Bus.connect(server.settings, name="test"):
        assert server.pid
        command = Path(f"/proc/{server.pid}/cmdline").read_bytes()
        assert b"s3cret" not in command
        file = server.store / "nats-server.conf"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        listening = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        local = {address for _, address, _, state, *_ in listening if state == "0A" and address.endswith(f"{server.port:04X}")}
        assert local == {f"0100007F:{server.port:04X}"}
    assert "s3cret" not in repr(settings(tmp_path, config=config))
    with pytest.raises(ConfigError, match="does not take http_port, mqtt"):
        await EmbeddedServer(settings(tmp_path, config={"mqtt": {"port": 1883}, "http_port": 8222})).start()


async def test_it_is_started_again_on_the_same_port(tmp_path: Path):
    restarted = asyncio.Event()
    async with (
        EmbeddedServer(settings(tmp_path), on_restart=restarted.set) as server,
        await Bus.connect(server.settings, name="test") as bus,
    ):
        await make_stream(bus, "S", "s.>")
        await bus.publish("s.a", b"1")
        first, port = server.pid, server.port
        assert first
        os.kill(first, signal.SIGKILL)
        await restarted.wait()
        assert server.pid not in (None, first)
        assert server.port == port
        assert (await bus.publish("s.a", b"2", timeout=20)).seq == 2


async def test_a_port_that_is_taken_is_said(tmp_path: Path):
    with socket.socket() as taken:
        port = free_port()
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with pytest.raises(ConfigError, match=f"port {port} is taken"):
            await EmbeddedServer(settings(tmp_path, port=port)).start()


async def test_bad_configuration_is_said_with_the_servers_words(tmp_path: Path):
    with pytest.raises(ConfigError, match="nats-server ended with code 1"):
        await EmbeddedServer(settings(tmp_path, config={"nonsense": True})).start()


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux")
async def test_it_dies_with_its_parent(tmp_path: Path):
    program = (
        "import asyncio, sys\n"
        "from ipe_events.bus.embedded import EmbeddedServer, EmbeddedSettings\n"
        "async def main():\n"
        "    server = EmbeddedServer(EmbeddedSettings(store=sys.argv[1]))\n"
        "    await server.start()\n"
        "    print(server.pid, flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(tmp_path / "store"), stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout
    pid = int(await parent.stdout.readline())
    assert alive(pid)
    parent.kill()
    await parent.wait()
    await eventually(lambda: not alive(pid))
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
