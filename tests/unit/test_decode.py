"""Cutting watches and lists: any sizes of reads, any form the API allows, and what it does not allow."""

import json
import random
from typing import Any

import pytest

from ipe_events.errors import KubeError
from ipe_events.kube.decode import (
    PLAIN,
    ListSplitter,
    Wants,
    WatchDecoder,
    labels_of,
    parse_bookmark,
    version_of,
)

NASTY = 'a\\"},{"metadata":{"name":"é\n}]'


def pod(number: int, **more: Any) -> dict[str, Any]:
    metadata = {"name": f"pod-{number}", "namespace": "default", "uid": f"uid-{number}", "resourceVersion": str(number)}
    spec = {"containers": [{"name": "a", "args": [NASTY, "}", "{"]}, {"name": "b"}], "n": number}
    return {"metadata": metadata | more, "spec": spec}


def typed(obj: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "Pod", "apiVersion": "v1", **obj}


def compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def event(kind: str, obj: dict[str, Any]) -> bytes:
    return compact({"type": kind, "object": obj}) + b"\n"


@pytest.mark.parametrize("size", [1, 7, 100, 1000, 100_000])
def test_watch_events_survive_any_chunking(size: int) -> None:
    objects = [typed(pod(number)) for number in range(12)]
    kinds = ["ADDED", "MODIFIED", "DELETED"] * 4
    data = b"".join(event(kind, obj) for kind, obj in zip(kinds, objects, strict=True))
    decoder = WatchDecoder("test")
    found = [
        (kind, head.metadata.uid, bytes(body))
        for start in range(0, len(data), size)
        for kind, head, body, _ in decoder.feed(data[start : start + size])
    ]
    assert found == [(kind, obj["metadata"]["uid"], compact(obj)) for kind, obj in zip(kinds, objects, strict=True)]
    assert not decoder.pending


def test_only_an_event_inside_the_last_chunk_is_whole() -> None:
    data = event("ADDED", typed(pod(1))) + event("ADDED", typed(pod(2)))
    decoder = WatchDecoder("test")
    assert list(decoder.feed(data[:50])) == []
    assert [whole for *_, whole in decoder.feed(data[50:])] == [False, True]


@pytest.mark.parametrize(
    "line",
    [
        b'{"object":{"kind":"Pod","metadata":{"uid":"u"}},"type":"ADDED"}\n',
        b'{ "type": "ADDED", "object": {"kind":"Pod","metadata":{"uid":"u"}} }\n',
        b'{"type":"ADDED","object":{"kind":"Pod","metadata":{"uid":"u"}},"more":1}\n',
    ],
)
def test_an_envelope_written_otherwise_means_the_same(line: bytes) -> None:
    ((kind, head, body, _),) = WatchDecoder("test").feed(line)
    assert (kind, head.metadata.uid, json.loads(bytes(body))["kind"]) == ("ADDED", "u", "Pod")


@pytest.mark.parametrize(
    "line",
    [
        b"garbage\n",
        b"[]\n",
        b'{"type":"ADDED"}\n',
        b'{"type":"ADDED","object":{"metadata":{"uid":"u"}}\n',
        b'{"type":"ADDED","object":{"metadata":{"uid":"u"}}{}}\n',
        b'{"type":"ADDED","object":{"metadata":{"uid":7}}}\n',
        b'{"type":"ADDED","object":{"spec":{}}}\n',
        b'{"type":"ADDED","object":{"metadata":{"uid":"\xff"}}}\n',
    ],
)
def test_what_is_no_event_is_an_error_that_names_the_place(line: bytes) -> None:
    with pytest.raises(KubeError, match="prod: pods"):
        list(WatchDecoder("prod: pods").feed(line))


def test_a_line_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ipe_events.kube.decode.MAX_LINE", 1000)
    decoder = WatchDecoder("test")
    assert list(decoder.feed(b"x" * 900)) == []
    with pytest.raises(KubeError, match="larger"):
        list(decoder.feed(b"x" * 200))


def test_bookmarks() -> None:
    plain = parse_bookmark(b'{"metadata":{"resourceVersion":"7"}}', "test")
    end = parse_bookmark(b'{"metadata":{"resourceVersion":"8","annotations":{"k8s.io/initial-events-end":"true"}}}', "test")
    assert (plain.rv, plain.initial_end, end.rv, end.initial_end) == ("7", False, "8", True)
    with pytest.raises(KubeError):
        parse_bookmark(b"{}", "test")


@pytest.mark.parametrize("text", ["", "-1", "1.5", "abc", "١٢"])
def test_a_resource_version_is_a_number(text: str) -> None:
    with pytest.raises(KubeError):
        version_of(text, "test")
    assert version_of("12", "test") == 12


def documents() -> list[tuple[str, bytes, list[dict[str, Any]]]]:
    items = [pod(number) for number in range(9)]
    items[2]["spec"]["templates"] = [{"metadata": {"name": NASTY}}, {"metadata": {"name": "inner"}}]
    metadata = {"resourceVersion": "77", "continue": "abc"}
    first = {"kind": "PodList", "apiVersion": "v1", "metadata": metadata, "items": items}
    last = {"apiVersion": "v1", "items": [typed(item) for item in items], "kind": "PodList", "metadata": metadata}
    wanted = [typed(item) for item in items]
    return [
        ("typed", compact(first), wanted),
        ("metadata last", compact(last), wanted),
        ("indented", json.dumps(first, indent=2).encode(), wanted),
        ("empty", compact(first | {"items": []}), []),
        ("null", compact(first | {"items": None}), []),
    ]


@pytest.mark.parametrize(("name", "data", "wanted"), documents(), ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.parametrize("size", [1, 13, 500, 100_000])
def test_lists_give_items_as_a_watch_would(name: str, data: bytes, wanted: list[dict[str, Any]], size: int) -> None:
    splitter = ListSplitter(name, "Pod", "v1")
    found = [item for start in range(0, len(data), size) for item in splitter.feed(data[start : start + size])]
    meta = splitter.finish()
    assert [json.loads(item.body) for item in found] == wanted
    assert [item.head.metadata.uid for item in found] == [item["metadata"]["uid"] for item in wanted]
    assert (meta.resourceVersion, meta.continue_) == ("77", "abc")
    if name == "typed":
        assert [item.body for item in found] == [compact(item) for item in wanted]


def test_every_cut_of_a_list_is_noticed() -> None:
    _, data, _ = documents()[0]
    for end in random.Random(1).sample(range(len(data) - 1), 60):
        splitter = ListSplitter("test", "Pod", "v1")
        list(splitter.feed(data[:end]))
        with pytest.raises(KubeError):
            splitter.finish()


def test_labels_come_when_wanted() -> None:
    line = event("ADDED", typed(pod(1, labels={"app": "web"})))
    ((_, head, _, _),) = WatchDecoder("test", Wants(labels=True)).feed(line)
    assert labels_of(head.metadata) == {"app": "web"}
    ((_, head, _, _),) = WatchDecoder("test", PLAIN).feed(line)
    assert labels_of(head.metadata) == {}


@pytest.mark.parametrize("position", ["first", "middle", "last", "only", "absent", "decoy"])
def test_managed_fields_are_cut_out_and_nothing_else(position: str) -> None:
    managed = [{"manager": "kubectl", "fieldsV1": {"f:spec": {'k:{"name":"a"}': {}}}}]
    names = {"name": "pod", "uid": "u", "resourceVersion": "1"}
    choices: dict[str, dict[str, Any]] = {
        "first": {"managedFields": managed, **names},
        "middle": {"name": "pod", "managedFields": managed, "uid": "u", "resourceVersion": "1"},
        "last": {**names, "managedFields": managed},
        "only": {"managedFields": managed},
        "absent": names,
        "decoy": {"annotations": {"x": '"managedFields":[1]', "managedFields": "no"}, **names, "managedFields": managed},
    }
    metadata = choices[position]
    obj = {"kind": "Pod", "metadata": metadata, "spec": {"managedFields": "kept"}}
    ((*_, body, _),) = WatchDecoder("test", Wants(managed_fields=True)).feed(event("ADDED", obj))
    left = {key: value for key, value in metadata.items() if key != "managedFields"}
    assert json.loads(bytes(body)) == obj | {"metadata": left}


def test_lists_and_cut_events_come_without_managed_fields_too() -> None:
    obj = {
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": {"uid": "u", "managedFields": [{"manager": "m"}], "resourceVersion": "1"},
    }
    wanted = obj | {"metadata": {"uid": "u", "resourceVersion": "1"}}
    splitter = ListSplitter("test", "Pod", "v1", Wants(managed_fields=True))
    (item,) = splitter.feed(compact({"items": [obj], "metadata": {"resourceVersion": "7"}}))
    assert item.body == compact(wanted)
    line = event("ADDED", obj)
    for cut in range(1, len(line)):
        decoder = WatchDecoder("test", Wants(managed_fields=True))
        ((*_, body, _),) = [*decoder.feed(line[:cut]), *decoder.feed(line[cut:])]
        assert bytes(body) == compact(wanted)
