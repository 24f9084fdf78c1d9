"""Runs `ipe` as a person does: with a configuration folder of its own, on a real nats-server."""

import asyncio
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog
from click.testing import CliRunner

from ipe_events.cli.main import cli

IPE = str(Path(sys.executable).with_name("ipe"))


@dataclass(frozen=True)
class Done:
    """What a command line left behind."""

    code: int
    out: str
    err: str

    @property
    def items(self) -> list[dict[str, Any]]:
        """The items of `-o json`."""
        data = json.loads(self.out)
        assert data["version"] == 1
        items: list[dict[str, Any]] = data["items"]
        return items


class Ipe:
    """The command line with one environment."""

    def __init__(self, env: dict[str, str]) -> None:
        self.env = env

    async def start(self, *arguments: str, stdout: int = asyncio.subprocess.PIPE) -> asyncio.subprocess.Process:
        """A process of its own, for what is ended by a signal or by its reader."""
        return await asyncio.create_subprocess_exec(
            IPE, *arguments, env=self.env, stdin=asyncio.subprocess.DEVNULL, stdout=stdout, stderr=asyncio.subprocess.PIPE
        )

    async def __call__(self, *arguments: str) -> Done:
        """Run to the end; in a thread of this process, which spares the imports."""
        hidden: dict[str, str | None] = dict.fromkeys(os.environ)
        done = await asyncio.to_thread(CliRunner().invoke, cli, arguments, env=hidden | self.env)
        return Done(done.exit_code, done.stdout, done.stderr)


@pytest.fixture(autouse=True)
def fresh_log():
    """Commands configure the log of their process, which here is the tests'."""
    yield
    structlog.reset_defaults()


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """An environment in which nothing of this machine's user is seen."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("IPE_", "NATS_", "XDG_", "KUBE", "FORCE_"))}
    folders = {name: str(tmp_path / name.lower()) for name in ("HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")}
    return kept | folders | {"NO_COLOR": "1"}


@pytest.fixture
def lonely_ipe(home: dict[str, str]) -> Ipe:
    """`ipe` without any bus."""
    return Ipe(home | {"IPE_NATS_URL": "nats://127.0.0.1:9"})


@pytest.fixture
def ipe(home: dict[str, str], nats_server) -> Ipe:
    """`ipe` on a fresh server."""
    return Ipe(home | {"IPE_NATS_URL": nats_server.url})
