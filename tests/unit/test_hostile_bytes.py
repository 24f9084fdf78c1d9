"""Bytes from a hostile server or tenant: each becomes one error of ours, none ends a task."""

from dataclasses import replace

import pytest

from ipe_events.errors import KubeError
from ipe_events.kube.decode import ListSplitter, WatchDecoder
from ipe_events.kube.reflector_rules import LONGEST_DELAY, Cause, Phase, Position, after, delay
from ipe_events.kube.session import KubeResponse
from ipe_events.kube.status import error_of

DEPTH = 5_000
DEEP = b'{"metadata":{"name":"a","uid":"u","resourceVersion":"5"},"spec":' + b"[" * DEPTH + b"]" * DEPTH + b"}"


def test_an_object_nested_without_end_is_an_error_of_ours() -> None:
    with pytest.raises(KubeError):
        list(WatchDecoder("c: things").feed(b'{"type":"ADDED","object":' + DEEP + b"}\n"))
    with pytest.raises(KubeError):
        list(ListSplitter("c: things", "Thing", "v1").feed(b'{"items":[' + DEEP + b"]}"))
    with pytest.raises(KubeError):
        KubeResponse(200, {}, DEEP).json()
    assert error_of(500, DEEP, "c: GET /").status == 500


@pytest.mark.parametrize("cause", [Cause.GONE, Cause.AHEAD, Cause.BACKWARDS])
def test_a_watch_that_asks_for_a_relist_each_time_has_to_wait_longer_each_time(cause: Cause) -> None:
    position, waits = Position(Phase.WATCH, 10, synced=True), []
    for _ in range(12):
        position = after(position, cause, version=10)
        waits.append(delay(position, cause, jitter=0.0))
        position = after(position, Cause.SYNCED, version=10)
    assert waits[0] == 0.0
    assert waits == sorted(waits)
    assert waits[-1] == LONGEST_DELAY
    healthy = after(position, Cause.ENDED)
    assert delay(after(healthy, cause), cause, jitter=0.0) == 0.0
    assert replace(healthy, failures=0) == healthy
