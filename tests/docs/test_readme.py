"""Every snippet of the README runs, every command in it exists, every table in it is what the code says."""

import asyncio
import json
import os
import re
import shlex
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import click
import pytest

from ipe_events.cli.main import NOUNS
from tests.docs.tables import README, ROOT, declared_metrics, filled
from tests.helpers import eventually, free_port

TEXT = README.read_text(encoding="utf-8")


class Block(NamedTuple):
    """A fenced block: its language, the file it says it is, its lines."""

    language: str
    title: str
    text: str


BLOCKS = [
    Block(found[1], found[2] or "", found[3])
    for found in re.finditer(r"^```(\w+)(?: title=(\S+))?\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
]
BASH = [block for block in BLOCKS if block.language == "bash"]


def command_lines() -> list[str]:
    """Every line of the bash blocks, without comments."""
    lines = [line.split("  #")[0].strip() for block in BASH for line in block.text.splitlines()]
    return [line for line in lines if line]


def mentioned() -> list[str]:
    """Every `ipe …` of the README, in blocks and in running text."""
    inline = re.findall(r"`(ipe [^`]+)`", TEXT)
    return [*(line for line in command_lines() if line.startswith("ipe ")), *inline]


def test_the_blocks_are_of_known_kinds():
    assert {block.language for block in BLOCKS} <= {"bash", "python", "yaml", "mermaid"}
    assert len(BASH) >= 5


@pytest.mark.parametrize("line", sorted(set(mentioned())))
def test_every_command_exists_and_takes_these_options(line):
    words = shlex.split(line.removesuffix("&"))[1:]
    assert words[0] in NOUNS, line
    command: click.Command = import_module(NOUNS[words[0]][0]).command
    rest = words[1:]
    while isinstance(command, click.Group) and rest:
        assert rest[0] in command.commands, f"{line}: no {rest[0]}"
        command, rest = command.commands[rest[0]], rest[1:]
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    for word in rest:
        if word.startswith("-"):
            assert word.split("=")[0] in options, f"{line}: no option {word}"


def test_every_make_target_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = [line.split()[1] for line in command_lines() if line.startswith("make ")]
    assert targets == ["demo", "test"]
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_the_handler_is_the_shipped_example_of_twelve_lines():
    block = next(block for block in BLOCKS if block.language == "python")
    shipped = (ROOT / block.title).read_text(encoding="utf-8")
    assert block.text == shipped
    assert len([line for line in shipped.splitlines() if line.strip()]) <= 12


def test_the_agents_configuration_is_valid():
    from ipe_events.agent.config import parse_config

    block = next(block for block in BLOCKS if block.title == "agent.yaml")
    config = parse_config(block.text, "README.md")
    assert config.grants[0].mode == "enforce"


def test_every_table_is_what_the_code_says():
    assert filled(TEXT) == TEXT, "run `python -m tests.docs.tables`"


def test_every_metric_is_named_by_the_rules():
    names = [name for name, *_ in declared_metrics()]
    assert names
    assert len(names) == len(set(names)), "a metric is declared twice"
    for name, kind, _labels, doc in declared_metrics():
        assert re.fullmatch(r"ipe_[a-z0-9_]+", name)
        assert doc.endswith("."), name
        assert (kind == "counter") == name.endswith("_total"), name


def test_every_link_leads_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        if "://" not in target:
            assert (ROOT / target).exists(), target


def test_every_guarantee_names_a_test_that_exists():
    section = TEXT.split("## Guarantees")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ") and "---" not in line][1:]
    assert rows
    for row in rows:
        named = re.findall(r"`(tests/[^`]+)`", row)
        assert named, row
        for name in named:
            file, _, function = name.partition("::")
            assert (ROOT / file).is_file(), name
            if function:
                assert f"def {function}(" in (ROOT / file).read_text(encoding="utf-8"), name


class Shell:
    """Runs the README's lines one by one as a reader would, in a folder that looks like the checkout."""

    def __init__(self, folder: Path, kubeconfig: Path) -> None:
        self.folder = folder
        self.port = str(free_port())
        self.background: list[asyncio.subprocess.Process] = []
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("IPE_", "NATS_", "XDG_", "KUBE"))}
        homes = {name: str(folder / name.lower()) for name in ("HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.env = kept | homes | {"PATH": path, "KUBECONFIG": str(kubeconfig), "NO_COLOR": "1"}
        (folder / "handlers").symlink_to(ROOT / "handlers")

    async def run(self, line: str) -> str:
        """Run a line to its end; its standard output."""
        process = await self._start(line)
        out, err = await process.communicate()
        assert process.returncode == 0, f"{line}\n{out.decode()}\n{err.decode()}"
        return out.decode()

    async def serve(self, line: str) -> None:
        """Start a line that ends in `&` and wait until what it serves is there."""
        command = line.removesuffix("&").strip()
        if command.startswith("ipe bus serve"):
            command += f" --port {self.port}"
        process = await self._start(f"exec {command}")
        self.background.append(process)
        if command.startswith("ipe bus serve"):
            assert process.stdout is not None
            await asyncio.wait_for(process.stdout.readline(), 30)
        elif command.startswith("ipe agent run"):
            await self._ready(process, "ipe clusters list -o json", "state", "connected")
        elif command.startswith("ipe handlers run"):
            await self._ready(process, "ipe doctor -o json", "check", "handler scale_guard")
        else:
            pytest.fail(f"how is {command!r} known to be ready?")

    async def _ready(self, served: asyncio.subprocess.Process, line: str, key: str, value: str) -> None:
        """Ask by a command line until one of its items says so, or the process has died."""

        async def probe() -> bool:
            asked = await self._start(line)
            out, _ = await asked.communicate()
            items = json.loads(out)["items"] if out else []
            return served.returncode is not None or any(item.get(key) == value for item in items)

        await eventually(probe, timeout=40, interval=0.2)
        if served.returncode is not None:
            _, err = await served.communicate()
            pytest.fail(f"it died: {err.decode()[-2000:]}")

    async def _start(self, line: str) -> asyncio.subprocess.Process:
        text = line.replace("127.0.0.1:4222", f"127.0.0.1:{self.port}")
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec("bash", "-c", text, cwd=self.folder, env=self.env, stdout=pipe, stderr=pipe)

    async def end(self) -> None:
        """End what runs in the background, the last first; each must end in good order."""
        for process in reversed(self.background):
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
            _, err = await asyncio.wait_for(process.communicate(), 40)
            assert process.returncode == 0, err.decode()[-2000:]


@pytest.mark.timeout(180)
async def test_every_command_runs_from_top_to_bottom(tmp_path):
    from ipe_events.testing.fake import FakeCluster

    async with FakeCluster(name="mine", token="t") as cluster:
        cluster.create(_deployment())
        shell = Shell(tmp_path, cluster.kubeconfig(tmp_path / "kubeconfig"))
        try:
            for line in command_lines():
                if line.startswith("make "):
                    continue
                if line.endswith("&"):
                    await shell.serve(line)
                else:
                    await shell.run(line)
        finally:
            await shell.end()


def _deployment() -> dict[str, object]:
    labels = {"app": "web"}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "web", "image": "registry.example.com/web:1"}]}}
    spec = {"replicas": 2, "selector": {"matchLabels": labels}, "template": template}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": spec}
