"""A kubeconfig is hostile until parsed: every mistake is one line that names the file, and no program runs unasked."""

import json
from pathlib import Path
from typing import Any

import pytest

from ipe_events.errors import ConfigError
from ipe_events.kube.config import ClusterSource, load_credentials

GOOD: dict[str, Any] = {
    "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
    "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
    "users": [{"name": "u", "user": {"token": "secret-token"}}],
    "current-context": "x",
}


def source(folder: Path, text: str, **more: Any) -> ClusterSource:
    file = folder / "kubeconfig"
    file.write_text(text)
    return ClusterSource("prod", str(file), **more)


async def test_a_good_file_is_read(tmp_path: Path) -> None:
    credentials = await load_credentials(source(tmp_path, json.dumps(GOOD)))
    assert (credentials.server, credentials.authorization) == ("http://127.0.0.1:1", "Bearer secret-token")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: [", "YAML"),
        ("- 1", "list"),
        ("", "NoneType"),
        (json.dumps(GOOD | {"clusters": {}}), "clusters"),
        (json.dumps(GOOD | {"contexts": [{"name": "x"}]}), "cluster None"),
        (json.dumps(GOOD | {"contexts": [1]}), r"contexts\[0\]"),
        (json.dumps(GOOD | {"current-context": "y"}), "no context 'y'"),
        (json.dumps(GOOD | {"current-context": ""}), "no current context"),
        (json.dumps(GOOD | {"clusters": []}), "missing"),
        (json.dumps(GOOD | {"users": []}), "missing"),
        (json.dumps(GOOD | {"clusters": [{"name": "c", "cluster": {"server": 7}}]}), "server"),
        (json.dumps(GOOD | {"clusters": [{"name": "c", "cluster": {"server": "ftp://x"}}]}), "ftp"),
        (json.dumps(GOOD | {"users": [{"name": "u", "user": {"token": "a\nb"}}]}), "line break"),
        (
            json.dumps(
                GOOD | {"clusters": [{"name": "c", "cluster": {"server": "https://x", "certificate-authority": "/none"}}]}
            ),
            "none",
        ),
    ],
)
async def test_a_mistake_names_file_and_problem(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        await load_credentials(source(tmp_path, text))
    assert str(tmp_path / "kubeconfig") in str(caught.value)
    assert "secret-token" not in str(caught.value)


async def test_a_missing_file_says_how_to_name_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--kubeconfig"):
        await load_credentials(ClusterSource("prod", str(tmp_path / "none")))


@pytest.mark.parametrize(
    "user",
    [
        {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "TOUCH", "args": ["MARK"]}},
        {"auth-provider": {"name": "gcp", "config": {"cmd-path": "TOUCH", "cmd-args": "MARK"}}},
    ],
    ids=["exec", "gcp"],
)
async def test_a_program_runs_only_when_exactly_it_is_allowed(tmp_path: Path, user: dict[str, Any]) -> None:
    mark = tmp_path / "mark"
    text = json.dumps(GOOD | {"users": [{"name": "u", "user": user}]}).replace("TOUCH", "/bin/touch").replace("MARK", str(mark))
    with pytest.raises(ConfigError, match="allowExec"):
        await load_credentials(source(tmp_path, text, allow_exec=("touch",)))
    assert not mark.exists()


async def test_an_allowed_plugin_gives_the_token(tmp_path: Path) -> None:
    plugin = tmp_path / "plugin"
    answer = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": {"token": "fresh"}}
    plugin.write_text(f"#!/bin/sh\necho '{json.dumps(answer)}'\n")
    plugin.chmod(0o700)
    user = {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(plugin)}}
    text = json.dumps(GOOD | {"users": [{"name": "u", "user": user}]})
    credentials = await load_credentials(source(tmp_path, text, allow_exec=(str(plugin),)))
    assert credentials.authorization == "Bearer fresh"
