"""A configuration's rights: every grant that can write gets its verbs, nothing else does."""

import pytest

from ipe_events.agent.config import AgentConfig, parse_config
from ipe_events.agent.rights import rights_of
from ipe_events.errors import UsageError
from ipe_events.events.refs import ResourceRef
from ipe_events.kube.rbac import Write, manifests

DEPLOYMENTS = ResourceRef.parse("deployments.apps")
PODS = ResourceRef.parse("pods")
HEAD = "apiVersion: ipe.dev/v1alpha1\nkind: AgentConfig\n"
COLLECT = "collect: {resources: [pods], always: [deployments.apps]}\n"


def config(text: str) -> AgentConfig:
    return parse_config(HEAD + text)


def grant(mode: str = "enforce", namespaces: str = "['*']", resources: str = "[deployments.apps]", extra: str = "") -> str:
    fields = f"handler: h, mode: {mode}, verbs: [patch], resources: {resources}, namespaces: {namespaces}{extra}"
    return f"{COLLECT}grants: [{{{fields}}}]\n"


def test_what_is_collected_is_read() -> None:
    rights = rights_of(config(COLLECT))
    assert (rights.collect, rights.writes, rights.secrets) == ((PODS, DEPLOYMENTS), (), False)


def test_what_is_denied_is_not_collected() -> None:
    rights = rights_of(config("collect: {resources: [pods, deployments.apps], deny: ['*.apps']}\n"))
    assert rights.collect == (PODS,)


@pytest.mark.parametrize("pattern", ["'*'", "'*.apps'"])
def test_a_wildcard_is_no_right(pattern: str) -> None:
    with pytest.raises(UsageError, match=r"collect.resources: .* names no single resource") as error:
        rights_of(config(f"collect: {{resources: [{pattern}]}}\n"))
    assert "deployments.apps" in error.value.fix
    with pytest.raises(UsageError, match=r"grants\[0\]: resources: .* names no single resource"):
        rights_of(config(grant(resources=f"[{pattern}]")))


def test_observing_needs_no_right_to_write() -> None:
    assert rights_of(config(grant(mode="observe", resources="['*']"))).writes == ()


@pytest.mark.parametrize("mode", ["propose", "enforce"])
def test_what_may_be_carried_out_does(mode: str) -> None:
    assert rights_of(config(grant(mode=mode))).writes == (Write(DEPLOYMENTS, ("patch",)),)


def test_an_agent_that_never_writes_gets_no_such_right() -> None:
    assert rights_of(config(grant() + "act: {writes: false}\n")).writes == ()


@pytest.mark.parametrize(
    ("namespaces", "expected"),
    [("[a, b]", ("a", "b")), ("[a, 'team-*']", ()), ("['']", ()), ("['team-?']", ()), ("['team-[ab]']", ())],
)
def test_only_literal_namespaces_narrow_a_role(namespaces: str, expected: tuple[str, ...]) -> None:
    assert rights_of(config(grant(namespaces=namespaces))).writes == (Write(DEPLOYMENTS, ("patch",), expected),)


def test_secrets_are_read_only_when_switched_on() -> None:
    assert rights_of(config("collect: {resources: [secrets, pods]}\n")).collect == (PODS,)
    rights = rights_of(config("collect: {resources: [secrets, pods], secrets: true}\n"))
    assert ResourceRef.parse("secrets") in rights.collect
    assert manifests(rights)


def test_what_a_handler_may_ask_for_is_readable() -> None:
    rights = rights_of(config(grant(mode="observe", extra=", read: [jobs.batch, secrets]")))
    assert rights.read == (ResourceRef.parse("jobs.batch"), ResourceRef.parse("secrets"))
    assert rights.secrets


def test_the_lease_is_where_the_agent_keeps_it() -> None:
    rights = rights_of(config(COLLECT + "lease: {namespace: governance, name: writer}\n"))
    assert (rights.namespace, rights.lease) == ("governance", "writer")
