"""Lets all workers of one test run share the same control planes.

The workers of pytest-xdist start and end in any order, so none of them can own the processes. A keeper process
does: every worker that wants a cluster holds a connection to its socket, and when the last connection is gone
(because the worker ended, or was killed: the kernel closes it either way) the keeper stops everything and
leaves. There is no reference count on disk that could be wrong. Requests are one JSON line, answers too; a
cluster starts when it is first asked for.
"""

import json
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import filelock

from tests.controlplane.api import Refused
from tests.controlplane.build import Binaries, Unavailable
from tests.controlplane.cluster import RealCluster
from tests.controlplane.plane import ControlPlane
from tests.controlplane.process import ProcessFailed

ROOT = Path(__file__).parents[2]
# The second cluster shows compaction at once and audits; the main one is as a cluster normally is.
OPTIONS = {"main": {}, "second": {"watch_cache": False, "audit": True}}
FIRST_START_SECONDS = 120


class KeeperLeft(Exception):
    """The keeper ended before it answered: its last user left in the same moment. Start another one."""


@dataclass
class Lease:
    """One worker's hold on the keeper; as long as it is open, the clusters stay."""

    connection: socket.socket

    def cluster(self, name: str, *, workloads: bool = False) -> RealCluster:
        """The cluster of that name, started if need be; `ProcessFailed` carries the logs when it does not start."""
        try:
            self.connection.sendall(json.dumps({"name": name, "workloads": workloads}).encode() + b"\n")
            with self.connection.makefile("r") as answers:
                line = answers.readline()
        except ConnectionError:
            line = ""
        if not line:
            raise KeeperLeft("the keeper ended; its last words are in keeper.log of this run's controlplane folder")
        answer = json.loads(line)
        if "error" in answer:
            raise ProcessFailed(answer["error"])
        return RealCluster.from_json(json.dumps(answer["cluster"]))

    def close(self) -> None:
        """Let go."""
        self.connection.close()


def join(folder: Path, binaries: Binaries) -> Lease:
    """Connect to the keeper of this run (`folder` is common to its workers), starting it when there is none."""
    folder.mkdir(parents=True, exist_ok=True)
    address = folder / "keeper.socket.txt"
    with filelock.FileLock(folder / "keeper.lock"):
        if address.exists():
            try:
                return Lease(_connect(address.read_text()))
            except OSError:
                address.unlink()  # it has left
        path = _spawn(folder, binaries)
        lease = Lease(_connect(path))
        address.write_text(path)
        return lease


def keep(folder: Path, binaries: Binaries) -> None:
    """The keeper's life: print the socket's path, serve, and stop everything when nobody is connected any more."""
    home = tempfile.mkdtemp(prefix="ipe-keeper-")  # short: a socket's path may not exceed about 100 characters
    planes: dict[str, ControlPlane] = {}
    try:
        with socket.socket(socket.AF_UNIX) as server, selectors.DefaultSelector() as selector:
            server.bind(f"{home}/s")
            server.listen(64)
            sys.stdout.write(f"{home}/s\n")
            sys.stdout.flush()
            _serve(server, selector, planes, folder, binaries)
    finally:
        for plane in planes.values():
            plane.stop()
        shutil.rmtree(home)


def _serve(
    server: socket.socket,
    selector: selectors.BaseSelector,
    planes: dict[str, ControlPlane],
    folder: Path,
    binaries: Binaries,
) -> None:
    selector.register(server, selectors.EVENT_READ)
    users, seen = 0, False
    while users or not seen:
        ready = selector.select(FIRST_START_SECONDS if not seen else None)
        if not ready:
            return  # whoever started this keeper is gone
        for key, _ in ready:
            connection = key.fileobj
            assert isinstance(connection, socket.socket)
            if connection is server:
                user, _address = server.accept()
                selector.register(user, selectors.EVENT_READ)
                users, seen = users + 1, True
            elif not _answer(connection, planes, folder, binaries):
                selector.unregister(connection)
                connection.close()
                users -= 1


def _answer(connection: socket.socket, planes: dict[str, ControlPlane], folder: Path, binaries: Binaries) -> bool:
    """Serve one request; False when the user is gone."""
    try:
        with connection.makefile("r") as requests:
            line = requests.readline()
        if not line:
            return False
        connection.sendall(json.dumps(_cluster_for(json.loads(line), planes, folder, binaries)).encode() + b"\n")
    except ConnectionError:
        return False
    return True


def _cluster_for(
    request: dict[str, object], planes: dict[str, ControlPlane], folder: Path, binaries: Binaries
) -> dict[str, object]:
    name = str(request["name"])
    try:
        if name not in planes:
            plane = ControlPlane(binaries, Path(tempfile.mkdtemp(prefix=f"{name}-", dir=folder)), name, **OPTIONS[name])
            plane.start()
            planes[name] = plane
        if request["workloads"]:
            planes[name].start_workloads()
    except (ProcessFailed, Unavailable, Refused, AssertionError, OSError) as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"cluster": json.loads(planes[name].cluster.to_json())}


def _spawn(folder: Path, binaries: Binaries) -> str:
    log = folder / "keeper.log"
    command = [sys.executable, "-m", "tests.controlplane", "keep", str(folder), str(binaries.folder)]
    with log.open("ab") as errors:
        keeper = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
        )
    assert keeper.stdout is not None
    with keeper.stdout:
        path = keeper.stdout.readline().decode().strip()
    if not path:
        raise ProcessFailed(f"the keeper ended with {keeper.wait()}:\n{log.read_text()}")
    keeper.returncode = 0  # it outlives us on purpose; without this the interpreter warns about a running child
    return path


def _connect(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(path)
    except OSError:
        connection.close()
        raise
    return connection
