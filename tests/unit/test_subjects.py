"""Topics as data."""

import pytest

from ipe_events import subjects
from ipe_events.errors import SubjectError
from ipe_events.subjects import CHANGE, CLUSTER, COMMAND, TOPICS, escape, partition, topic_of, unescape


@pytest.mark.parametrize(
    ("value", "token"),
    [("prod-eu_1", "prod-eu_1"), ("cert-manager.io", "cert-manager=2Eio"), ("", "_"), ("_", "=5F"), ("a=b", "a=3Db"),
     ("é", "=C3=A9"), ("*", "=2A"), (">", "=3E"), ("a b\n", "a=20b=0A")],
)  # fmt: skip
def test_any_text_becomes_one_token_and_comes_back(value: str, token: str):
    assert escape(value) == token
    assert unescape(token) == value


@pytest.mark.parametrize("token", ["", "a.b", "*", ">", "a b", "=", "=4", "=zz", "=41", "a=2e", "=C3", "=FF", "=C3a=A9", "é"])
def test_a_token_that_escape_would_not_write_is_refused(token: str):
    with pytest.raises(SubjectError):
        unescape(token)


def test_a_change_has_its_place():
    subject = CHANGE.format(
        cluster="prod.eu", group="", resource="pods", namespace="", verb="added", partition=partition("prod.eu", "", "pods")
    )
    assert subject == "ipe.k8s.prod=2Eeu.core.pods._.added.25"
    assert CHANGE.parse(subject) == {
        "cluster": "prod.eu", "group": "", "resource": "pods", "namespace": "", "verb": "added", "partition": "25",
    }  # fmt: skip


def test_a_filter_leaves_open_what_is_not_given():
    assert CHANGE.filter(group="apps", resource="deployments", cluster=None) == "ipe.k8s.*.apps.deployments.*.*.*"
    assert CHANGE.wildcard == "ipe.k8s.*.*.*.*.*.*"
    assert CLUSTER.filter() == CLUSTER.wildcard == "ipe.cluster.*.*"


def test_fields_that_do_not_exist_or_are_missing_are_named():
    with pytest.raises(SubjectError, match="unknown 'clutser', missing 'cluster'"):
        CLUSTER.format(clutser="a", state="gap")
    with pytest.raises(SubjectError, match="unknown 'handler'"):
        CLUSTER.filter(handler="x")


@pytest.mark.parametrize(
    "subject", ["", "ipe", "ipe.cluster.a", "ipe.cluster.a.b.c", "ipe.klaster.a.b", "ipe.cluster..gap", "ipe.cluster.*.gap"]
)
def test_a_subject_of_another_shape_is_refused(subject: str):
    with pytest.raises(SubjectError):
        CLUSTER.parse(subject)


@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic.name)
def test_every_topic_is_told_from_every_other(topic: subjects.Topic):
    subject = topic.format(**dict.fromkeys(topic.fields, "x"))
    assert topic_of(subject) is topic
    assert topic.doc.endswith((".", "…"))
    assert getattr(subjects, topic.name.upper().replace("-", "_")) is topic


def test_a_subject_that_no_topic_has_is_an_error_with_a_fix():
    with pytest.raises(SubjectError, match=r"no topic has the shape of 'ipe.x' .*ipe topics list"):
        topic_of("ipe.x")


def test_partitions_are_stable_for_ever():
    # pinned: replicas share the work by these numbers, and an object must not change its partition with a release
    assert [partition("prod", "shop", "pods"), partition("prod", "", "nodes"), partition("é", "a", "b")] == [29, 30, 24]
    assert partition("prod", "shop", "pods") == partition("prod", "shop", "services")


def test_a_commands_subject_names_author_and_verb():
    assert COMMAND.format(cluster="c", handler="ipe-drift", verb="patch") == "ipe.cmd.c.ipe-drift.patch"
