"""`ipe bus`, `ipe context`: a bus on this machine, its streams, and the ways to remember it."""

import asyncio
import json
import signal

from ipe_events.bus.connection import Bus, BusSettings
from tests.helpers import eventually


async def test_serve_makes_everything_and_ends_in_good_order(lonely_ipe, tmp_path):
    process = await lonely_ipe.start("bus", "serve", "--store", str(tmp_path / "store"), "--port", "0")
    assert process.stdout is not None
    url = (await asyncio.wait_for(process.stdout.readline(), 20)).decode().strip()
    async with await Bus.connect(BusSettings(servers=(url,)), name="test") as bus:
        assert (await bus.stream_info("IPE_K8S"))["config"]["subjects"] == ["ipe.k8s.*.*.*.*.*.*"]
    second = await lonely_ipe("bus", "serve", "--store", str(tmp_path / "store"), "--port", "0")
    assert second.code == 3
    assert "another process runs an embedded NATS server on this store" in second.err
    process.send_signal(signal.SIGTERM)
    _, err = await process.communicate()
    assert process.returncode == 0
    assert f"ipe context add local --server {url} --use" in err.decode()


async def test_plan_shows_and_apply_makes_the_difference(ipe):
    planned = await ipe("bus", "plan", "-o", "json")
    assert {item["action"] for item in planned.items} == {"create"}
    assert (await ipe("bus", "apply")).code == 0
    again = await ipe("bus", "plan", "-o", "json")
    assert {item["name"] for item in again.items} == {item["name"] for item in planned.items}
    assert {item["action"] for item in again.items} == {"ok"}


async def test_what_loses_messages_is_refused_unless_allowed(ipe, tmp_path):
    await ipe("bus", "apply")
    settings = tmp_path / "topology.yaml"
    settings.write_text(json.dumps({"limits": {"IPE_CMD": {"hours": 1}}}))
    refused = await ipe("bus", "apply", "-f", str(settings))
    assert refused.code == 3
    assert "loses messages" in refused.err
    assert "--allow-destructive" in refused.err
    assert "max_age 7d → 60m" in refused.err, "in units that people read"
    assert (await ipe("bus", "apply", "-f", str(settings), "--allow-destructive")).code == 0


async def test_a_wrong_settings_file_is_one_line(ipe, tmp_path):
    settings = tmp_path / "topology.yaml"
    settings.write_text("replcas: 3\n")
    done = await ipe("bus", "plan", "-f", str(settings))
    assert done.code == 3
    assert done.err.startswith(f"error: {settings}: replcas: ")
    assert done.err.count("\n") == 1


async def test_contexts_replace_urls(home, nats_server, lonely_ipe):
    lonely_ipe.env.pop("IPE_NATS_URL")
    assert (await lonely_ipe("context", "add", "here", "--server", nats_server.url)).code == 0
    assert (await lonely_ipe("context", "add", "gone", "--server", "nats://127.0.0.1:9")).code == 0
    listed = await lonely_ipe("context", "list", "-o", "json")
    assert [(item["name"], item["current"]) for item in listed.items] == [("gone", False), ("here", True)]
    assert (await lonely_ipe("bus", "apply", "-q")).code == 0
    assert (await lonely_ipe("bus", "plan", "--context", "gone")).code == 3
    assert (await lonely_ipe("context", "use", "gone")).code == 0
    assert "nats://127.0.0.1:9" in (await lonely_ipe("context", "show")).out
    assert (await lonely_ipe("context", "remove", "gone")).code == 0
    unknown = await lonely_ipe("bus", "plan", "--context", "gone")
    assert unknown.code == 3
    assert "context 'gone' does not exist (known: here)" in unknown.err


async def test_secrets_never_come_by_command_line(lonely_ipe):
    for arguments in (["--server", "nats://bob:hunter2@host:4222"], ["--server", "nats://host", "--user", "bob"]):
        done = await lonely_ipe("context", "add", "x", *arguments)
        assert done.code == 2
        assert "hunter2" not in done.err
        assert "--password-file" in done.err


async def test_an_unreachable_bus_is_one_line_with_the_fix(lonely_ipe):
    for arguments in (["events", "list"], ["clusters", "list"], ["bus", "plan"], ["dlq", "list"], ["commands", "list"]):
        done = await lonely_ipe(*arguments)
        assert done.code == 3, arguments
        assert done.out == ""
        assert done.err.startswith("error: nats://127.0.0.1:9: NATS cannot be reached: ")
        assert "(fix: " in done.err
        assert done.err.count("\n") == 1


async def test_a_bus_without_streams_says_how_to_make_them(ipe):
    done = await ipe("events", "list")
    assert done.code == 3
    assert done.err == "error: bus: stream IPE_K8S does not exist (fix: make it with `ipe bus apply`)\n"


async def test_serve_survives_the_death_of_its_server(lonely_ipe, tmp_path):
    process = await lonely_ipe.start("bus", "serve", "--store", str(tmp_path / "store"), "--port", "0")
    assert process.stdout is not None
    url = (await asyncio.wait_for(process.stdout.readline(), 20)).decode().strip()
    pid_file = tmp_path / "store" / "nats-server.pid"
    first = int(pid_file.read_text())
    import os

    os.kill(first, signal.SIGKILL)
    await eventually(lambda: pid_file.exists() and pid_file.read_text() not in {"", str(first)})
    async with await Bus.connect(BusSettings(servers=(url,)), name="test") as bus:
        await bus.stream_info("IPE_GOV")
    process.send_signal(signal.SIGINT)
    await process.communicate()
    assert process.returncode == 0
