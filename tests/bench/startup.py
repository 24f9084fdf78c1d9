"""How long a person waits: ``ipe --version``, ``ipe --help`` (medians over fresh processes), and the demo's first event."""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

IPE = str(Path(sys.executable).with_name("ipe"))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=int, default=15, help="processes per figure")
    parser.add_argument("--no-demo", action="store_true", help="leave the demo out")


def _median_ms(flag: str, runs: int) -> float:
    samples = []
    for _ in range(runs + 1):
        begin = time.perf_counter()
        subprocess.run([IPE, flag], check=True, stdout=subprocess.DEVNULL)
        samples.append((time.perf_counter() - begin) * 1000)
    return round(statistics.median(samples[1:]), 1)  # the first fills the file cache


def _demo_first_event() -> float:
    done = subprocess.run([IPE, "demo", "-o", "json"], check=True, stdout=subprocess.PIPE, text=True)
    steps = {line["step"]: line for line in map(json.loads, done.stdout.splitlines())}
    return float(steps["first-event"]["seconds"])


def run(args: argparse.Namespace) -> dict[str, Any]:
    figures: dict[str, Any] = {"version_ms": _median_ms("--version", args.runs), "help_ms": _median_ms("--help", args.runs)}
    if not args.no_demo:
        figures["demo_first_event_s"] = _demo_first_event()
    return figures
