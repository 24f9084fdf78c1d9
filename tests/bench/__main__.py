"""``python -m tests.bench NAME [--json]``: one benchmark; ``python -m tests.bench all``: a table of all beside their bars.

A benchmark is a module of this package with ``add_arguments(parser)`` and ``run(args)``, which returns (or is a coroutine that
returns) figures by the names below. Each bar is a line of ``BARS``. Figures of one run on two shared cores are noisy: compare
ratios within a run, and medians over several.
"""

import argparse
import asyncio
import importlib
import inspect
import json
import subprocess
import sys
from typing import Any, NamedTuple


class Bar(NamedTuple):
    """What one figure of one benchmark must show."""

    bench: str
    figure: str
    sign: str
    bar: float

    def met(self, value: float) -> bool:
        return {"≤": value <= self.bar, "<": value < self.bar, "≥": value >= self.bar}[self.sign]


BARS = (
    Bar("ingest", "cpu_us_per_event", "≤", 35),
    Bar("ingest", "events_per_second", "≥", 20_000),
    Bar("ingest", "peer_ratio", "≥", 20),
    Bar("dispatch", "cpu_us_per_event", "≤", 40),
    Bar("dispatch", "events_per_second", "≥", 18_000),
    Bar("consume", "cpu_us_per_event", "≤", 20),
    Bar("consume", "events_per_second", "≥", 35_000),
    Bar("latency", "p50_ms", "<", 3),
    Bar("latency", "p99_ms", "<", 10),
    Bar("index", "kib_per_object", "≤", 0.5),
    Bar("index", "relist_peak_mib", "≤", 64),
    Bar("startup", "version_ms", "<", 120),
    Bar("startup", "help_ms", "<", 150),
    Bar("startup", "demo_first_event_s", "<", 3),
)
BENCHES = tuple(dict.fromkeys(bar.bench for bar in BARS))


def _run(name: str, arguments: list[str]) -> dict[str, Any]:
    module = importlib.import_module(f"tests.bench.{name}")
    parser = argparse.ArgumentParser(prog=f"python -m tests.bench {name}", description=module.__doc__)
    parser.add_argument("--json", action="store_true", help="print the figures as one JSON object on the last line")
    module.add_arguments(parser)
    outcome = module.run(parser.parse_args(arguments))
    figures: dict[str, Any] = asyncio.run(outcome) if inspect.iscoroutine(outcome) else outcome
    return figures


def _all(arguments: list[str]) -> int:
    rows, missed = [], 0
    for name in BENCHES:
        done = subprocess.run(
            [sys.executable, "-m", "tests.bench", name, "--json", *arguments], stdout=subprocess.PIPE, text=True, check=False
        )
        if done.returncode:
            rows.append((name, "failed", f"exit {done.returncode}", "", "missed"))
            missed += 1
            continue
        figures = json.loads(done.stdout.strip().splitlines()[-1])
        for bar in (bar for bar in BARS if bar.bench == name):
            value = figures.get(bar.figure)
            met = value is not None and bar.met(value)
            missed += not met
            rows.append(
                (
                    name,
                    bar.figure,
                    "-" if value is None else f"{value:,.2f}",
                    f"{bar.sign} {bar.bar:g}",
                    "met" if met else "missed",
                )
            )
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"{len(rows) - missed} of {len(rows)} bars met")
    return 0


def main() -> int:
    if len(sys.argv) < 2 or sys.argv[1] not in (*BENCHES, "all"):
        print(f"usage: python -m tests.bench all|{'|'.join(BENCHES)} [--json]", file=sys.stderr)
        return 2
    name, arguments = sys.argv[1], sys.argv[2:]
    if name == "all":
        return _all(arguments)
    figures = _run(name, arguments)
    if "peer_cpu_us_per_event" in figures:
        figures.setdefault("peer_ratio", round(figures["peer_cpu_us_per_event"] / figures["cpu_us_per_event"], 1))
    if "--json" not in arguments:
        for key, value in figures.items():
            print(f"{key:24} {value}")
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
