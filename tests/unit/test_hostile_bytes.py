"""Bytes from a hostile server or tenant: each becomes one error of ours, none ends a task."""

import json
import random
import time
from dataclasses import replace

import pytest

from ipe_events.agent.redaction import RedactionRules, Redactor
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


def test_one_huge_object_of_a_list_costs_each_byte_once() -> None:
    """Searched from its start with every chunk, these 9 MiB held the event loop for a minute, and every cluster with it."""
    item = b'{"metadata":{"name":"a","uid":"u","resourceVersion":"5"},"data":{"v":"' + b"x" * (9 << 20) + b'"}}'
    page = b'{"items":[' + item + b'],"metadata":{"resourceVersion":"7"}}'
    splitter, found = ListSplitter("c: things", "Thing", "v1"), 0
    began = time.process_time()
    for at in range(0, len(page), 16 << 10):
        found += len(list(splitter.feed(page[at : at + (16 << 10)])))
    assert found == 1
    assert time.process_time() - began < 5
    assert splitter.finish().resourceVersion == "7"


@pytest.mark.parametrize("seed", range(20))
def test_items_that_look_like_ends_of_items_are_cut_in_the_right_places(seed: int) -> None:
    dice = random.Random(seed)
    pieces = ['{"metadata":{"n', '"},{"metadata":{', "\\", '"', "},", "{", "]", "\n", "\u2028", "x" * 30]
    items = [
        {
            "metadata": {"name": f"n{number}", "uid": f"u{number}", "resourceVersion": "5"},
            "".join(dice.choices(pieces, k=5)): ["".join(dice.choices(pieces, k=20)), {"metadata": {"name": "inner"}}, {}],
        }
        for number in range(12)
    ]
    page = json.dumps({"items": items, "metadata": {"resourceVersion": "7"}}, separators=(",", ":")).encode()
    splitter = ListSplitter("c: things", "Thing", "v1")
    found, at = [], 0
    while at < len(page):
        size = dice.choice((1, 2, 7, 64, 500))
        found += [json.loads(item.body) for item in splitter.feed(page[at : at + size])]
        at += size
    assert [{key: value for key, value in each.items() if key not in ("kind", "apiVersion")} for each in found] == items
    assert splitter.finish().resourceVersion == "7"


def test_an_endless_error_text_is_cut_and_says_so() -> None:
    """It would stand in every log line and status, and searching it for secrets would hold the loop."""
    text = 'Invalid value: {"' * 60_000
    body = json.dumps({"kind": "Status", "message": text, "reason": "x" * 10_000, "code": 422}).encode()
    error = error_of(422, body, "c: PATCH /")
    assert len(error.message) <= 4_000
    assert error.message.endswith("(cut, 1,020,000 characters)")
    assert len(error.reason) <= 200
    began = time.process_time()
    shown = Redactor(RedactionRules(), b"k" * 32).redact_text(error.message)
    assert time.process_time() - began < 1
    assert "hmac:" in shown
