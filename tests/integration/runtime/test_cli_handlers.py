"""``ipe handlers`` as a user runs it: a scaffold whose test passes, a process that handles, drains and says what is wrong."""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from ipe_events.bus import topology
from ipe_events.testing import change
from ipe_events.testing.testbus import codec_headers
from tests.helpers import eventually

EXAMPLE = Path(__file__).parents[3] / "handlers" / "examples" / "scale_guard.py"


async def ipe(*arguments: str, cwd: Path, **environment: str) -> tuple[int, str, str]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *COMMAND, "handlers", *arguments, cwd=cwd, stdout=pipe, stderr=pipe, env={**os.environ, **environment}
    )
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


COMMAND = [sys.executable, "-c", "from ipe_events.cli.main import main; main()"]


async def test_the_scaffold_passes_its_own_test(tmp_path):
    code, out, _ = await ipe("new", "zero_guard", cwd=tmp_path)
    assert code == 0
    assert out.split() == ["zero_guard.py", "test_zero_guard.py"]
    code, out, err = await ipe("test", "zero_guard.py", cwd=tmp_path)
    assert code == 0, out + err
    assert "3 passed" in out
    (tmp_path / "zero_guard.py").write_text((tmp_path / "zero_guard.py").read_text().replace("> 0", "> 5"))
    code, out, _ = await ipe("test", "zero_guard.py", cwd=tmp_path)
    assert (code, "passed" in out) == (0, True)
    code, _, err = await ipe("new", "zero_guard", cwd=tmp_path)
    assert code == 2
    assert "exists already" in err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1\n", ["no handler is declared"]),
        ("import nothing_here\n", ["line 1", "nothing_here"]),
        ("from ipe_events import handler\n\n@handler\nasync def f(event: dict): ...\n", ["f:", "'event'", "dict"]),
    ],
)
async def test_a_wrong_file_is_one_line(tmp_path, nats_server, text, words):
    (tmp_path / "page.py").write_text(text)
    code, _, err = await ipe("run", "page.py", cwd=tmp_path, IPE_NATS_URL=nats_server.url)
    assert code in {2, 3}
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1, err
    for word in words:
        assert word in err


async def test_run_handles_until_sigterm(tmp_path, nats_server, bus):
    await topology.ensure(bus)
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *COMMAND, "handlers", "run", str(EXAMPLE), "--health-port", "0",
        cwd=tmp_path, stdout=pipe, stderr=pipe, env={**os.environ, "IPE_NATS_URL": nats_server.url},
    )  # fmt: skip
    assert process.stderr is not None
    lines: list[str] = []
    async with asyncio.timeout(20):
        while "handlers run: scale_guard" not in "".join(lines):
            line = await process.stderr.readline()
            assert line, "".join(lines)
            lines.append(line.decode())
    document: dict[str, Any] = {
        "kind": "Deployment",
        "apiVersion": "apps/v1",
        "metadata": {"name": "cart", "namespace": "shop"},
        "spec": {"replicas": 80},
    }
    one = change(document, cluster="prod-eu")
    await bus.publish(one.subject, one.body, id=one.id, headers=codec_headers(one.header_bytes))

    async def commands() -> int:
        return int((await bus.stream_info("IPE_CMD"))["state"]["messages"])

    await eventually(commands)
    process.send_signal(signal.SIGTERM)
    _, rest = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 0, rest.decode()
    assert "Traceback" not in rest.decode()
    code, out, err = await ipe("list", "-o", "name", cwd=tmp_path, IPE_NATS_URL=nats_server.url)
    assert code == 0, err
    assert "scale_guard" in out.split()
