"""Contexts and their order of precedence."""

import json
import stat
from pathlib import Path

import pytest

from ipe_events.bus.contexts import Contexts, build, resolve
from ipe_events.bus.settings import DEFAULT_SERVER, BusSettings
from ipe_events.errors import ConfigError, UsageError


@pytest.fixture
def contexts(tmp_path: Path) -> Contexts:
    return Contexts(tmp_path / "ipe", tmp_path / "nats")


def nats_context(contexts: Contexts, name: str, values: dict[str, object], *, select: bool = False) -> None:
    folder = contexts.nats_folder / "context"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(values))
    if select:
        (contexts.nats_folder / "context.txt").write_text(name + "\n")


def test_add_use_list_remove(contexts: Contexts):
    contexts.add("prod", BusSettings(("tls://a:4222", "tls://b:4222"), creds_file="/run/creds", tls_first=True))
    contexts.add("dev", BusSettings(("nats://c:4222",), user="ada", password_file="/run/password"))
    assert [(context.name, context.current) for context in contexts.list()] == [("dev", False), ("prod", True)]
    assert contexts.get("prod").servers == ("tls://a:4222", "tls://b:4222")
    assert contexts.get("prod").tls_first
    contexts.use("dev")
    assert contexts.current() == "dev"
    assert stat.S_IMODE(contexts.file.stat().st_mode) == 0o600
    contexts.remove("dev")
    assert contexts.current() == ""
    assert [context.name for context in contexts.list()] == ["prod"]


def test_errors_name_the_place(contexts: Contexts):
    with pytest.raises(ConfigError, match=r"context 'x' does not exist \(known: none\)"):
        contexts.use("x")
    with pytest.raises(ConfigError, match=r"contexts\.yaml: context 'x' is not in this file"):
        contexts.remove("x")
    with pytest.raises(UsageError, match="holds no password or token"):
        contexts.add("x", BusSettings(token="t"))
    contexts.file.parent.mkdir()
    for text, wrong in (
        ("contexts: [1]", "is not `contexts"),
        ("a: [", "cannot be read"),
        ("version: 2\ncontexts: {}", "version 2"),
        ("- a", "is not `contexts"),
    ):
        contexts.file.write_text(text)
        with pytest.raises(ConfigError, match=wrong):
            contexts.list()
    contexts.file.write_text("contexts: {x: {srevers: [a]}}")
    with pytest.raises(ConfigError, match=r"\(context x\): unknown key 'srevers'"):
        contexts.get("x")


def test_contexts_of_the_nats_command_line(contexts: Contexts):
    nats_context(
        contexts,
        "ngs",
        {"url": "tls://a,tls://b", "creds": "/c", "user": "", "tls_first": True, "color_scheme": "x"},
        select=True,
    )
    nats_context(contexts, "inline", {"url": "nats://x", "user": "ada", "password": "p"})
    nats_context(contexts, "proxied", {"url": "nats://x", "socks_proxy": "socks5://y"})
    ngs = contexts.get("ngs")
    assert (ngs.servers, ngs.creds_file, ngs.tls_first) == (("tls://a", "tls://b"), "/c", True)
    assert (contexts.get("inline").user, contexts.get("inline").password) == ("ada", "p")
    assert contexts.current() == "ngs"
    with pytest.raises(ConfigError, match=r"proxied\.json: uses 'socks_proxy'"):
        contexts.get("proxied")
    contexts.add("ngs", BusSettings(("nats://ours",)), use=True)
    assert contexts.get("ngs").servers == ("nats://ours",)


def test_precedence(contexts: Contexts):
    assert resolve(env={}, contexts=contexts).servers == (DEFAULT_SERVER,)
    nats_context(contexts, "theirs", {"url": "nats://theirs"}, select=True)
    assert resolve(env={}, contexts=contexts).servers == ("nats://theirs",)
    contexts.add("ours", BusSettings(("nats://ours",)), use=True)
    assert resolve(env={}, contexts=contexts).servers == ("nats://ours",)
    env = {"IPE_NATS_URL": "nats://env, nats://env2", "IPE_NATS_CREDS": "/c", "IPE_NATS_TLS_FIRST": "true"}
    settings = resolve(env=env, contexts=contexts)
    assert (settings.servers, settings.creds_file, settings.tls_first) == (("nats://env", "nats://env2"), "/c", True)
    assert resolve(env={**env, "IPE_CONTEXT": "theirs"}, contexts=contexts).servers == ("nats://theirs",)
    assert resolve("ours", {**env, "IPE_CONTEXT": "theirs"}, contexts).servers == ("nats://ours",)


def test_half_an_environment_is_an_error(contexts: Contexts):
    with pytest.raises(ConfigError, match="IPE_NATS_CREDS without IPE_NATS_URL"):
        resolve(env={"IPE_NATS_CREDS": "/c"}, contexts=contexts)
    with pytest.raises(ConfigError, match="tls_first is 'perhaps'"):
        resolve(env={"IPE_NATS_URL": "x", "IPE_NATS_TLS_FIRST": "perhaps"}, contexts=contexts)


@pytest.mark.parametrize(
    "values", [{"servers": []}, {"servers": [1]}, {"user": 1}, {"connect_timeout": 0}, {"connect_timeout": True}]
)
def test_values_of_the_wrong_type(values: dict[str, object]):
    with pytest.raises(ConfigError, match=r"^here: "):
        build(values, "here")
