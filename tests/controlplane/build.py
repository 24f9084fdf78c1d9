"""Finds the binaries of a Kubernetes control plane, or builds them.

No container image and no download of foreign binaries: the Go module beside this file names the programs as
`tool` lines and pins every dependency by checksum, so `go build` gives the same Kubernetes on every machine.
That takes minutes once; the result lives in the user's cache, keyed by the versions, and a file lock keeps
two test runs from building at the same time. Where `KUBEBUILDER_ASSETS` points at binaries (the convention of
envtest), those win and nothing is built.
"""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import filelock
import platformdirs

MODULE = Path(__file__).parent
TOOLS = ("etcd", "kube-apiserver", "kubectl", "kube-controller-manager", "kube-scheduler", "kwok")
REQUIRED = TOOLS[:3]
GO_NEEDED = (1, 26)
LINES_PER_REPORT = 250

Report = Callable[[str], None]


class Unavailable(Exception):
    """There is no control plane on this machine; the message says what is missing and how to get it."""


@dataclass(frozen=True)
class Binaries:
    """A folder with the programs of a control plane."""

    folder: Path

    def __getitem__(self, tool: str) -> str:
        """The path of one program; `Unavailable` when this folder lacks it."""
        path = self.folder / tool
        if not os.access(path, os.X_OK):
            raise Unavailable(f"{self.folder} has no {tool}; unset KUBEBUILDER_ASSETS to build it from Go modules")
        return str(path)

    def lacks(self, tools: tuple[str, ...]) -> list[str]:
        """Those of `tools` that are not in the folder."""
        return [tool for tool in tools if not os.access(self.folder / tool, os.X_OK)]


def find() -> Binaries | None:
    """The binaries that are there already: `KUBEBUILDER_ASSETS` first, then the user's cache."""
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if assets:
        binaries = Binaries(Path(assets))
        missing = binaries.lacks(REQUIRED)
        if missing:
            raise Unavailable(f"KUBEBUILDER_ASSETS={assets} lacks {', '.join(missing)}")
        return binaries
    cached = Binaries(cache_folder())
    return None if cached.lacks(TOOLS) else cached


def find_or_build(report: Report | None = None) -> Binaries:
    """The binaries, built now if need be; `Unavailable` says why there are none. `report` gets progress lines."""
    found = find()
    if found is not None:
        return found
    go = find_go()
    target = cache_folder()
    target.parent.mkdir(parents=True, exist_ok=True)
    report = report or _to_stderr
    lock = filelock.FileLock(target.with_name(target.name + ".lock"))
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        report(f"another process builds {target}; waiting for it")
        lock.acquire()
    try:
        found = find()
        if found is None:
            _build(go, target, report)
            found = Binaries(target)
    finally:
        lock.release()
    return found


def must_exist() -> bool:
    """Whether a machine without a control plane is an error: in CI, what is skipped is not tested."""
    return os.environ.get("CI", "").lower() in {"1", "true"}


def cache_folder() -> Path:
    """Where the binaries of exactly these module versions live for this user."""
    pins = "\n".join(line for line in _go_mod().splitlines() if not line.lstrip().startswith("//"))
    digest = hashlib.sha256(pins.encode() + (MODULE / "go.sum").read_bytes()).hexdigest()[:10]
    key = f"{kubernetes_version()}-{platform.system().lower()}-{platform.machine()}-{digest}"
    return platformdirs.user_cache_path("ipe-events") / "controlplane" / key


def kubernetes_version() -> str:
    """The Kubernetes release that go.mod asks for, as `v1.2.3`."""
    match = re.search(r"^\s*k8s\.io/kubernetes (v\S+)", _go_mod(), re.MULTILINE)
    if match is None:
        raise Unavailable(f"{MODULE / 'go.mod'} does not require k8s.io/kubernetes")
    return match[1]


def find_go() -> str:
    """The `go` program; `Unavailable` when there is none or it is too old."""
    needed = ".".join(map(str, GO_NEEDED))
    go = shutil.which("go")
    if go is None:
        raise Unavailable(f"no kube-apiserver: set KUBEBUILDER_ASSETS, or install Go {needed} or newer to build it")
    spoken = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, check=False).stdout.strip()
    match = re.match(r"go(\d+)\.(\d+)", spoken)
    if match is None or (int(match[1]), int(match[2])) < GO_NEEDED:
        raise Unavailable(f"no kube-apiserver: {go} is {spoken or 'broken'}, Go {needed} or newer is needed to build it")
    return go


def _go_mod() -> str:
    return (MODULE / "go.mod").read_text()


def _to_stderr(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _build(go: str, target: Path, report: Report) -> None:
    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    version = kubernetes_version()
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    stamps = " ".join(f"-X {package}.gitVersion={version}" for package in packages)
    command = [go, "build", "-v", "-trimpath", "-ldflags", f"-s -w {stamps}", "-o", f"{part}{os.sep}", "tool"]
    report(f"building Kubernetes {version} for the tests into {target} (once per machine; 6 to 8 minutes on 2 cores)")
    started = time.monotonic()
    tail: list[str] = []
    with subprocess.Popen(command, cwd=MODULE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for count, line in enumerate(process.stderr, start=1):
            tail = [*tail[-19:], line]
            if count % LINES_PER_REPORT == 0:
                report(f"  {count} packages, {time.monotonic() - started:.0f} s, now at {line.strip()}")
    if process.returncode:
        raise Unavailable(f"go build in {MODULE} failed with {process.returncode}:\n{''.join(tail)}")
    (part / "server").rename(part / "etcd")  # go build names a program by the last element of its package path
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)
    report(f"built Kubernetes {version} in {time.monotonic() - started:.0f} s")
