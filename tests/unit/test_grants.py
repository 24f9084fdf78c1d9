"""What a grant covers, which of several decides, and what no wildcard reaches."""

import pytest
from pydantic import ValidationError

from ipe_events.agent.grants import Grant, GrantSet, Mode, Protected
from ipe_events.events.refs import ObjectRef, ResourceRef

DEPLOYMENT = ObjectRef(group="apps", resource="deployments", namespace="shop", name="web")
ALL = Grant(handler="h", mode=Mode.ENFORCE, verbs=("patch", "delete"), resources=("*",), namespaces=("*", "")).standing_at("f:1")


@pytest.mark.parametrize(
    ("changes", "lacks"),
    [
        ({}, ""),
        ({"verbs": ("scale",)}, "verb 'patch'"),
        ({"verbs": ()}, "verb 'patch' is not among none"),
        ({"resources": ("deployments.apps",)}, ""),
        ({"resources": ("*.apps",)}, ""),
        ({"resources": ("deployments",)}, "resource 'deployments.apps'"),
        ({"resources": ("deployments.extensions", "pods")}, "resource 'deployments.apps'"),
        ({"namespaces": ("sh*",)}, ""),
        ({"namespaces": ("prod-*",)}, "namespace 'shop'"),
        ({"namespaces": ("",)}, "namespace 'shop'"),
        ({"labels": {"team": "web"}}, ""),
        ({"labels": {"team": "api"}}, "label team=api"),
    ],
)
def test_a_grant_covers_an_act_only_as_a_whole(changes, lacks):
    grant = ALL.model_copy(update=changes)
    assert grant.covers("patch", DEPLOYMENT, {"team": "web"}).startswith(lacks)
    assert bool(grant.covers("patch", DEPLOYMENT, {"team": "web"})) == bool(lacks)


def test_labels_are_not_checked_before_the_object_is_known():
    assert ALL.model_copy(update={"labels": {"team": "api"}}).covers("patch", DEPLOYMENT, None) == ""


def test_a_cluster_scoped_object_needs_the_empty_namespace_pattern():
    node = ObjectRef(resource="nodes", name="n1")
    assert "namespace ''" in ALL.model_copy(update={"namespaces": ("*",)}).covers("patch", node)
    assert ALL.covers("patch", node) == ""


def test_the_most_permissive_matching_grant_decides():
    observe = ALL.model_copy(update={"mode": Mode.OBSERVE}).standing_at("f:2")
    other_namespace = ALL.model_copy(update={"namespaces": ("prod",)}).standing_at("f:3")
    decision = GrantSet((observe, other_namespace)).decide("h", "patch", DEPLOYMENT)
    assert decision.grant == observe
    assert GrantSet((observe, ALL)).decide("h", "patch", DEPLOYMENT).grant == ALL


def test_a_refusal_names_the_line_of_every_grant_of_the_handler():
    grants = GrantSet((ALL.model_copy(update={"verbs": ("scale",)}).standing_at("agent.yaml:7: grants[0]"),))
    assert GrantSet().decide("h", "patch", DEPLOYMENT).why_not == "this cluster grants 'h' nothing"
    assert "agent.yaml:7: grants[0]: verb 'patch' is not among scale" in grants.decide("h", "patch", DEPLOYMENT).why_not


@pytest.mark.parametrize(
    ("group", "resource", "namespace", "name"),
    [
        ("rbac.authorization.k8s.io", "rolebindings", "shop", "x"),
        ("admissionregistration.k8s.io", "validatingwebhookconfigurations", "", "x"),
        ("admissionregistration.k8s.io", "validatingadmissionpolicies", "", "x"),
        ("apiextensions.k8s.io", "customresourcedefinitions", "", "x"),
        ("apiregistration.k8s.io", "apiservices", "", "x"),
        ("", "nodes", "", "n1"),
        ("", "secrets", "shop", "x"),
        ("apps", "deployments", "kube-system", "coredns"),
        ("", "namespaces", "", "kube-system"),
        ("ipe.dev", "handlergrants", "shop", "x"),
        ("apps", "deployments", "ipe-system", "agent"),
    ],
)
def test_what_is_dangerous_is_protected_from_wildcards_and_free_when_named(group, resource, namespace, name):
    target = ObjectRef(group=group, resource=resource, namespace=namespace, name=name)
    assert "protected" in Protected().why(target, {}, [ALL])
    literal = ALL.model_copy(
        update={
            "resources": ("*", f"{resource}.{group}" if group else resource),
            "namespaces": ("*", "", namespace or "kube-system"),
        }
    )
    assert Protected().why(target, {}, [literal]) == ""


def test_a_protected_label_has_no_exception():
    assert "protected label" in Protected().why(DEPLOYMENT, {"app.kubernetes.io/part-of": "ipe-events"}, [ALL])
    assert Protected().why(DEPLOYMENT, {"app.kubernetes.io/part-of": "shop"}, [ALL]) == ""


def test_reading_is_limited_to_what_is_collected_and_what_a_grant_adds():
    pods, jobs = ResourceRef.parse("pods"), ResourceRef.parse("jobs.batch")
    grants = GrantSet((ALL.model_copy(update={"read": ("*.batch",)}),))
    assert grants.may_read("h", pods, [pods])
    assert grants.may_read("h", jobs, [pods])
    assert not grants.may_read("other", jobs, [pods])
    secrets, everything = ResourceRef.parse("secrets"), GrantSet((ALL.model_copy(update={"read": ("*",)}),))
    assert everything.may_read("h", jobs, [])
    assert not everything.may_read("h", secrets, [])
    assert GrantSet((ALL.model_copy(update={"read": ("secrets",)}),)).may_read("h", secrets, [])


@pytest.mark.parametrize("pattern", ["Deployments.apps", "dep*.apps", "*.", "a b", "", "*.a*"])
def test_a_pattern_that_can_match_nothing_is_refused(pattern):
    with pytest.raises(ValidationError):
        Grant(handler="h", resources=(pattern,))
