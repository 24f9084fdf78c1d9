"""Watch of 8.9 KB pod events over HTTP → full envelope, default redaction, index, retry buffer → durable acknowledgement.

Generator and broker run in processes of their own; what is measured is this process: CPU (user and system) from the moment the
first event is asked for until the last acknowledgement, divided by the events. The collector is the one that ``ipe agent run``
uses, with the settings it uses. With ``--peer`` a program written with client-go and nats.go does a simpler form of the same job
on the same generator and an equal broker in the same run.
"""

import argparse
import asyncio
import contextlib
import gc
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import platformdirs

from ipe_events.agent.collector import Collector, CollectSettings
from ipe_events.bus.connection import Bus
from ipe_events.bus.topology import ensure
from ipe_events.events.refs import ResourceRef
from ipe_events.kube.config import ClusterSource
from ipe_events.kube.session import KubeSession
from tests.helpers import eventually
from tests.nats import NatsServer

CLUSTER = "prod-eu-1"
PEER_ENV = "IPE_PEER_INGEST_GO"
_ROOT = Path(__file__).resolve().parents[2]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--events", type=int, default=60_000, help="events of the watch")
    parser.add_argument("--runs", type=int, default=3, help="how often to watch them; the median counts")
    parser.add_argument(
        "--peer",
        action=argparse.BooleanOptionalAction,
        default=None,
        help=f"also run the Go peer (source: ${PEER_ENV}, or ../shared/peers/ingest-go); by default when it and Go are there",
    )
    parser.add_argument("--peer-events", type=int, default=15_000, help="events for the peer")


async def run(args: argparse.Namespace) -> dict[str, Any]:
    measured = [await _measure(args.events) for _ in range(args.runs)]
    figures: dict[str, Any] = {
        "events_per_second": round(statistics.median(each["rate"] for each in measured)),
        "cpu_us_per_event": round(statistics.median(each["cpu"] for each in measured), 1),
        "rss_mib": round(max(each["rss"] for each in measured)),
        "events": args.events,
        "runs_cpu_us_per_event": [round(each["cpu"], 1) for each in measured],
    }
    peer = await asyncio.to_thread(_build_peer, args.peer)
    if peer is not None:
        figures |= await asyncio.to_thread(_run_peer, peer, args.peer_events)
    return figures


@contextlib.contextmanager
def generator(events: int, *, pods: int = 0) -> Iterator[str]:
    """The URL of a bench server in its own process."""
    command = [sys.executable, "-m", "ipe_events.testing.fake", "--bench-watch", str(events), "--pods", str(pods)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=_ROOT) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            if not url.startswith("http"):
                raise AssertionError(f"the generator said {url!r} instead of its URL")
            yield url
        finally:
            process.terminate()


def kubeconfig(folder: Path, url: str) -> str:
    """A kubeconfig for a server that lets everybody in."""
    file = folder / "kubeconfig"
    context = {"name": "bench", "context": {"cluster": "bench", "user": "bench"}}
    document = {
        "clusters": [{"name": "bench", "cluster": {"server": url}}],
        "contexts": [context],
        "users": [{"name": "bench", "user": {}}],
        "current-context": "bench",
    }
    file.write_text(json.dumps(document))
    return str(file)


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def _measure(events: int) -> dict[str, float]:
    """One run over a fresh broker and generator."""
    with tempfile.TemporaryDirectory(prefix="ipe-bench-") as name:
        folder = Path(name)
        server = NatsServer(folder / "nats").start()
        try:
            with generator(events) as url:
                async with await Bus.connect(server.settings, name="bench-ingest") as bus:
                    await ensure(bus)
                    return await _collect(bus, kubeconfig(folder, url), events)
        finally:
            server.kill()


async def _collect(bus: Bus, config: str, events: int) -> dict[str, float]:
    loop = asyncio.get_running_loop()
    async with await KubeSession.open(ClusterSource(CLUSTER, config)) as session:
        collector = Collector(CLUSTER, session, bus, CollectSettings())
        gc.collect()
        gc.freeze()  # as `ipe agent run` does: what start-up made lives as long as the process
        task = asyncio.create_task(collector.run())
        try:
            collector.want([ResourceRef.parse("pods")])
            began = await _stored(bus, 1)
            cpu, start = cpu_seconds(), loop.time()
            stored = await _stored(bus, events)
            spent, seconds = cpu_seconds() - cpu, loop.time() - start
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    if stored != events:
        raise AssertionError(f"{stored} messages in the stream instead of {events}")
    counted = events - began
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"rate": counted / seconds, "cpu": spent / counted * 1e6, "rss": rss}


async def _stored(bus: Bus, wanted: int) -> int:
    """The number of messages in the stream, once it is at least ``wanted``."""

    async def enough() -> int:
        messages = int((await bus.stream_info("IPE_K8S"))["state"]["messages"])
        return messages if messages >= wanted else 0

    return await eventually(enough, timeout=300.0, interval=0.05)


# --- the peer --------------------------------------------------------------------------------------------------------------


def _build_peer(wanted: bool | None) -> Path | None:
    """The peer's program, built into the user's cache; None when it is not wanted or not there."""
    source = Path(os.environ.get(PEER_ENV, _ROOT.parent / "shared" / "peers" / "ingest-go"))
    go = shutil.which("go")
    if wanted is False or (wanted is None and (go is None or not (source / "main.go").is_file())):
        return None
    if go is None or not (source / "main.go").is_file():
        raise SystemExit(f"--peer needs Go and the peer's source: {source} (set {PEER_ENV})")
    cache = platformdirs.user_cache_path("ipe-events") / "peers"
    cache.mkdir(parents=True, exist_ok=True)
    program = cache / "ingest-go"
    newest = max(file.stat().st_mtime for file in source.iterdir())
    if not program.exists() or program.stat().st_mtime < newest:
        subprocess.run([go, "build", "-mod=mod", "-o", str(program), "."], cwd=source, check=True, stdout=sys.stderr)
    return program


def _run_peer(program: Path, events: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="ipe-bench-") as name:
        server = NatsServer(Path(name) / "nats").start()
        try:
            with generator(events) as url:
                command = [str(program), "dynamic", str(events), url, server.url]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=300)
        finally:
            server.kill()
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    return {
        "peer": answer["peer"],
        "peer_cpu_us_per_event": answer["cpu_us_per_event"],
        "peer_events_per_second": answer["events_per_second"],
    }
