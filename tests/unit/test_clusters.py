"""Clusters found in kubeconfigs: globs, several files, the current context, and what is refused."""

import pytest
import yaml

from ipe_events.agent.app import collect_settings, sources_of
from ipe_events.agent.config import parse_config
from ipe_events.clusters.incluster import in_cluster_source, runs_in_cluster
from ipe_events.clusters.kubeconfig import kubeconfig_sources
from ipe_events.errors import ConfigError

HEAD = "apiVersion: ipe.dev/v1alpha1\nkind: AgentConfig\n"


@pytest.fixture
def kubeconfig(tmp_path):
    def write(*names: str, current: str = "", file: str = "config") -> str:
        contexts = [{"name": name, "context": {"cluster": name}} for name in names]
        clusters = [{"name": name, "cluster": {"server": "https://x"}} for name in names]
        document = {"apiVersion": "v1", "kind": "Config", "contexts": contexts, "clusters": clusters, "current-context": current}
        (tmp_path / file).write_text(yaml.safe_dump(document))
        return str(tmp_path / file)

    return write


def names(**arguments) -> list[str]:
    return [source.name for source in kubeconfig_sources(**arguments)]


def test_globs_choose_contexts_in_their_order_and_once(kubeconfig):
    file = kubeconfig("prod-eu", "dev", "prod-us")
    assert names(kubeconfig=file, contexts=["prod-*", "*"]) == ["prod-eu", "prod-us", "dev"]
    (source,) = kubeconfig_sources(kubeconfig=file, contexts=["dev"], allow_exec=["aws"])
    assert (source.context, source.kubeconfig, source.allow_exec) == ("dev", file, ("aws",))


def test_without_globs_the_current_context_is_served(kubeconfig):
    assert names(kubeconfig=kubeconfig("a", "b", current="b")) == ["b"]
    with pytest.raises(ConfigError, match="has no current context"):
        kubeconfig_sources(kubeconfig=kubeconfig("a", file="other"))


def test_a_glob_that_matches_nothing_names_what_there_is(kubeconfig):
    with pytest.raises(ConfigError, match=r"no context matches 'x-\*' \(fix: it has: a, b\)"):
        kubeconfig_sources(kubeconfig=kubeconfig("b", "a"), contexts=["a", "x-*"])


def test_several_files_are_joined(kubeconfig):
    both = f"{kubeconfig('a')}:{kubeconfig('b', 'a', file='second')}"
    assert names(kubeconfig=both, contexts=["*"]) == ["a", "b"]


def test_a_name_is_for_one_cluster(kubeconfig):
    file = kubeconfig("a", "b", current="a")
    config = parse_config(HEAD + f"clusters: {{name: prod, kubeconfig: {file}}}\n")
    assert [(source.name, source.context) for source in sources_of(config)] == [("prod", "a")]
    config = parse_config(HEAD + f"clusters: {{name: prod, kubeconfig: {file}, contexts: ['*']}}\n")
    with pytest.raises(ConfigError, match="the name 'prod' is for one cluster, 2 are served"):
        sources_of(config)


def test_in_a_pod_its_own_cluster_is_served():
    assert sources_of(parse_config(HEAD + "clusters: {inCluster: true, name: home}\n"))[0] == in_cluster_source("home")
    assert runs_in_cluster({"KUBERNETES_SERVICE_HOST": "10.0.0.1"})
    assert not runs_in_cluster({})


def test_each_cluster_has_a_mask_key_of_its_own(tmp_path):
    (tmp_path / "key").write_text("k" * 64)
    config = parse_config(HEAD + f"redaction: {{keyFile: {tmp_path / 'key'}}}\n")
    keys = [collect_settings(config, cluster).redaction_key for cluster in ("a", "a", "b")]
    assert keys[0] == keys[1] != keys[2]
    (tmp_path / "key").write_text("short")
    with pytest.raises(ConfigError, match="the key has 5 bytes"):
        collect_settings(config, "a")
