"""What the agent remembers: KiB per object of the index, and what a relist of the same objects adds at its peak.

Both are taken from the operating system (resident set), not from a model: the index is filled as a list of the
generator's pods fills it, and the relist streams the same pods again through the same splitter and index.
"""

import argparse
import gc
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import psutil

from ipe_events.kube.decode import ListSplitter
from ipe_events.kube.index import Index
from ipe_events.testing.load import LoadGenerator

_PAGE = 500
_READ = 256 << 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--objects", type=int, default=100_000, help="pods in the list")


def run(args: argparse.Namespace) -> dict[str, Any]:
    generator = LoadGenerator(seed=1)
    _list(Index(), generator, 1_000)  # what the code itself needs is not the objects'
    gc.collect()
    before = _rss()
    index = Index()
    start = time.process_time()
    changed = _list(index, generator, args.objects)
    spent = time.process_time() - start
    gc.collect()
    held = _rss() - before
    with _Peak() as peak:
        again = _list(index, generator, args.objects)
    if (changed, again, len(index)) != (args.objects, 0, args.objects):
        raise AssertionError(f"{changed} new, {again} changed on the relist, {len(index)} in the index")
    return {
        "objects": args.objects,
        "kib_per_object": round(held / 1024 / args.objects, 3),
        "relist_peak_mib": round(peak.added / 2**20, 1),
        "rss_mib": round(_rss() / 2**20),
        "snapshot_bytes_per_object": round(len(index.dump()) / args.objects, 1),
        "cpu_us_per_event": round(spent / args.objects * 1e6, 1),
    }


def _list(index: Index, generator: LoadGenerator, objects: int) -> int:
    """Stream a whole list through the splitter into the index; returns how many items were news."""
    index.begin_list()
    news = 0
    for first in range(0, objects, _PAGE):
        splitter = ListSplitter("bench: pods", "Pod", "v1")
        for chunk in _page(generator, first, min(first + _PAGE, objects)):
            for item in splitter.feed(chunk):
                meta = item.head.metadata
                index.mark(meta.uid)
                news += bool(index.put(meta.uid, int(meta.resourceVersion), meta.namespace, meta.name))
        splitter.finish()
    if index.end_list(objects + 1):
        raise AssertionError("a relist of the same objects deleted some")
    return news


def _page(generator: LoadGenerator, first: int, end: int) -> Iterator[bytes]:
    """One page as the network would bring it, in reads of 256 KiB."""
    pending = b'{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"1"},"items":['
    drop = len(b'"kind":"Pod","apiVersion":"v1",')
    for number in range(first, end):
        pending += b"{" + generator.pod_json(number, number + 1)[1 + drop :] + (b"," if number < end - 1 else b"")
        if len(pending) >= _READ:
            yield pending
            pending = b""
    yield pending + b"]}"


def _rss() -> int:
    return int(psutil.Process().memory_info().rss)


class _Peak:
    """The largest resident set while the block runs, above that at its start."""

    def __enter__(self) -> "_Peak":
        self._start = self._most = _rss()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def added(self) -> int:
        return self._most - self._start

    def _watch(self) -> None:
        while not self._stop.wait(0.002):
            self._most = max(self._most, _rss())
