"""``Change``: lazy, and right about every part."""

import json

import pytest

from ipe_events.errors import SchemaError
from ipe_events.events.change import Change, _decode, _head_of
from ipe_events.testing import change
from ipe_events.testing.load import LoadGenerator

CRD = {
    "kind": "Widget",
    "apiVersion": "acme.example.com/v1beta1",
    "metadata": {"name": "w", "labels": {"a": "1"}, "uid": "u-1", "resourceVersion": "12"},
}


def test_everything_is_known_from_subject_and_headers():
    one = change(CRD, resource="widgets.acme.example.com", cluster="prod.eu", verb="added", synthetic=True)
    assert (one.cluster, one.group, one.resource, one.namespace, one.verb) == (
        "prod.eu", "acme.example.com", "widgets", "", "added",
    )  # fmt: skip
    assert (one.uid, one.resource_version, one.epoch, one.synthetic, one.sequence) == ("u-1", "12", 1, True, 1)
    assert (one.kind, one.name, one.version) == ("Widget", "w", "v1beta1")
    assert str(one) == "cluster://prod.eu/widgets.acme.example.com/w"
    assert one.ref.uid == "u-1"
    assert one.metadata.labels == one.labels == {"a": "1"}
    assert one.annotations == {}
    assert 0 <= one.partition < 32
    assert one == change(CRD, resource="widgets.acme.example.com", cluster="prod.eu", verb="added")
    assert one != change(CRD, resource="widgets.acme.example.com", cluster="prod.eu", verb="deleted")


def test_nothing_is_parsed_before_it_is_touched():
    broken = Change("ipe.k8s.a.apps.deployments.shop.modified.3", b"NATS/1.0\r\nce-id: x\r\n\r\n", b"{not json")
    assert broken.cluster == "a"
    with pytest.raises(SchemaError, match="not a Kubernetes object"):
        _ = broken.metadata
    with pytest.raises(SchemaError, match="not JSON"):
        _ = broken.object
    with pytest.raises(SchemaError, match="not the id of a change"):
        _ = broken.uid
    assert "modified" not in repr(Change("ipe.x", b"", b""))


def test_a_value_cannot_pretend_to_be_a_header():
    one = Change("ipe.k8s.a.apps.deployments.shop.modified.3", b"NATS/1.0\r\nce-name: a ce-kind: Evil\r\n\r\n", b"")
    assert one.header("ce-kind") == ""
    assert one.name == "a ce-kind: Evil"


def pods() -> list[bytes]:
    load = LoadGenerator(seed=3)
    return [load.pod_json(number) for number in range(5)]


TRICKY = [
    b'{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"x"},"data":{"a":"},\\"spec\\":"}}',
    b'{"kind":"X","apiVersion":"v1","metadata":{"name":"x","annotations":{"a":"}","b":",\\"managedFields\\":["}},"spec":{}}',
    b'{"kind":"X","apiVersion":"v1","metadata":{"name":"x"},"data":{"y":{"z":{}},"spec":{"q":1}}}',
    b'{"kind":"X","apiVersion":"v1","metadata":{"name":"x"},"status":{"o":{},"managedFields":[1]}}',
    b'{"apiVersion":"v1","kind":"X","metadata":{"name":"x","managedFields":[{"a":1}]},"spec":{}}',
    b'{"metadata":{"name":"x"},"kind":"X","apiVersion":"v1"}',
    b'{"kind":"X","apiVersion":"v1","metadata":{},"spec":{"metadata":{"name":"inner"}}}',
]


@pytest.mark.parametrize("body", [*pods(), *TRICKY])
def test_the_shortcut_reads_what_the_long_way_reads(body):
    assert _head_of(body) == _decode(body)
    assert _head_of(body).metadata.name == json.loads(body)["metadata"].get("name", "")


def test_snapshot_items_take_the_namespace_from_the_object():
    live = change({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "p", "namespace": "shop"}}, verb="added")
    item = Change("ipe.snap.h.r1.test.core.pods", live.header_bytes, live.body)
    assert (item.cluster, item.resource, item.namespace, item.verb) == ("test", "pods", "shop", "added")
