"""Each guardrail refuses what it is for, lets pass what it is not for, and names itself; and they come in their order."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ipe_events.agent.grants import Grant, GrantSet, Limits, Mode
from ipe_events.agent.guardrails import Addressee, Facts, Rules, Usage, after_read, before_read, overlaps, touched_paths
from ipe_events.events.command import Command
from ipe_events.events.freeze import Freeze, FreezeState
from ipe_events.events.ledger import LedgerEntry

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
GRANT = Grant(
    handler="guard",
    mode=Mode.ENFORCE,
    verbs=("patch", "scale", "delete", "create", "apply", "annotate", "suspend"),
    resources=("*",),
).standing_at("agent.yaml:3")
RULES = Rules(grants=GrantSet((GRANT,)))
SUBJECT = Addressee("c1", "guard", "scale")
SEEN = {
    "metadata": {"name": "web", "namespace": "shop", "uid": "u1", "resourceVersion": "7", "labels": {"team": "web"}},
    "spec": {"replicas": 3, "paused": False},
}


def command(**changes: Any) -> Command:
    body = {
        "id": "c-1",
        "handler": "guard",
        "cluster": "c1",
        "target": {"group": "apps", "resource": "deployments", "namespace": "shop", "name": "web"},
        "action": {"verb": "scale", "replicas": 2},
        "reason": "because",
        "issued": NOW,
        "expires": NOW + timedelta(minutes=5),
    }
    return Command.model_validate(body | changes)


def facts(**changes: Any) -> Facts:
    return replace(Facts(now=NOW, seen=SEEN), **changes)


def patch(path: str, value: Any = 1, **more: Any) -> dict[str, Any]:
    return {"verb": "patch", "operations": [{"op": "replace", "path": path, "value": value}], **more}


def grants(**changes: Any) -> Rules:
    return Rules(grants=GrantSet((GRANT.model_copy(update=changes),)))


def freeze(**changes: Any) -> FreezeState:
    return FreezeState(freezes=(Freeze(time=NOW, user="ada", reason="incident", **changes),))


def owner(path: str, handler: str = "other", until: timedelta = timedelta(hours=1)) -> LedgerEntry:
    return LedgerEntry(path=path, handler=handler, command="c-0", until=NOW + until, reason="asleep")


def verdict(each: Command, rules: Rules = RULES, known: Facts | None = None, subject: Addressee = SUBJECT) -> tuple[str, str]:
    known = known or facts()
    refusal = before_read(each, subject, rules, known) or after_read(each, rules, known)
    return (refusal.guardrail, refusal.message) if refusal else ("", "")


def test_a_granted_command_passes():
    assert verdict(command()) == ("", "")


@pytest.mark.parametrize(
    ("each", "rules", "known", "guardrail", "message"),
    [
        (command(handler="other"), RULES, facts(), "identity", "handler is 'other' in the body, 'guard' in the subject"),
        (command(cluster="c2"), RULES, facts(), "identity", "cluster is 'c2'"),
        (command(action={"verb": "delete"}), RULES, facts(), "identity", "verb is 'delete'"),
        (command(precondition={"values": {"/data/x": "hmac:k1:0123456789abcdef"}}), RULES, facts(), "masked", "/data/x"),
        (command(expires=NOW), RULES, facts(), "expiry", "expired at"),
        (command(expires=NOW + timedelta(days=8)), RULES, facts(), "expiry", "more than 6 days"),
        (command(lease=NOW), RULES, facts(), "expiry", "its lease ended"),
        (command(), RULES, facts(freezes=freeze()), "freeze", "frozen by ada: incident"),
        (command(), RULES, facts(freezes=freeze(clusters="c*", handlers="gu*")), "freeze", "frozen"),
        (command(), Rules(grants=GrantSet()), facts(), "grant", "this cluster grants 'guard' nothing"),
        (command(), grants(verbs=("patch",)), facts(), "grant", "agent.yaml:3: verb 'scale'"),
        (command(), grants(labels={"team": "api"}), facts(), "grant", "label team=api"),
        (command(), grants(mode=Mode.OBSERVE), facts(), "mode", "agent.yaml:3 lets 'guard' observe only"),
        (command(), grants(mode=Mode.PROPOSE), facts(), "mode", "propose only"),
        (command(), Rules(grants=GrantSet((GRANT,)), writes=False), facts(), "read-only", "this agent only reads"),
        (
            command(target={"group": "apps", "resource": "deployments", "namespace": "kube-system", "name": "dns"}),
            RULES, facts(), "protected", "namespace 'kube-system' is protected",
        ),
        (command(hops=9), RULES, facts(), "loop", "9 commands caused each other, the limit is 8"),
        (command(), RULES, facts(hops=9), "loop", "9 commands"),
        (command(), RULES, facts(usage=Usage(minute=30)), "rate", "30 writes in the last minute, agent.yaml:3 allows 30"),
        (command(), RULES, facts(usage=Usage(hour=600)), "rate", "600 writes in the last hour"),
        (
            command(), grants(limits=Limits(namespace_share=0.2)), facts(usage=Usage(touched=2, population=10)),
            "blast-radius", "2 of 10 objects of the namespace",
        ),
        (command(), RULES, facts(owners=(owner("/spec/replicas"),)), "ledger", "/spec/replicas belongs to 'other' until"),
        (command(), RULES, facts(owners=(owner("/spec"),)), "ledger", "asleep"),
        (command(), RULES, facts(owners=(owner(""),)), "ledger", "the object belongs"),
        (command(), RULES, facts(seen=None), "precondition", "does not exist"),
        (command(precondition={"uid": "u2"}), RULES, facts(), "precondition", "uid u1, not u2"),
        (command(precondition={"resource_version": "6"}), RULES, facts(), "precondition", "resourceVersion 7, not 6"),
        (command(precondition={"values": {"/spec/replicas": 4}}), RULES, facts(), "precondition", "/spec/replicas"),
        (command(precondition={"values": {"/spec/paused": None}}), RULES, facts(), "precondition", "/spec/paused"),
        (command(precondition={"values": {"/spec/paused": 0}}), RULES, facts(), "precondition", "/spec/paused"),
    ],
)  # fmt: skip
def test_each_guardrail_refuses_and_names_itself(each, rules, known, guardrail, message):
    found = verdict(each, rules, known)
    assert found[0] == guardrail
    assert message in found[1]


@pytest.mark.parametrize(
    ("each", "rules", "known"),
    [
        (command(), RULES, facts(freezes=freeze(clusters="c2"))),
        (command(), RULES, facts(freezes=freeze(handlers="other"))),
        (command(), RULES, facts(usage=Usage(minute=29, hour=599))),
        (command(), RULES, facts(owners=(owner("/spec/replicas", handler="guard"),))),
        (command(), RULES, facts(owners=(owner("/spec/replicasets"), owner("/spec/template")))),
        (command(), grants(limits=Limits(namespace_share=0.2)), facts(usage=Usage(touched=1, population=10))),
        (command(), grants(limits=Limits(namespace_share=0.1)), facts(usage=Usage(touched=0, population=3))),
        (command(hops=8), RULES, facts()),
        (command(precondition={"uid": "u1", "resource_version": "7"}), RULES, facts()),
        (command(precondition={"values": {"/spec/replicas": 3, "/spec/no": None}}), RULES, facts()),
        (command(dry_run=True), grants(mode=Mode.OBSERVE), facts(usage=Usage(minute=99), freezes=freeze())),
        (command(dry_run=True), Rules(grants=GrantSet((GRANT,)), writes=False), facts()),
    ],
)  # fmt: skip
def test_each_guardrail_lets_pass_what_it_is_not_for(each, rules, known):
    assert verdict(each, rules, known) == ("", "")


def test_they_come_in_order():
    """With everything wrong at once, mending one fault after the other shows the next guardrail."""
    dns = {"group": "apps", "resource": "deployments", "namespace": "kube-system", "name": "dns"}
    rules = grants(mode=Mode.OBSERVE)
    wrong: dict[str, Any] = {"target": dns, "handler": "other", "expires": NOW, "hops": 9, "precondition": {"uid": "u2"}}
    known: dict[str, Any] = {"freezes": freeze(), "usage": Usage(minute=99), "owners": (owner("/spec"),)}
    order = []
    for cured in ("handler", "expires", "freezes", "mode", "target", "hops", "usage", "owners", "precondition", ""):
        order.append(verdict(command(**wrong), rules, facts(**known))[0])
        wrong.pop(cured, None)
        known.pop(cured, None)
        if cured == "mode":
            rules = grants(mode=Mode.ENFORCE)
    assert order == ["identity", "expiry", "freeze", "mode", "protected", "loop", "rate", "ledger", "precondition", ""]


@pytest.mark.parametrize(
    ("action", "paths"),
    [
        ({"verb": "scale", "replicas": 1}, ("/spec/replicas",)),
        ({"verb": "suspend"}, ("/spec/suspend",)),
        ({"verb": "annotate", "annotations": {"a/b": "1", "c": None}}, ("/metadata/annotations/a~1b", "/metadata/annotations/c")),
        ({"verb": "delete"}, ("",)),
        ({"verb": "create", "manifest": {}}, ("",)),
        (patch("/spec/x"), ("/spec/x",)),
        (
            {
                "verb": "patch",
                "operations": [{"op": "test", "path": "/a", "value": 1}, {"op": "move", "from": "/b", "path": "/c"}],
            },
            ("/c", "/b"),
        ),
        (
            {
                "verb": "apply",
                "manifest": {"apiVersion": "v1", "metadata": {"name": "x", "labels": {"l": "1"}}, "spec": {"a": [1]}},
            },
            ("/metadata/labels/l", "/spec/a"),
        ),
    ],
)
def test_what_a_command_touches(action, paths):
    assert touched_paths(command(action=action)) == paths


@pytest.mark.parametrize(
    ("one", "other", "meet"),
    [
        ("/a", "/a", True),
        ("/a", "/a/b", True),
        ("/a/b", "/a", True),
        ("", "/a", True),
        ("/a", "/ab", False),
        ("/a/b", "/a/c", False),
    ],
)
def test_pointers_overlap_by_whole_parts(one, other, meet):
    assert overlaps(one, other) is meet


def test_a_masked_value_is_found_wherever_it_hides():
    hidden = {"verb": "apply", "manifest": {"data": {"list": [{"deep": "x hmac:k1:0123456789abcdef"}]}}}
    found = verdict(command(action=hidden), subject=Addressee("c1", "guard", "apply"))
    assert found == ("masked", "a masked value cannot be written or compared (/manifest/data/list/0/deep)")
