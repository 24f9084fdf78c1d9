"""The agent's roles hold what it is asked to do, and nothing beyond."""

from typing import Any

import pytest
import yaml

from ipe_events.errors import UsageError
from ipe_events.events.command import VERBS
from ipe_events.events.refs import ResourceRef
from ipe_events.kube.rbac import COMMANDS, SERVICES, AgentRights, Write, manifests, own_rules, read_rules, render

DEPLOYMENTS = ResourceRef.parse("deployments.apps")
PODS = ResourceRef.parse("pods")
NOTHING: frozenset[str] = frozenset()
IDENTITY = {"apiGroups": [""], "resources": ["namespaces"], "resourceNames": ["kube-system"], "verbs": ["get"]}


def allowed(rules: list[dict[str, Any]], group: str, resource: str) -> set[str]:
    """The verbs on a resource that are not limited to names."""
    return {
        verb
        for rule in rules
        if group in rule["apiGroups"] and resource in rule["resources"] and "resourceNames" not in rule
        for verb in rule["verbs"]
    }


def roles(rights: AgentRights) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    """(kind, namespace, name) → rules."""
    return {
        (each["kind"], each["metadata"].get("namespace", ""), each["metadata"]["name"]): each["rules"]
        for each in manifests(rights)
        if "rules" in each
    }


def test_collecting_alone_needs_list_and_watch_and_the_clusters_identity() -> None:
    rules = read_rules(AgentRights(collect=(DEPLOYMENTS, PODS), services=NOTHING))
    assert rules == [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]},
        {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["list", "watch"]},
        IDENTITY,
    ]


@pytest.mark.parametrize(
    ("service", "verbs"), [("get", {"get"}), ("dryrun", {"get"}), ("list", {"list"}), ("snapshot", {"list"}), ("whoami", set())]
)
def test_a_service_adds_what_it_reads(service: str, verbs: set[str]) -> None:
    rules = read_rules(AgentRights(collect=(), read=(PODS,), services=frozenset({service})))
    assert allowed(rules, "", "pods") == verbs


def test_what_is_only_answered_is_not_watched() -> None:
    assert allowed(read_rules(AgentRights(collect=(), read=(PODS,))), "", "pods") == {"get", "list"}


def test_metrics_are_read_from_the_metrics_api() -> None:
    rules = read_rules(AgentRights(collect=(), services=frozenset({"metrics"})))
    assert rules[0] == {"apiGroups": ["metrics.k8s.io"], "resources": ["nodes", "pods"], "verbs": ["get", "list"]}


def test_namespaces_that_are_readable_need_no_rule_for_the_identity() -> None:
    rules = read_rules(AgentRights(collect=(ResourceRef.parse("namespaces"),), services=frozenset({"get"})))
    assert rules == [{"apiGroups": [""], "resources": ["namespaces"], "verbs": ["get", "list", "watch"]}]
    watched = read_rules(AgentRights(collect=(ResourceRef.parse("namespaces"),), services=NOTHING))
    assert IDENTITY in watched


def test_without_grants_there_is_no_role_that_writes() -> None:
    names = [name for _, _, name in roles(AgentRights(collect=(PODS,)))]
    assert names == ["ipe-agent-read", "ipe-agent-own"]
    for rules in roles(AgentRights(collect=(PODS,))).values():
        for rule in rules:
            writes = set(rule["verbs"]) - {"get", "list", "watch"}
            assert not writes or rule["resources"] == ["leases"]


@pytest.mark.parametrize(
    ("verb", "on_object", "on_scale"),
    [
        ("patch", {"get", "patch"}, set()),
        ("annotate", {"get", "patch"}, set()),
        ("suspend", {"get", "patch"}, set()),
        ("scale", {"get"}, {"patch"}),
        ("create", {"get", "create"}, set()),
        ("delete", {"get", "delete"}, set()),
        ("apply", {"get", "patch", "create"}, set()),
    ],
)
def test_a_granted_command_needs_exactly_its_verbs(verb: Any, on_object: set[str], on_scale: set[str]) -> None:
    found = roles(AgentRights(collect=(), writes=(Write(DEPLOYMENTS, (verb,)),)))
    rules = found["ClusterRole", "", "ipe-agent-write"]
    assert allowed(rules, "apps", "deployments") == on_object
    assert allowed(rules, "apps", "deployments/scale") == on_scale


def test_every_command_verb_and_service_is_covered() -> None:
    assert set(COMMANDS) == set(VERBS)
    assert set(SERVICES) == {"snapshot", "get", "list", "dryrun", "metrics", "whoami"}


def test_a_grant_for_named_namespaces_stays_in_them() -> None:
    found = roles(
        AgentRights(collect=(), writes=(Write(DEPLOYMENTS, ("patch",), ("team-a", "team-b")), Write(PODS, ("delete",))))
    )
    assert found["ClusterRole", "", "ipe-agent-write"] == [{"apiGroups": [""], "resources": ["pods"], "verbs": ["delete", "get"]}]
    rule = {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["get", "patch"]}
    assert found["Role", "team-a", "ipe-agent-write"] == found["Role", "team-b", "ipe-agent-write"] == [rule]


def test_grants_add_up_without_repeating() -> None:
    writes = (
        Write(DEPLOYMENTS, ("patch",)),
        Write(DEPLOYMENTS, ("annotate", "delete")),
        Write(ResourceRef.parse("statefulsets.apps"), ("patch",)),
    )
    assert roles(AgentRights(collect=(), writes=writes))["ClusterRole", "", "ipe-agent-write"] == [
        {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["delete", "get", "patch"]},
        {"apiGroups": ["apps"], "resources": ["statefulsets"], "verbs": ["get", "patch"]},
    ]


def test_the_agents_own_namespace_is_limited_to_names() -> None:
    rules = own_rules(AgentRights(collect=(), lease="writer", freeze="stop"))
    assert [(rule["resources"], rule.get("resourceNames"), rule["verbs"]) for rule in rules] == [
        (["leases"], None, ["create"]),
        (["leases"], ["writer"], ["get", "update"]),
        (["configmaps"], ["stop"], ["get"]),
    ]


def test_each_role_is_bound_to_the_service_account_where_it_lives() -> None:
    rights = AgentRights(collect=(PODS,), writes=(Write(PODS, ("delete",), ("team-a",)),), namespace="gov", service_account="me")
    documents = manifests(rights)
    assert [each["kind"] for each in documents] == [
        *("ClusterRole", "ClusterRoleBinding"),
        *("Role", "RoleBinding", "Role", "RoleBinding"),
    ]
    for role, binding in zip(documents[::2], documents[1::2], strict=True):
        assert binding["metadata"] == role["metadata"]
        assert binding["roleRef"]["name"] == role["metadata"]["name"]
        assert binding["roleRef"]["kind"] == role["kind"]
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "me", "namespace": "gov"}]


@pytest.mark.parametrize(
    "resource", [ResourceRef(resource="*"), ResourceRef(group="*", resource="pods"), ResourceRef(group="apps", resource="*")]
)
def test_wildcards_are_refused(resource: ResourceRef) -> None:
    for rights in (
        AgentRights(collect=(resource,)),
        AgentRights(collect=(), read=(resource,)),
        AgentRights(collect=(), writes=(Write(resource, ("patch",)),)),
    ):
        with pytest.raises(UsageError, match="never wildcards"):
            manifests(rights)


def test_secrets_are_only_readable_when_asked_for() -> None:
    secrets = ResourceRef.parse("secrets")
    with pytest.raises(UsageError, match="Secrets are left out"):
        manifests(AgentRights(collect=(secrets,)))
    assert allowed(read_rules(AgentRights(collect=(secrets,), secrets=True, services=NOTHING)), "", "secrets") == {
        "list",
        "watch",
    }
    assert "secrets" not in render(manifests(AgentRights(collect=(PODS,), secrets=True)))


@pytest.mark.parametrize(
    ("rights", "message"),
    [
        (AgentRights(collect=(ResourceRef(resource="pods/exec"),)), "is a subresource"),
        (AgentRights(collect=(), services=frozenset({"shell"})), "no service 'shell'"),
        (AgentRights(collect=(), writes=(Write(PODS, ("exec",)),)), "no verb 'exec'"),
    ],
)
def test_nonsense_is_refused(rights: AgentRights, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        manifests(rights)


def test_the_same_needs_make_the_same_text() -> None:
    one = AgentRights(collect=(PODS, DEPLOYMENTS), services=frozenset(["get", "list"]))
    other = AgentRights(collect=(DEPLOYMENTS, PODS, PODS), services=frozenset(["list", "get"]))
    assert render(manifests(one)) == render(manifests(other))


def test_the_text_is_yaml_of_the_same_documents() -> None:
    documents = manifests(AgentRights(collect=(PODS,)))
    text = render(documents, header="made by\nipe rbac agent")
    assert text.startswith("# made by\n# ipe rbac agent\napiVersion")
    assert list(yaml.safe_load_all(text)) == documents
    assert "&id" not in text  # no YAML anchors: people read this
