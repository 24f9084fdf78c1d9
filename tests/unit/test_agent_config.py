"""The agent's YAML: what is read, and the one line that answers each mistake."""

import pytest

from ipe_events.agent.config import AgentConfig, load_config, parse_config, quick_grant
from ipe_events.agent.grants import Mode
from ipe_events.errors import ConfigError, UsageError

HEAD = "apiVersion: ipe.dev/v1alpha1\nkind: AgentConfig\n"


def test_everything_has_a_careful_default():
    config = parse_config(HEAD)
    assert config == AgentConfig()
    assert config.act.max_hops == 8
    assert config.act.writes is None
    assert not config.collect.secrets
    assert parse_config(HEAD + "grants: [{handler: h}]\n").grants[0].mode is Mode.OBSERVE


def test_grants_of_further_documents_join_and_know_their_lines(tmp_path):
    file = tmp_path / "agent.yaml"
    file.write_text(
        HEAD
        + "clusters: {contexts: ['prod-*']}\nlease: {duration: 1m30s}\n"
        + "grants:\n  - handler: sleep\n    mode: enforce\n    verbs: [scale]\n"
        + "    resources: [deployments.apps]\n    limits: {perMinute: 5, namespaceShare: 0.2}\n"
        + "---\n---\napiVersion: ipe.dev/v1alpha1\nkind: HandlerGrant\n"
        + "metadata: {name: drift}\nspec: {handler: drift, mode: propose}\n"
    )
    config = load_config(file)
    assert config.lease.duration == 90
    assert config.grants[0].limits.namespace_share == 0.2
    assert [grant.source for grant in config.grants] == [f"{file}:6: grants[0]", f"{file}:13: HandlerGrant drift"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grants:\n- handler: x\n  mdoe: enforce\n", r"f:5: grants\[0\]\.mdoe: value .*: unknown field.*did you mean 'mode'\?"),
        ("grants:\n- handler: x\n  source: elsewhere\n", r"f:5: grants\[0\]\.source: value \"elsewhere\": unknown field"),
        ("hearbeat: 5s\n", r"f:3: hearbeat: value \"5s\": unknown field.*did you mean 'heartbeat'"),
        ("grants:\n- {mode: enforce}\n", r"f:4: grants\[0\]\.handler: required, but missing"),
        ("act:\n  timeout: 10x\n", r"f:4: act\.timeout: value \"10x\": '10x' is not a duration \(fix: write it as 30s"),
        (
            "grants:\n- handler: x\n  mode: enforced\n",
            r"f:5: grants\[0\]\.mode: value \"enforced\": Input should be 'observe', 'propose' or 'enforce'",
        ),
        ("collect:\n  resources: ['a b']\n", r"f:4: collect\.resources\[0\]: value \"a b\": 'a b' does not name a resource"),
        ("act: {maxHops: 0}\n", r"f:3: act\.maxHops: value 0: Input should be greater than or equal to 1"),
        ("clusters: {inCluster: true, contexts: [a]}\n", r"f:3: clusters: value .*: inCluster excludes"),
        ("kind: AgentConfig\n", r"f:3: kind: the key occurs twice"),
        ("---\napiVersion: ipe.dev/v1alpha1\nkind: AgentConfig\n", r"f:5: a second AgentConfig"),
        ("---\napiVersion: ipe.dev/v1alpha1\nkind: Grant\n", r"f:5: kind is 'Grant'"),
        ("---\napiVersion: v1\nkind: HandlerGrant\n", r"f:4: apiVersion is 'v1'"),
        ("---\n- 1\n", r"f:4: the document is not a mapping"),
        ("grants: [\n", r"f:4: not YAML"),
        ("? [a]\n: b\n", r"f:3: \(root\): a key is not plain text"),
        ("grants: &a [*a]\n", r"f:3: "),
    ],
)
def test_a_mistake_is_answered_with_its_place(text, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        parse_config(HEAD + text, "f")


def test_aliases_cannot_expand_without_end():
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)
    )
    with pytest.raises(ConfigError, match="more than 100,000 values"):
        parse_config(HEAD + bomb, "f")


def test_a_file_that_is_not_there_or_holds_no_configuration(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot read the file: No such file"):
        load_config(tmp_path / "nowhere.yaml")
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    with pytest.raises(ConfigError, match=r"empty\.yaml: no AgentConfig in the file"):
        load_config(tmp_path / "empty.yaml")


def test_a_grant_from_the_command_line():
    grant = quick_grant("guard=enforce")
    assert (grant.handler, grant.mode, grant.source) == ("guard", Mode.ENFORCE, "--grant guard=enforce")
    assert quick_grant("guard").mode is Mode.OBSERVE
    with pytest.raises(UsageError, match="--grant HANDLER=enforce"):
        quick_grant("guard=force")
