"""Reading the record: every topic, hostile messages, filters, the tree of causes."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from ipe_events.cli.commands import STATUSES, Asked
from ipe_events.cli.events import draw
from ipe_events.cli.record import Entry, Query, entry_of, parse_ref
from ipe_events.cli.trail import Trail
from ipe_events.events import Status
from ipe_events.subjects import CHANGE, CLUSTER, COMMAND, DLQ, FINDING, OUTCOME

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
UID = "0b9c"
TRACE = "0af7651916cd43dd8448eb211c80319c"
DEPLOYMENT = {"group": "apps", "version": "v1", "resource": "deployments", "namespace": "shop", "name": "payments", "uid": UID}
SUBJECTS = {
    "change": CHANGE.format(
        cluster="prod-eu", group="apps", resource="deployments", namespace="shop", verb="modified", partition=3
    ),
    "command": COMMAND.format(cluster="prod-eu", handler="scale-guard", verb="patch"),
    "outcome": OUTCOME.format(cluster="prod-eu", handler="scale-guard", verb="patch"),
    "finding": FINDING.format(handler="scale-guard", cluster="prod-eu", namespace="shop", type="too-many"),
}


def change(seq: int, rv: str, *, seconds: int = 0) -> Entry:
    headers = {
        "ce-id": f"c-uid/1/apps/deployments/{UID}/{rv}/modified",
        "ce-kind": "Deployment",
        "ce-name": "payments",
        "traceparent": f"00-{TRACE}-b7ad6b7169203331-01",
    }
    return entry_of(f"IPE_K8S:{seq}", SUBJECTS["change"], NOW + timedelta(seconds=seconds), headers, b"{}")


def message(topic: str, seq: int, data: object, *, seconds: int = 0, headers: dict[str, str] | None = None) -> Entry:
    stream = "IPE_CMD" if topic == "command" else "IPE_GOV"
    return entry_of(
        f"{stream}:{seq}", SUBJECTS[topic], NOW + timedelta(seconds=seconds), headers or {}, json.dumps(data).encode()
    )


def story() -> list[Entry]:
    command = {
        "id": "cmd1234567", "target": DEPLOYMENT, "reason": "cap 50", "cause": f"c-uid/1/apps/deployments/{UID}/7/modified",
        "action": {"verb": "patch", "operations": [
            {"op": "test", "path": "/spec/replicas", "value": 80}, {"op": "replace", "path": "/spec/replicas", "value": 50}]},
    }  # fmt: skip
    outcome = {
        "id": "out1",
        "command": "cmd1234567",
        "status": "applied",
        "uid": UID,
        "resource_version": "9",
        "object_ref": DEPLOYMENT,
    }
    return [
        change(1, "7"),
        message("command", 1, command, seconds=1),
        message("outcome", 1, outcome, seconds=2, headers={"ce-id": "out1"}),
        change(2, "9", seconds=2),
    ]


def test_a_change_is_read_from_subject_and_headers():
    entry = change(1, "7")
    assert (entry.topic, entry.cluster, entry.verb, entry.target) == (
        "change",
        "prod-eu",
        "modified",
        "shop/deployments.apps/payments",
    )
    assert (entry.uid, entry.resource_version, entry.trace) == (UID, "7", TRACE)


def test_a_command_says_what_is_asked():
    entry = story()[1]
    assert entry.summary == "patch /spec/replicas → 50: cap 50"
    assert entry.target == "shop/deployments.apps/payments"


def test_an_outcome_names_the_guardrail_and_joins_its_command():
    entry = message("outcome", 3, {"command": "x", "status": "refused", "guardrail": "mode", "message": "this cluster observes"})
    assert (entry.summary, entry.cause) == ("refused by mode: this cluster observes", "x")


@pytest.mark.parametrize(
    ("subject", "headers", "body", "said"),
    [
        ("ipe.k8s.too.short", {}, b"", "no topic has the shape"),
        ("ipe.cmd.a=zz.h.patch", {}, b"{}", "token"),
        (SUBJECTS["command"], {}, b"\xff\xfe", "not a JSON object"),
        (SUBJECTS["command"], {}, b"[1]", "not a JSON object"),
        (SUBJECTS["command"], {}, b'{"action": 5, "reason": ["x"], "target": "y"}', "unreadable action"),
        (SUBJECTS["change"], {"ce-id": "no/change"}, b"", "modified"),
        (SUBJECTS["finding"], {"traceparent": "junk"}, b'{"subject": {"name": 5}}', "subject="),
        (DLQ.format(handler="h"), {}, b"\x00", "no reason header"),
    ],
)
def test_a_hostile_message_is_described_not_raised(subject, headers, body, said):
    assert said in entry_of("S:1", subject, NOW, headers, body).summary


def test_filters_become_subjects_where_the_server_can_filter():
    streams = Query(cluster="prod-eu", namespace="shop", resource="deployments.apps", verb="modified").streams()
    assert streams["IPE_K8S"] == ["ipe.k8s.prod-eu.apps.deployments.shop.modified.*"]
    assert "IPE_DLQ" not in streams  # dead letters belong to no cluster
    assert Query(resource="pods").streams()["IPE_K8S"] == ["ipe.k8s.*.core.pods.*.*.*"]
    assert Query(cluster="prod-*").streams()["IPE_K8S"] == ["ipe.k8s.*.*.*.*.*.*"]
    assert "IPE_K8S" not in Query(handler="scale-guard").streams()
    assert list(Query(topics=("command",)).streams()) == ["IPE_CMD"]


def test_filters_that_the_server_cannot_apply_are_applied_here():
    entries = story()
    assert [entry.topic for entry in entries if Query(namespace="shop").matches(entry)] == [
        "change",
        "command",
        "outcome",
        "change",
    ]
    assert not any(Query(namespace="other").matches(entry) for entry in entries)
    assert not any(Query(cluster="stage-*").matches(entry) for entry in entries)
    assert [entry.topic for entry in entries if Query(handler="scale-guard").matches(entry)] == ["command", "outcome"]


def test_heartbeats_are_shown_only_when_asked_for():
    beat = entry_of("IPE_GOV:1", CLUSTER.format(cluster="prod-eu", state="heartbeat"), NOW, {}, b"{}")
    assert not Query().matches(beat)
    assert Query(topics=("cluster",)).matches(beat)
    assert Query(verb="heartbeat").matches(beat)


def test_a_trail_walks_change_command_outcome_change_from_any_of_them():
    trail = Trail()
    for entry in story():
        trail.add(entry)
    for entry in story():
        root = trail.root_of(entry)
        assert root.ref == "IPE_K8S:1"
        assert [(step.entry.ref, step.depth) for step in trail.tree(root)] == [
            ("IPE_K8S:1", 0), ("IPE_CMD:1", 1), ("IPE_GOV:1", 2), ("IPE_K8S:2", 3),
        ]  # fmt: skip
    lines = draw(trail.tree(trail.root_of(story()[0])), marked="cmd1234567")
    assert [line.endswith(" *") for line in lines] == [False, True, False, False]
    assert "      └─ change  prod-eu shop/deployments.apps/payments" in lines[3]


def test_a_trail_says_which_changes_it_still_needs():
    trail = Trail()
    first, command, outcome, second = story()
    trail.add(command)
    trail.add(outcome)
    ids, writes = trail.wanted([command, outcome])
    assert [str(one) for one in ids] == [first.id]
    assert writes == [outcome]
    trail.add(first)
    trail.add(second)
    assert trail.wanted([first, command, outcome, second]) == ([], [])


def test_a_loop_of_causes_ends():
    trail = Trail()
    for one, other in (("a", "b"), ("b", "a")):
        trail.add(message("finding", ord(one), {"cause": other}, headers={"ce-id": one}))
    assert len(trail.tree(trail.root_of(trail.by_id["a"]))) == 2


def test_an_id_is_found_by_a_unique_beginning_or_its_ref():
    trail = Trail()
    for entry in story():
        trail.add(entry)
    assert trail.find("cmd123") is trail.by_id["cmd1234567"]
    assert trail.find("IPE_GOV:1") is trail.by_id["out1"]
    assert trail.find("c-uid/1/apps") is None  # two changes begin so
    assert trail.find("cm") is None


@pytest.mark.parametrize(("text", "found"), [("IPE_K8S:12", ("IPE_K8S", 12)), ("a/b:c", None), ("IPE_K8S:", None), (":5", None)])
def test_a_ref_is_a_stream_and_a_sequence(text, found):
    assert parse_ref(text) == found


@pytest.mark.parametrize(
    ("expires", "status"),
    [("2026-11-22T12:05:00Z", "pending"), ("2026-11-22T11:00:00+00:00", "unanswered"), (5, "pending"), (None, "pending")],
)
def test_a_command_without_outcome_is_pending_until_it_expires(expires, status):
    assert Asked(message("command", 1, {"id": "x", "expires": expires}), None, NOW).status == status


def test_every_status_of_an_outcome_can_be_asked_for():
    assert (*Status, "pending", "unanswered") == STATUSES
