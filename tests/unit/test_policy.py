"""Policy documents: what people write, what is refused and how it is said, and which policy counts."""

from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field
from structlog.testing import capture_logs

from ipe_events.errors import ConfigError, DeclarationError, SchemaError
from ipe_events.policy import (
    Part,
    Policy,
    PolicySet,
    PolicySpec,
    Selection,
    decode_kv,
    encode_kv,
    kinds,
    kv_key,
    load_file,
    load_text,
)
from ipe_events.policy.documents import MAX_DEPTH, parse_documents
from ipe_events.runtime.policies import Policies


class NapTime(Part):
    begins: str
    days: tuple[int, ...] = ()


class NapSpec(PolicySpec):
    schedule: NapTime
    mode: Literal["observe", "enforce"] = "observe"
    minutes: int = Field(default=30, ge=1)


class NapPolicy(Policy[NapSpec]):
    """When workloads nap (of these tests alone)."""


NAP = """\
apiVersion: ipe.dev/v1alpha1
kind: NapPolicy
metadata:
  name: noon
spec:
  select:
    clusters: [prod-*]
    namespaces: ["team-*", "!team-core"]
    labels:
      matchLabels: {tier: web}
  schedule:
    begins: 12:30
    days: [1, 2]
"""


def nap(name: str, **spec: Any) -> NapPolicy:
    return NapPolicy.model_validate(
        {
            "apiVersion": "ipe.dev/v1alpha1",
            "kind": "NapPolicy",
            "metadata": {"name": name},
            "spec": {"schedule": {"begins": "1"}, **spec},
        }
    )


def selected(policies: PolicySet[NapPolicy], *place: Any) -> list[str]:
    return [policy.name for policy in policies.select(*place)]


# --- loading ----------------------------------------------------------------------------------------------------------------


def test_a_file_holds_several_policies(tmp_path: Path):
    file = tmp_path / "naps.yaml"
    file.write_text(f"# naps\n{NAP}---\n---\n{NAP.replace('name: noon', 'name: dusk')}")
    first, second = load_file(file)
    assert isinstance(first, NapPolicy)
    assert (first.name, second.name) == ("noon", "dusk")
    assert first.spec.schedule == NapTime(begins="12:30", days=(1, 2))
    assert first.spec.select.namespaces == ("team-*", "!team-core")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("days: [1, 2]", "days: [1, two]", r'naps\.yaml:13: spec\.schedule\.days\[1\]: value "two": Input should be'),
        ("begins:", "begin:", r"naps\.yaml:12: spec\.schedule\.begin: .*unknown field.*did you mean 'begins'"),
        ("  schedule:", "  minutes: 0\n  schedule:", r"naps\.yaml:11: spec\.minutes: value 0: .*greater than or equal to 1"),
        ("  schedule:", "  mode: enforced\n  schedule:", r'spec\.mode: value "enforced": Input should be \'observe\''),
        ("matchLabels", "matchLabel", r"naps\.yaml:10: spec\.select\.labels\.matchLabel: .*did you mean 'matchLabels'"),
        ("    begins: 12:30\n", "", r"naps\.yaml:11: spec\.schedule\.begins: required, but missing"),
        ("name: noon", "name: Noon!", r"naps\.yaml:4: metadata\.name: value \"Noon!\""),
        ("kind: NapPolicy", "kind: NapPolcy", r'naps\.yaml:2: kind is "NapPolcy" \(fix: did you mean NapPolicy'),
        ("kind: NapPolicy", "kind: Deployment", r"known kinds: .*NapPolicy"),
        ("kind: NapPolicy\n", "", r"naps\.yaml:1: kind is null"),
        ("v1alpha1", "v9", r'naps\.yaml:1: apiVersion is "ipe\.dev/v9" \(fix: write ipe\.dev/v1alpha1\)'),
        ('"!team-core"', '"!"', r"spec\.select: .*`!` excludes nothing"),
        ("clusters: [prod-*]", "clusters: []", r"naps\.yaml:7: spec\.select\.clusters"),
        ("  name: noon", "  name: noon\n  name: dusk", r"naps\.yaml:5: metadata\.name: the key occurs twice"),
        ("{tier: web}", "{<<: {a: b}}", r"naps\.yaml:10: .*a key is not plain text"),
        ("{tier: web}", "{? [a] : b}", r"a key is not plain text"),
        ("days: [1, 2]", "days: !!binary aGk=", r"tag 'tag:yaml.org,2002:binary' is not allowed"),
        ("days: [1, 2]", "days: !!python/name:os.system x", r"is not allowed"),
        ("days: [1, 2]", "days: [.nan]", r'"\.nan" is not a finite number'),
        ("days: [1, 2]", "days: [!!int x]", r'"x" is no int'),
        ("days: [1, 2]", "days: [" + "9" * 5_000 + "]", r"is no int"),
        ("days: [1, 2]", "days: [1, 2", r"naps\.yaml:\d+: not YAML: "),
        ("days: [1, 2]", "days: *nobody", r"not YAML: found undefined alias"),
        ("noon", "no\x00on", r"not YAML: "),
    ],
)  # fmt: skip
def test_a_mistake_is_answered_with_its_place_value_and_rule(old: str, new: str, message: str):
    assert old in NAP
    with pytest.raises(ConfigError, match=message) as caught:
        load_text(NAP.replace(old, new, 1), "naps.yaml")
    assert len(str(caught.value)) < 800


def test_two_policies_of_one_name_are_refused():
    with pytest.raises(ConfigError, match=r"naps\.yaml:18: a second NapPolicy 'noon'"):
        load_text(f"{NAP}---\n{NAP}", "naps.yaml")


def test_what_is_no_file_or_no_mapping_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot read the file: No such file"):
        load_file(tmp_path / "nowhere.yaml")
    with pytest.raises(ConfigError, match="cannot read the file"):
        load_file(tmp_path)
    for text in ("- a", "text", "1"):
        with pytest.raises(ConfigError, match=r"x\.yaml:1: the document is not a mapping"):
            load_text(text, "x.yaml")
    with pytest.raises(ConfigError, match="not YAML"):
        load_text(b"\xff\xfe\xff", "x.yaml")
    with pytest.raises(ConfigError, match="larger than 4 MiB"):
        load_text("#" * (4 * 1024**2 + 1), "x.yaml")
    assert load_text("", "x.yaml") == load_text("---\n# nothing\n", "x.yaml") == []


@pytest.mark.parametrize(
    "text", ["a: " + "[" * 200_000, "a: " + "{b: " * 100_000, "a: " + "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1)]
)
def test_deep_nesting_is_refused_before_the_c_composer_overflows_its_stack(text: str):
    with pytest.raises(ConfigError, match=f"nested deeper than {MAX_DEPTH} levels"):
        parse_documents(text, "deep.yaml")


def test_an_alias_is_fine_and_a_bomb_of_aliases_is_not():
    (document,) = parse_documents("a: &x [1, 2]\nb: *x", "x.yaml")
    assert document.data == {"a": [1, 2], "b": [1, 2]}
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
    with pytest.raises(ConfigError, match="more than 100,000 values"):
        parse_documents(bomb, "bomb.yaml")
    with pytest.raises(ConfigError, match="more than 100,000 values"):
        parse_documents("a: &a [*a]", "self.yaml")


def test_text_that_yaml_would_turn_into_something_else_stays_text():
    (document,) = parse_documents("time: 22:30\nday: 2026-11-22\non: yes\nhex: 0x10\nnone: ~\n1: 1.5", "x.yaml")
    assert document.data == {"time": "22:30", "day": "2026-11-22", "on": True, "hex": 16, "none": None, "1": 1.5}


# --- kinds ------------------------------------------------------------------------------------------------------------------


def test_a_declared_class_is_a_kind():
    assert kinds()["NapPolicy"] is NapPolicy
    assert "Policy[NapSpec]" not in kinds()
    with pytest.raises(TypeError):
        kinds()["NapPolicy"] = NapPolicy  # type: ignore[index]  # that it cannot be written is what is tested


def test_two_classes_of_one_kind_are_a_mistake_of_the_declaration():
    with pytest.raises(DeclarationError, match=r"policy kind NapPolicy is declared twice"):
        type("NapPolicy", (Policy[NapSpec],), {"__module__": "elsewhere", "__qualname__": "Other.NapPolicy"})
    assert kinds()["NapPolicy"] is NapPolicy


# --- selection ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cluster", "namespace", "labels", "expected"),
    [
        ("prod-eu", "team-a", {"tier": "web"}, True),
        ("prod-eu", "team-a", {"tier": "db"}, False),
        ("prod-eu", "team-a", {}, False),
        ("prod-eu", "team-core", {"tier": "web"}, False),
        ("prod-eu", "", {"tier": "web"}, False),
        ("test-eu", "team-a", {"tier": "web"}, False),
    ],
)
def test_a_policy_applies_where_all_its_conditions_hold(cluster: str, namespace: str, labels: dict[str, str], expected: bool):
    (policy,) = load_text(NAP, "naps.yaml")
    assert policy.spec.select.matches(cluster, namespace, labels) is expected


def test_without_conditions_a_policy_applies_everywhere_and_exclusions_alone_leave_the_rest():
    assert Selection().matches("any", "", {})
    others = Selection(namespaces=("!kube-*",))
    assert others.matches("c", "shop", {})
    assert others.matches("c", "", {})
    assert not others.matches("c", "kube-system", {})


@pytest.mark.parametrize(
    ("operator", "values", "on_web", "on_none"),
    [
        ("In", ["web"], True, False),
        ("NotIn", ["web"], False, True),
        ("Exists", [], True, False),
        ("DoesNotExist", [], False, True),
    ],
)
def test_label_expressions_mean_what_kubernetes_means(operator: str, values: list[str], on_web: bool, on_none: bool):
    policy = nap("a", select={"labels": {"matchExpressions": [{"key": "tier", "operator": operator, "values": values}]}})
    assert policy.spec.select.labels.matches({"tier": "web"}) is on_web
    assert policy.spec.select.labels.matches({}) is on_none


@pytest.mark.parametrize(("operator", "values", "message"), [("In", [], "needs values"), ("Exists", ["x"], "takes no values")])
def test_label_expressions_without_sense_are_refused(operator: str, values: list[str], message: str):
    with pytest.raises(ValueError, match=f"operator {operator} {message}"):
        nap("a", select={"labels": {"matchExpressions": [{"key": "tier", "operator": operator, "values": values}]}})


def test_precedence_then_precision_then_name_decide():
    policies = PolicySet(
        [
            nap("z-any"),
            nap("b-any"),
            nap("by-cluster", select={"clusters": ["prod"]}),
            nap("by-labels", select={"labels": {"matchLabels": {"tier": "web"}}}),
            nap("by-glob", select={"namespaces": ["sh*"]}),
            nap("by-name", select={"namespaces": ["shop"]}),
            nap("first", precedence=1),
            nap("elsewhere", precedence=9, select={"clusters": ["test"]}),
        ]
    )
    expected = ["first", "by-name", "by-glob", "by-labels", "by-cluster", "b-any", "z-any"]
    assert selected(policies, "prod", "shop", {"tier": "web"}) == expected
    assert selected(PolicySet(reversed(list(policies))), "prod", "shop", {"tier": "web"}) == expected
    assert selected(policies, "prod") == ["first", "by-cluster", "b-any", "z-any"]


def test_a_set_is_changed_by_making_another():
    one = PolicySet([nap("a")])
    two = one.with_(nap("b")).with_(nap("a", precedence=5))
    assert (len(one), len(two)) == (1, 2)
    changed = two.get("a")
    assert changed is not None
    assert changed.spec.precedence == 5
    assert [policy.name for policy in two.without("a").without("nobody")] == ["b"]


# --- KV -----------------------------------------------------------------------------------------------------------------------


def test_a_policy_survives_the_bucket():
    (policy,) = load_text(NAP.replace("noon", "noon.eu"), "naps.yaml")
    key, value = kv_key(policy), encode_kv(policy)
    assert key == "NapPolicy.noon=2Eeu"
    assert value.startswith(b'{"policy":{"apiVersion":"ipe.dev/v1alpha1","kind":"NapPolicy"')
    assert decode_kv(key, value, NapPolicy) == policy
    assert encode_kv(decode_kv(key, value, NapPolicy)) == value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((b'"version":1', b'"version":2'), "version 2 is from the future"),
        ((b"NapPolicy", b"NopPolicy"), 'kind is "NopPolicy", not NapPolicy'),
        ((b'"mode":"observe"', b'"mode":"x"'), r"ipe_policies/NapPolicy\.noon: spec\.mode: value \"x\""),
        ((b'"mode":"observe"', b'"mood":"observe"'), r"spec\.mood: .*unknown field"),
        ((b'"noon"', b'"dusk"'), r"the value belongs under 'NapPolicy\.dusk'"),
        ((b'"mode":"observe"', b'"mode":"observe","mode":"enforce"'), "occurs twice"),
        ((b"{", b""), "not JSON"),
    ],
)
def test_a_value_of_the_bucket_is_hostile_until_read(change: tuple[bytes, bytes], message: str):
    (policy,) = load_text(NAP, "naps.yaml")
    value = encode_kv(policy)
    assert change[0] in value
    with pytest.raises(SchemaError, match=message):
        decode_kv("NapPolicy.noon", value.replace(*change, 1), NapPolicy)


def test_the_policies_of_a_handler_read_the_bucket_and_keep_the_last_good_document():
    policies = Policies(NapPolicy)
    good = nap("noon", select={"clusters": ["prod"]})
    assert policies.put(kv_key(good), encode_kv(good))
    assert policies.select("prod") == (good,)
    assert policies.select("test") == ()
    with capture_logs() as logs:
        assert not policies.put(kv_key(good), encode_kv(good).replace(b'"minutes":30', b'"minutes":0'))
    assert logs[0]["error"].startswith("ipe_policies/NapPolicy.noon: spec.minutes: value 0")
    assert policies.all() == [good]
    policies.drop(kv_key(good))
    assert policies.select("prod") == ()
