"""Redaction: a sentinel put into any masked place never comes out, and clean objects keep their bytes."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipe_events.agent.redaction import MASK, Redacted, RedactionError, RedactionRules, Redactor, masked_paths
from ipe_events.events.refs import ResourceRef

KEY = b"k" * 32
SENTINEL = "S3NTINEL-c0rrect-h0rse"
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
PODS = ResourceRef.parse("pods")
SECTIONS = ["data", "stringData"]
SECRETS = ResourceRef.parse("secrets")
DEFAULT = Redactor(RedactionRules(), KEY)

scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20)
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4), max_leaves=20
)


def _wrap(tree: Any, secret: Any, path: list[str]) -> Any:
    """A tree that holds ``secret`` somewhere below."""
    for key in path:
        secret = {key: secret, "beside": tree} if key else [tree, secret]
    return secret


@given(tree=trees, path=st.lists(st.sampled_from(["", "spec", "template", "metadata", "x y"]), max_size=5))
def test_last_applied_never_comes_out(tree: Any, path: list[str]) -> None:
    holder = {"annotations": {LAST_APPLIED: SENTINEL, "other": "kept"}}
    obj = {"kind": "Thing", "metadata": holder, "spec": _wrap(tree, holder, path)}
    out = bytes(DEFAULT.redact(PODS, json.dumps(obj).encode()))
    assert SENTINEL.encode() not in out
    assert out.count(b"kept") == 2


@given(tree=trees, depth=st.integers(1, 4))
def test_manifests_inside_strings_are_masked_however_deep(tree: Any, depth: int) -> None:
    text = {"metadata": {"annotations": {LAST_APPLIED: SENTINEL}}, "tree": tree}
    for _ in range(depth):
        text = {"data": {"manifest": json.dumps(text)}}
    out = bytes(DEFAULT.redact(PODS, json.dumps({"kind": "ConfigMap", "metadata": {}, **text}).encode()))
    assert SENTINEL.encode() not in out


@given(
    values=st.dictionaries(st.text(min_size=1, max_size=10), trees, max_size=5), section=st.sampled_from(["data", "stringData"])
)
def test_no_value_of_a_secret_comes_out(values: dict[str, Any], section: str) -> None:
    obj = {"kind": "Secret", "metadata": {"name": "s", "annotations": {"tool/copy": SENTINEL}}, section: values | {"p": SENTINEL}}
    out = json.loads(bytes(DEFAULT.redact(SECRETS, json.dumps(obj).encode())))
    assert SENTINEL not in json.dumps(out)
    assert set(out[section]) == set(values) | {"p"}
    assert all(MASK.fullmatch(value) for value in out[section].values())


@given(tree=trees)
def test_a_clean_object_keeps_its_bytes(tree: Any) -> None:
    body = json.dumps({"kind": "Pod", "metadata": {"annotations": {"a": "b"}}, "spec": tree}).encode()
    assert DEFAULT.redact(PODS, body) is body


@pytest.mark.parametrize(
    "value",
    [{"data": SENTINEL}, {"data": [SENTINEL]}, {"stringData": {"a": {"b": SENTINEL}}}],
    ids=["text", "list", "nested"],
)
def test_malformed_secrets_are_masked_whole(value: dict[str, Any]) -> None:
    out = bytes(DEFAULT.redact(SECRETS, json.dumps({"kind": "Secret", "metadata": {}} | value).encode()))
    assert SENTINEL.encode() not in out


@pytest.mark.parametrize(
    "body",
    [
        f'{{"metadata":{{"annotations":{{"{LAST_APPLIED}":"{SENTINEL}"'.encode(),
        f'["{LAST_APPLIED}"]'.encode(),
        f'{{"a":"{LAST_APPLIED}"}}'.encode() + b"\xff",
        b'{"a":' * 3000 + f'"{LAST_APPLIED}"'.encode() + b"}" * 3000,
    ],
    ids=["cut", "no object", "not utf-8", "too deep"],
)
def test_what_cannot_be_examined_is_not_published(body: bytes) -> None:
    with pytest.raises(RedactionError):
        DEFAULT.redact(PODS, body)


def test_managed_fields_name_fields_not_values() -> None:
    obj: dict[str, Any] = {"metadata": {"managedFields": [{"fieldsV1": {f"f:{LAST_APPLIED}": {}}}]}}
    assert json.loads(bytes(DEFAULT.redact(PODS, json.dumps(obj).encode()))) == obj


@pytest.mark.parametrize(
    ("rules", "obj", "kept"),
    [
        (
            RedactionRules(annotations=("vault.example/*",)),
            {"metadata": {"annotations": {"vault.example/x": SENTINEL}}},
            "",
        ),
        (RedactionRules(annotations=("t*",)), {"metadata": {"annotations": {"token": SENTINEL, "a": "kept"}}}, "kept"),
        (RedactionRules(keep_annotations=("ok/*",)), {"metadata": {"annotations": {"no": SENTINEL, "ok/a": "kept"}}}, "kept"),
        (RedactionRules(env_values=True), {"spec": {"containers": [{"env": [{"name": "kept", "value": SENTINEL}]}]}}, "kept"),
    ],
    ids=["deny-list", "short glob", "allow-list", "env"],
)
def test_rules(rules: RedactionRules, obj: dict[str, Any], kept: str) -> None:
    out = bytes(Redactor(rules, KEY).redact(PODS, json.dumps({"kind": "Pod", **obj}).encode()))
    assert SENTINEL.encode() not in out
    assert kept.encode() in out


def test_masks_are_equal_for_equal_values_under_one_key_only() -> None:
    other = Redactor(RedactionRules(), b"o" * 32)
    assert DEFAULT.mask("a") == DEFAULT.mask("a") != DEFAULT.mask("b")
    assert DEFAULT.mask("a") != other.mask("a")
    assert DEFAULT.mask("a").startswith(f"hmac:{DEFAULT.key_id}:")


def test_masked_values_are_found_wherever_somebody_would_write_them() -> None:
    shown = DEFAULT.redact_object({"kind": "Secret", "apiVersion": "v1", "metadata": {}, "data": {"a/b": SENTINEL}})
    assert isinstance(shown["data"]["a/b"], Redacted)
    assert masked_paths(shown) == ["/data/a~1b"]
    assert masked_paths({"spec": {"text": f"x {DEFAULT.mask('a')} y"}, "list": ["clean"]}) == ["/spec/text"]
    assert masked_paths(json.loads(json.dumps(shown))) == ["/data/a~1b"]


@pytest.mark.parametrize(
    "text",
    [
        f'Secret "db" is invalid: data[password]: Invalid value: "{SENTINEL}": illegal base64 data',
        f'Deployment.apps "web" is invalid: spec.template: Invalid value: {{"env":"{SENTINEL}"}}: bad',
        f'admission webhook "x.y" denied: password "{SENTINEL} !" is weak',
        f'metadata.annotations[{LAST_APPLIED}]: {{"data":"{SENTINEL}"}}',
        f'Pod "a" is invalid: spec: Forbidden: may not change fields\n core.PodSpec{{Env: {{{{Value:"{SENTINEL}"}}}}}}',
        f'Deployment.apps "web" is invalid: spec: Invalid value: v1.Labels{{M:map[string]string{{"app":"{SENTINEL}"}}}}: no',
        f'pods "a" is invalid: core.PodSpec{{Env: "{SENTINEL}" ... (cut',
        f'admission webhook "pw.example" denied the request: password "{SENTINEL}" is weak',
        f"admission webhook \"pw.example\" denied the request: password '{SENTINEL}' is weak",
        f'admission webhook "pw.example" denied the request: `{SENTINEL}` is weak',
        f'Internal error occurred: "{SENTINEL}" was not understood',
        "token eyJhbGciOi.eyJzdWIiOi.c2lnbmF0dXJl was refused",
    ],
)
def test_messages_of_the_api_server_quote_no_values(text: str) -> None:
    shown = DEFAULT.redact_text(text)
    assert SENTINEL not in shown
    assert "hunter2" not in DEFAULT.redact_text(text.replace(SENTINEL, "hunter2")), "a secret may look like a name"
    assert "eyJ" not in shown
    assert "hmac:" in shown


@pytest.mark.parametrize(
    "text",
    [
        'deployments.apps "web-1" is forbidden: User "system:serviceaccount:ipe:agent" cannot patch resource "deployments"',
        'pods is forbidden: User "jo" cannot list resource "pods" in API group "apps" in the namespace "default"',
        'namespaces "kube-system" is forbidden: User "jo" cannot get resource "namespaces" in API group "" at the cluster scope',
        'Operation cannot be fulfilled on configmaps "web": the object has been modified',
        'Apply failed with 1 conflict: conflict with "kubectl" using apps/v1: .spec.replicas',
        'no matches for kind "Thing" in version "v1"',
        'strict decoding error: unknown field "spec.replica"',
        'namespaces "team-a" not found',
        "metadata.name: a name must consist of lower case characters (e.g. 'example.com')",
    ],
)
def test_names_in_messages_stay_readable(text: str) -> None:
    assert DEFAULT.redact_text(text) == text


@pytest.mark.parametrize("key", ["f:spec", "managedFields"])
def test_a_field_that_looks_like_bookkeeping_hides_nothing(key: str) -> None:
    obj = {
        "kind": "Thing",
        "metadata": {},
        "spec": {key: {"annotations": {LAST_APPLIED: SENTINEL}, f"f:{LAST_APPLIED}": SENTINEL}},
    }
    assert SENTINEL.encode() not in bytes(DEFAULT.redact(PODS, json.dumps(obj).encode()))
