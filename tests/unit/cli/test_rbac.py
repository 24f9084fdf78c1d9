"""``ipe rbac agent`` prints manifests that can be applied as they are."""

from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from ipe_events.cli import main


def invoke(*arguments: str):
    return CliRunner().invoke(main.cli, ["rbac", "agent", *arguments])


def test_options_say_what_is_needed():
    found = invoke("--collect", "pods", "--write", "deployments.apps=scale", "-n", "gov", "--service-account", "me")
    assert found.exit_code == 0, found.stderr
    documents = {each["metadata"]["name"] + each["kind"]: each for each in yaml.safe_load_all(found.stdout)}
    assert documents["ipe-agent-writeClusterRole"]["rules"][1] == {
        "apiGroups": ["apps"],
        "resources": ["deployments/scale"],
        "verbs": ["patch"],
    }
    assert documents["ipe-agent-ownRole"]["metadata"]["namespace"] == "gov"
    assert documents["ipe-agent-readClusterRoleBinding"]["subjects"][0]["name"] == "me"


def test_the_configuration_and_the_options_add_up(tmp_path: Path):
    config = tmp_path / "agent.yaml"
    config.write_text("apiVersion: ipe.dev/v1alpha1\nkind: AgentConfig\ncollect: {resources: [pods]}\nlease: {namespace: gov}\n")
    found = invoke("-f", str(config), "--collect", "secrets")
    assert found.exit_code == 0, found.stderr
    read, *_, own, _ = yaml.safe_load_all(found.stdout)
    assert read["rules"][0]["resources"] == ["pods", "secrets"]
    assert own["metadata"]["namespace"] == "gov"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "error: ipe rbac agent: nothing says what the agent is to do (fix: give --config FILE, --collect or --write)"),
        (["--collect", "*"], "error: '*' does not name a resource (fix: write it as `deployments.apps` or `pods`)"),
        (["--write", "pods=exec"], "error: pods: commands have no verb 'exec' (fix: choose among patch, scale, suspend"),
        (["--write", "pods"], "error: pods: commands have no verb ''"),
    ],
)
def test_a_mistake_is_one_line_with_the_fix(arguments: list[str], line: str):
    found = invoke(*arguments)
    assert found.exit_code == 2
    assert found.stderr.startswith(line)
    assert found.stderr.count("\n") == 1
    assert found.stdout == ""
