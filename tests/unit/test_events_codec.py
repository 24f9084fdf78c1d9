"""Bodies on the bus: deterministic writing, and reading that trusts nothing."""

import json
from typing import Any

import pytest

from ipe_events.errors import SchemaError
from ipe_events.events import AgentStatus, Command, Finding, Gap, Heartbeat, Outcome
from ipe_events.events.codec import MAX_REQUEST, decode, encode, parse

COMMAND: dict[str, Any] = {
    "id": "a1",
    "handler": "guard",
    "cluster": "prod",
    "target": {"group": "apps", "version": "v1", "resource": "deployments", "namespace": "shop", "name": "cart", "uid": "u1"},
    "action": {"verb": "patch", "operations": [{"op": "replace", "path": "/spec/replicas", "value": 3}]},
    "precondition": {"uid": "u1", "values": {"/spec/replicas": 80}},
    "reason": "cap 50",
    "issued": "2026-11-22T10:00:00Z",
    "expires": "2026-11-22T10:10:00Z",
}
FINDING: dict[str, Any] = {
    "cluster": "prod",
    "subject": {"resource": "pods", "namespace": "shop", "name": "cart-1"},
    "message": "restarts",
}


def body(document: dict[str, Any], **changes: Any) -> bytes:
    return json.dumps({**document, **changes}).encode()


def with_at(document: dict[str, Any], path: tuple[str | int, ...], value: Any) -> bytes:
    copy = json.loads(json.dumps(document))
    inner = copy
    for part in path[:-1]:
        inner = inner[part]
    inner[path[-1]] = value
    return json.dumps(copy).encode()


def test_a_command_survives_the_wire_and_its_bytes_are_always_the_same():
    command = decode(Command, body(COMMAND))
    again = decode(Command, encode(command))
    assert again == command
    assert encode(again) == encode(command)
    assert encode(command).startswith(b'{"action":{"operations":[{"op":"replace","path":"/spec/replicas","value":3}]')


@pytest.mark.parametrize(
    "path",
    [
        ("urgent",),
        ("target", "kind"),
        ("action", "force"),
        ("action", "operations", 0, "comment"),
        ("precondition", "generation"),
    ],
    ids=lambda path: ".".join(map(str, path)),
)
def test_a_command_with_an_unknown_field_is_refused_at_every_depth(path: tuple[str | int, ...]):
    with pytest.raises(SchemaError, match="unknown field") as caught:
        decode(Command, with_at(COMMAND, path, 1))
    assert str(path[-1]) in str(caught.value)
    assert caught.value.where == "command"


@pytest.mark.parametrize("action", ["scale", "suspend", "annotate", "create", "delete", "apply"])
def test_every_action_of_a_command_is_strict(action: str):
    needed_by: dict[str, dict[str, Any]] = {
        "scale": {"replicas": 1},
        "annotate": {"annotations": {"a": "b"}},
        "create": {"manifest": {}},
        "apply": {"manifest": {}},
    }
    needed = needed_by.get(action, {})
    assert decode(Command, body(COMMAND, action={"verb": action, **needed})).action.verb == action
    with pytest.raises(SchemaError, match=r"action\.extra: value 1: unknown field"):
        decode(Command, body(COMMAND, action={"verb": action, **needed, "extra": 1}))


@pytest.mark.parametrize("path", [("new_field",), ("subject", "new_field")], ids=["top", "nested"])
def test_readers_of_events_ignore_unknown_fields_at_every_depth(path: tuple[str, ...]):
    assert decode(Finding, with_at(FINDING, path, {"any": 1})) == decode(Finding, body(FINDING))


def test_an_outcome_from_a_newer_agent_is_read():
    newer = {
        "id": "o1", "command": "a1", "handler": "guard", "cluster": "prod", "verb": "patch", "status": "applied",
        "time": "2026-11-22T10:00:01Z", "object_ref": {**COMMAND["target"], "kind": "Deployment"}, "attempts": 2,
    }  # fmt: skip
    assert decode(Outcome, body(newer)).object_ref is not None


def test_near_names_are_suggested_for_an_unknown_field():
    with pytest.raises(SchemaError, match=r"target\.namespce: value \"shop\": unknown field.*did you mean 'namespace'"):
        decode(Command, with_at(COMMAND, ("target", "namespce"), "shop"))
    with pytest.raises(SchemaError, match=r"action\.replcas: .*did you mean 'replicas'"):
        decode(Command, body(COMMAND, action={"verb": "scale", "replicas": 1, "replcas": 1}))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("action", "operations", 0, "path"), "spec/replicas", r"action\.operations\[0\]\.path: value \"spec/replicas\""),
        (("action", "operations", 0, "op"), "merge", r"action\.operations\[0\]\.op: value \"merge\""),
        (("action", "operations", 0, "path"), 7, r"action\.operations\[0\]\.path: value 7"),
        (("target", "name"), "../secrets/x", r"target\.name: value \"../secrets/x\""),
        (("target", "name"), "..", r"target\.name: value \"\.\.\""),
        (("target", "name"), "a\nb", r"target\.name"),
        (("target", "resource"), "pods/exec", r"target\.resource: value \"pods/exec\""),
        (("target", "namespace"), "a/b", r"target\.namespace"),
        (("hops",), True, r"hops: value true"),
        (("hops",), "1", r"hops: value \"1\""),
        (("hops",), 10**9, r"hops"),
        (("dry_run",), "no", r"dry_run: value \"no\""),
        (("issued",), 1700000000, r"issued: value 1700000000"),
        (("expires",), "2026-11-22T10:10:00", r"expires"),
        (("expires",), "99999-01-01T00:00:00Z", r"expires"),
        (("id",), "a b", r"id: value \"a b\""),
        (("precondition", "values"), {"no pointer": 1}, r"precondition"),
    ],
)
def test_a_command_of_wrong_values_is_refused_with_path_and_value(path: tuple[str | int, ...], value: Any, message: str):
    with pytest.raises(SchemaError, match=message):
        decode(Command, with_at(COMMAND, path, value))


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        ({"op": "add", "path": "/a"}, "operation 'add' needs 'value'"),
        ({"op": "test", "path": "/a"}, "operation 'test' needs 'value'"),
        ({"op": "remove", "path": "/a", "value": 1}, "operation 'remove' has no 'value'"),
        ({"op": "move", "path": "/a"}, "operation 'move' needs 'from'"),
        ({"op": "copy", "path": "/a", "from": None}, "needs a pointer in 'from'"),
        ({"op": "add", "path": "/a", "value": 1, "from": "/b"}, "operation 'add' has no 'from'"),
        ({"op": "add", "path": "/a", "value": 1, "from_": "/b"}, "from_"),
    ],
)
def test_patch_operations_have_exactly_the_members_of_rfc_6902(operation: dict[str, Any], message: str):
    with pytest.raises(SchemaError, match=message):
        decode(Command, with_at(COMMAND, ("action", "operations", 0), operation))


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "test", "path": "/a", "value": None},
        {"op": "remove", "path": "/a"},
        {"op": "move", "path": "/a", "from": "/b"},
        {"op": "add", "path": "", "value": {"x": [1, None, "é"]}},
    ],
)
def test_patch_operations_are_written_in_the_form_of_rfc_6902(operation: dict[str, Any]):
    command = decode(Command, with_at(COMMAND, ("action", "operations", 0), operation))
    assert json.loads(encode(command))["action"]["operations"] == [operation]


def test_a_version_from_the_future_is_named_as_such():
    with pytest.raises(SchemaError, match="version 2 is from the future, this program reads up to 1") as caught:
        decode(Command, body(COMMAND, schema_version=2, brand_new_field=1))
    assert caught.value.where == "command.schema_version"
    assert "upgrade" in caught.value.fix


def test_a_stored_document_from_the_future_is_named_as_such():
    with pytest.raises(SchemaError, match="from the future"):
        decode(AgentStatus, b'{"cluster":"c","time":"2026-11-22T10:00:00Z","version":2}')


def test_the_cloudevents_type_tells_the_version():
    assert decode(Finding, body(FINDING), ce_type="dev.ipe.finding.finding.v1").message == "restarts"
    with pytest.raises(SchemaError, match="version 2 is from the future"):
        decode(Finding, body(FINDING), ce_type="dev.ipe.finding.finding.v2")
    for wrong in ("dev.ipe.cluster.gap.v1", "dev.ipe.finding.finding", "dev.ipe.finding.finding.v0", "x" * 10_000):
        with pytest.raises(SchemaError, match=r"is not dev\.ipe\.finding\.finding") as caught:
            decode(Finding, body(FINDING), ce_type=wrong)
        assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b'{"a":1}{"a":1}', "not JSON"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b'{"a":"\xff"}', "byte 6 is not UTF-8"),
        (b'{"a":"\\ud800"}', "half a surrogate pair"),
        (b'{"\\udc00":1}', "half a surrogate pair"),
        (b'{"a":1,"b":{"x":1,"x":2}}', "key \"x\" occurs twice"),
        (b'{"a":NaN}', "NaN is not JSON"),
        (b'{"a":-Infinity}', "-Infinity is not JSON"),
        (b'{"a":1e999}', "1e999 is not finite"),
        (b'{"a":18446744073709551616}', "beyond 64 bits"),
        (b'{"a":-9223372036854775809}', "beyond 64 bits"),
        (b'{"a":' + b"9" * 100_000 + b"}", "beyond 64 bits"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "nested too deeply"),
    ],
)  # fmt: skip
def test_json_that_two_readers_may_read_differently_is_refused(text: bytes, message: str):
    with pytest.raises(SchemaError, match=message) as caught:
        parse(text)
    assert len(str(caught.value)) < 500


def test_json_at_the_edge_of_what_everybody_can_read_is_read():
    assert parse(b'[18446744073709551615,-9223372036854775808,"\\ud83d\\ude00",1.5]') == [2**64 - 1, -(2**63), "😀", 1.5]


def test_nesting_that_the_model_cannot_follow_is_an_error_of_ours():
    deep = (
        b'{"cluster":"c","message":"m","subject":{"resource":"pods","name":"p"},"proposal":' + b'{"a":' * 300 + b"1" + b"}" * 301
    )
    with pytest.raises(SchemaError, match="recursion limit"):
        decode(Finding, deep)


def test_a_long_value_is_cut_and_that_is_said():
    with pytest.raises(SchemaError) as caught:
        decode(Command, body(COMMAND, reason="x" * 5_000))
    text = str(caught.value)
    assert "(cut, 5,002 characters)" in text
    assert "x" * 190 in text
    assert len(text) < 600


def test_the_number_of_further_problems_is_said():
    with pytest.raises(SchemaError, match="and 2 more problems"):
        decode(Finding, b"{}")
    with pytest.raises(SchemaError, match="cluster: required, but missing"):
        decode(Finding, b"{}")


@pytest.mark.parametrize("text", [b"null", b"[]", b"1", b'"x"'])
def test_a_body_that_is_no_object_is_refused(text: bytes):
    with pytest.raises(SchemaError, match=r"\(root\)"):
        decode(Finding, text)


def test_a_body_above_the_limit_is_refused_before_it_is_parsed():
    with pytest.raises(SchemaError, match="at most 2,097,152 are allowed"):
        decode(Command, b"[" * (MAX_REQUEST + 1))
    with pytest.raises(SchemaError, match="at most"):
        encode(Finding(**FINDING, proposal={"x": "y" * (9 * 1024 * 1024)}))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800", object()])
def test_what_json_cannot_say_is_not_written(value: Any):
    with pytest.raises(SchemaError, match="Finding does not fit into JSON"):
        encode(Finding(**FINDING, proposal={"x": value}))


def test_floats_of_events_are_finite():
    with pytest.raises(ValueError, match="finite"):
        Heartbeat(cluster="c", time="2026-11-22T10:00:00Z", silent_seconds={"pods": float("inf")})


def test_type_names_follow_the_class():
    assert Gap.ce_type() == "dev.ipe.cluster.gap.v1"
    assert Command.ce_type() == "dev.ipe.command.command.v1"

    class DriftFound(Finding):
        type_version = 3

    assert DriftFound.ce_type() == "dev.ipe.finding.drift-found.v3"
