"""One child process of the harness: its log file, its readiness, its end.

Nothing waits for a fixed time: readiness is a probe with a deadline that also notices when the process is gone,
and stopping waits for the exit itself (a kube-apiserver may hold its port for seconds). On Linux the kernel
kills the child when the thread that started it dies, so an interrupted test run leaves nothing behind.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

PROBE_SECONDS = 0.05
TAIL_LINES = 30
PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


class ProcessFailed(Exception):
    """A program of the control plane ended or did not get ready; the message carries the end of its log."""


class PortTaken(ProcessFailed):
    """The program found its port in use; another port helps."""


class Child:
    """A program that logs to `log` (appended over restarts) and can be started again after it ended."""

    def __init__(self, name: str, argv: Sequence[str], log: Path) -> None:
        self.name = name
        self.argv = list(argv)
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._file: IO[bytes] | None = None

    @property
    def running(self) -> bool:
        """Whether the process is alive."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the process; it is not ready before `wait_ready` says so."""
        self._file = self.log.open("ab")
        parent = os.getpid()
        self._process = subprocess.Popen(
            self.argv,
            stdin=subprocess.DEVNULL,
            stdout=self._file,
            stderr=subprocess.STDOUT,
            cwd=self.log.parent,
            preexec_fn=lambda: _die_with(parent),
        )

    def wait_ready(self, ready: Callable[[], bool], seconds: float = 40.0) -> None:
        """Return when `ready()` holds; `ProcessFailed` when the process ends first or time runs out."""
        deadline = time.monotonic() + seconds
        while not ready():
            if not self.running:
                code = self._process.returncode if self._process else "no code"
                tail = self.tail()
                kind = PortTaken if "address already in use" in tail else ProcessFailed
                self._forget()
                raise kind(f"{self.name} ended with {code} before it was ready; {self.log} ends:\n{tail}")
            if time.monotonic() > deadline:
                raise ProcessFailed(f"{self.name} not ready after {seconds:.0f} s; {self.log} ends:\n{self.tail()}")
            time.sleep(PROBE_SECONDS)

    def terminate(self, seconds: float = 20.0) -> None:
        """SIGTERM and wait for the exit; SIGKILL when that takes longer than `seconds`."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(seconds)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._forget()

    def kill(self) -> None:
        """SIGKILL and wait for the exit."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._forget()

    def tail(self, lines: int = TAIL_LINES) -> str:
        """The last lines of the log."""
        return tail_of(self.log, lines)

    def _forget(self) -> None:
        self._process = None
        if self._file is not None:
            self._file.close()
            self._file = None


def tail_of(log: Path, lines: int = TAIL_LINES) -> str:
    """The last lines of a log file, `(no log)` when there is none."""
    if not log.exists():
        return "(no log)"
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def _die_with(parent: int) -> None:
    """Runs in the child before exec: an own process group (Ctrl-C is the harness's to handle), and end with the parent."""
    os.setpgid(0, 0)
    if _libc is not None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
