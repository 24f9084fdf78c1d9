"""``ipe agent run``: a mistake is one line on standard error with its place and the fix, and never a traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

IPE = str(Path(sys.executable).with_name("ipe"))
KUBECONFIG = """\
apiVersion: v1
kind: Config
contexts: [{name: a, context: {cluster: a}}]
clusters: [{name: a, cluster: {server: "http://127.0.0.1:9"}}]
"""


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--kubeconfig", "nowhere"], 3, "cluster kubeconfig: no kubeconfig at nowhere (fix: name one with --kubeconfig"),
        (["--config", "nowhere.yaml"], 3, "nowhere.yaml: cannot read the file: No such file or directory"),
        (["--kubeconfig", "k.yaml", "--kube-context", "b*"], 3, "k.yaml: no context matches 'b*' (fix: it has: a)"),
        (["--kubeconfig", "k.yaml", "--kube-context", "a"], 3, "nats://127.0.0.1:1: NATS cannot be reached"),
        (["--kubeconfig", "k.yaml", "--grant", "x=y"], 2, "(fix: write it as --grant HANDLER=enforce)"),
        (["--kubeconfig", "k.yaml", "--collect", "Pods x"], 2, "'Pods x' does not name a resource (fix: write it as"),
        (["--kubeconfig", "k.yaml", "--helth-port", "1"], 2, "--health-port"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, arguments, code, message):
    (tmp_path / "k.yaml").write_text(KUBECONFIG)
    environment = {**os.environ, "IPE_NATS_URL": "nats://127.0.0.1:1"}
    command = [IPE, "agent", "run", *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
