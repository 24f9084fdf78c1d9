"""The demo happens, is told, can be looked at from outside, and does not claim what did not happen."""

import asyncio
import json
import re
import signal
from pathlib import Path

import pytest

from ipe_events.cli import demo_story
from ipe_events.testing.fake import FakeCluster, Rule

STORY = [
    "bus", "clusters", "first-event", "connected", "handler", "change", "command", "outcome", "effect", "refusal", "trace",
]  # fmt: skip


def deployment(name: str, replicas: int) -> dict[str, object]:
    labels = {"app": name}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "a", "image": "registry.example.com/a:1"}]}}
    spec = {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": spec}


async def test_every_step_happens_and_is_told(lonely_ipe):
    done = await lonely_ipe("demo", "--pace", "0s", "-o", "json")
    steps = [json.loads(line) for line in done.out.splitlines()]
    assert done.code == 0, done.err
    assert [step["step"] for step in steps] == STORY
    assert all(step["ok"] and step["version"] == 1 for step in steps)
    assert "simulated" in steps[1]["text"]


async def test_it_reads_as_a_story_and_says_how_to_see_it_again(lonely_ipe):
    lonely_ipe.env["PATH"] = "/nowhere"  # as after `make demo`
    done = await lonely_ipe("demo", "--pace", "0s")
    assert done.code == 0
    for said in (
        "simulated clusters",
        "`ipe` is ",
        "scale_guard asks: patch /spec/replicas → 50",
        "$ ipe events trace IPE_GOV:",
        "└─ outcome",
    ):
        assert said in done.out


async def test_with_keep_a_second_terminal_sees_the_same(lonely_ipe):
    lonely_ipe.env.pop("IPE_NATS_URL")
    process = await lonely_ipe.start("demo", "--pace", "0s", "--keep", "-o", "json")
    assert process.stdout is not None
    shown = {}
    async with asyncio.timeout(50):
        while "trace" not in shown:
            step = json.loads(await process.stdout.readline())
            shown[step["step"]] = step["show"]
    for name, line in shown.items():
        if line and name != "handler":
            again = await lonely_ipe(*line.split()[1:])
            assert again.code == 0, (line, again.err)
            assert again.out.strip(), line
    trace = await lonely_ipe(*shown["trace"].split()[1:], "-o", "json")
    assert [item["topic"] for item in trace.items][:4] == ["change", "command", "outcome", "change"]
    healthy = await lonely_ipe("doctor", "--context", "demo", "-o", "json")
    assert healthy.code == 0, [item for item in healthy.items if item["status"] == "failed"]
    process.send_signal(signal.SIGINT)
    await process.communicate()
    assert process.returncode == 0
    assert (await lonely_ipe("context", "list", "-o", "json")).items == []


async def test_a_step_that_does_not_happen_fails_the_demo(lonely_ipe, monkeypatch, tmp_path):
    lazy = tmp_path / "scale_guard.py"
    lazy.write_text(
        "from ipe_events import Change, Event, handler\n\n\n"
        '@handler(on="deployments.apps")\nasync def scale_guard(event: Event[Change]) -> None:\n    """Does nothing."""\n'
    )
    monkeypatch.setattr(demo_story, "example_file", lambda: lazy)
    monkeypatch.setattr(demo_story, "STEP_SECONDS", 1.0)
    done = await lonely_ipe("demo", "--pace", "0s")
    assert done.code == 1
    assert "✘  did not happen within 1 s: the handler's command" in done.out
    assert "Every step happened" not in done.out


async def test_your_own_cluster_is_observed_and_never_written(lonely_ipe, tmp_path):
    async with FakeCluster(name="mine", token="t") as cluster:
        cluster.create(deployment("web", 2))
        cluster.create(deployment("huge", 80))
        before = cluster.resource_version
        done = await lonely_ipe("demo", "--pace", "0s", "--kubeconfig", str(cluster.kubeconfig(tmp_path / "kubeconfig")))
        assert done.code == 0, done.out + done.err
        # how many it has looked at when its first command is refused depends on the order of the list
        assert re.search(r"looked at [12] deployments and asked for 1 changes", done.out), done.out
        assert "1 of 1 commands were refused" in done.out
        assert cluster.resource_version == before


async def test_refused_rights_are_named_with_the_fix(lonely_ipe, tmp_path):
    reads = ("get", "list", "watch")
    async with FakeCluster(name="mine", token="t") as cluster:
        cluster.add_token("weak", "weak", rules=[Rule(groups=("",), resources=("pods", "namespaces"), verbs=reads)])
        file = cluster.kubeconfig(tmp_path / "kubeconfig", token="weak")
        done = await lonely_ipe("demo", "--pace", "0s", "--kubeconfig", str(file))
    assert done.code == 1
    failed = next(line for line in done.out.splitlines() if "✘" in line)
    assert "mine: deployments.apps is refused: " in failed
    assert "`ipe rbac agent --collect deployments.apps`" in failed


async def test_credentials_that_may_not_even_ask_are_named_at_once(lonely_ipe, tmp_path):
    async with FakeCluster(name="mine", token="t") as cluster:
        cluster.add_token("weak", "weak", rules=[])
        for token, said in (("weak", "forbidden"), ("wrong", "Unauthorized")):
            file = cluster.kubeconfig(tmp_path / token, token=token)
            async with asyncio.timeout(30):  # an agent tries again for ever, and the demo waits two minutes for it
                done = await lonely_ipe("demo", "--pace", "0s", "--kubeconfig", str(file))
            assert done.code == 1
            failed = next(line for line in done.out.splitlines() if "✘" in line)
            assert said in failed
            assert "ipe rbac agent" in done.out


@pytest.mark.parametrize(
    ("content", "said"),
    [("apiVersion: [", "is not YAML"), ("- a\n- b\n", "not a mapping"), ("apiVersion: v1\nkind: Config\n", "context")],
)
async def test_a_malformed_kubeconfig_is_one_line(lonely_ipe, tmp_path, content, said):
    file: Path = tmp_path / "kubeconfig"
    file.write_text(content)
    done = await lonely_ipe("demo", "--pace", "0s", "--kubeconfig", str(file))
    assert done.code == 3
    assert done.err.startswith("error: ")
    assert str(file) in done.err
    assert said in done.err
    assert done.err.count("\n") == 1
