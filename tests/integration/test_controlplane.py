"""The harness itself: what the fixtures promise is what a real Kubernetes does."""

import json
import os
import subprocess
import sys
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from tests.controlplane import keeper
from tests.controlplane.api import APPLY, JSON_PATCH, Refused
from tests.controlplane.build import Binaries, Unavailable, find_or_build, kubernetes_version
from tests.controlplane.cluster import APPS, CORE, RealCluster, write_kubeconfig
from tests.controlplane.fixtures import ClusterFactory
from tests.controlplane.metrics import BASE as METRICS
from tests.controlplane.plane import ControlPlane
from tests.controlplane.process import ProcessFailed

BATCH = "/apis/batch/v1"
CONTAINER = {"name": "main", "image": "registry.example/app:1", "resources": {"requests": {"cpu": "100m"}}}


def configmap(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def deployment(name: str, replicas: int) -> dict[str, Any]:
    labels = {"app": name}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [CONTAINER]}}
    return {
        "metadata": {"name": name},
        "spec": {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template},
    }


@pytest.mark.skipif("KUBEBUILDER_ASSETS" in os.environ, reason="the binaries are not built from go.mod")
def test_the_server_is_the_kubernetes_of_go_mod(real_cluster: RealCluster) -> None:
    assert real_cluster.api.get("/version")["gitVersion"] == kubernetes_version()


def test_namespaces_are_apart(real_cluster: RealCluster, real_namespace: str) -> None:
    other = f"{real_namespace}-b"
    real_cluster.create_namespace(other, {"purpose": "test"})
    real_cluster.api.create(f"{CORE}/namespaces/{real_namespace}/configmaps", configmap("one"))

    assert real_cluster.api.exists(f"{CORE}/namespaces/{real_namespace}/configmaps/one")
    assert not real_cluster.api.exists(f"{CORE}/namespaces/{other}/configmaps/one")
    assert real_cluster.api.delete(f"{CORE}/namespaces/{other}")["status"]["phase"] == "Terminating"


def test_a_pod_is_admitted_without_controllers(real_cluster: RealCluster, real_namespace: str) -> None:
    pods = f"{CORE}/namespaces/{real_namespace}/pods"
    pod = real_cluster.api.create(pods, {"metadata": {"name": "one"}, "spec": {"containers": [CONTAINER]}})
    assert pod["spec"]["serviceAccountName"] == "default"


def test_kubectl_works_with_the_kubeconfig(real_cluster: RealCluster, real_namespace: str) -> None:
    real_cluster.run_kubectl("-n", real_namespace, "create", "configmap", "one", "--from-literal=a=b")
    assert real_cluster.api.get(f"{CORE}/namespaces/{real_namespace}/configmaps/one")["data"] == {"a": "b"}


def test_a_service_account_may_do_what_it_was_given_and_no_more(real_cluster: RealCluster, real_namespace: str) -> None:
    configmaps = f"{CORE}/namespaces/{real_namespace}/configmaps"
    rules = [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list"]}]
    reader = real_cluster.api.as_token(real_cluster.service_account(real_namespace, "reader", rules))

    assert reader.get(configmaps)["kind"] == "ConfigMapList"
    with pytest.raises(Refused, match=r"cannot create resource \"configmaps\"") as refused:
        reader.create(configmaps, configmap("one"))
    assert (refused.value.status, refused.value.reason) == (403, "Forbidden")
    with pytest.raises(Refused, match="cannot list resource"):
        reader.get(f"{CORE}/configmaps")


def test_a_cluster_wide_service_account_reads_everywhere(real_cluster: RealCluster, real_namespace: str) -> None:
    token = real_cluster.service_account(real_namespace, "everywhere", everywhere=True)
    assert real_cluster.api.as_token(token).get(f"{CORE}/pods")["kind"] == "PodList"


@pytest.mark.parametrize(("token", "status"), [(None, 403), ("made-up", 401)])
def test_strangers_are_refused(real_cluster: RealCluster, token: str | None, status: int) -> None:
    with pytest.raises(Refused) as refused:
        real_cluster.api.as_token(token).get(f"{CORE}/pods")
    assert refused.value.status == status


def test_a_watch_sees_what_happens_after_its_start(real_cluster: RealCluster, real_namespace: str) -> None:
    api, path = real_cluster.api, f"{CORE}/namespaces/{real_namespace}/configmaps"
    start = api.get(path)["metadata"]["resourceVersion"]
    api.create(path, configmap("one", a="1"))
    api.patch(f"{path}/one", {"data": {"a": "2"}})
    api.delete(f"{path}/one")

    with closing(api.watch(path, resourceVersion=start)) as watch:
        seen = [(event["type"], event["object"]["data"]["a"]) for event in islice(watch, 3)]
    assert seen == [("ADDED", "1"), ("MODIFIED", "2"), ("DELETED", "2")]


def test_json_patch_tests_and_server_side_apply_are_the_real_thing(real_cluster: RealCluster, real_namespace: str) -> None:
    api, path = real_cluster.api, f"{CORE}/namespaces/{real_namespace}/configmaps"
    applied = api.patch(f"{path}/one", configmap("one", a="1"), APPLY, fieldManager="first")
    assert applied["metadata"]["managedFields"][0]["operation"] == "Apply"

    guarded = [{"op": "test", "path": "/data/a", "value": "9"}, {"op": "replace", "path": "/data/a", "value": "2"}]
    with pytest.raises(Refused) as refused:
        api.patch(f"{path}/one", guarded, JSON_PATCH)
    assert refused.value.status == 422
    with pytest.raises(Refused, match='conflict with "first"'):
        api.patch(f"{path}/one", configmap("one", a="3"), APPLY, fieldManager="second")


def test_a_deployment_runs_on_the_nodes(real_workloads: RealCluster, real_namespace: str) -> None:
    api, scope = real_workloads.api, f"{APPS}/namespaces/{real_namespace}"
    api.create(f"{scope}/deployments", deployment("web", 4))

    status = api.wait(
        lambda: (s := api.get(f"{scope}/deployments/web")["status"]).get("readyReplicas") == 4 and s, "4 ready replicas"
    )
    assert status["availableReplicas"] == 4
    pods = api.get(f"{CORE}/namespaces/{real_namespace}/pods")["items"]
    assert {pod["status"]["phase"] for pod in pods} == {"Running"}
    assert {pod["metadata"]["ownerReferences"][0]["kind"] for pod in pods} == {"ReplicaSet"}
    assert {pod["spec"]["nodeName"] for pod in pods} <= {"kwok-0", "kwok-1"}

    api.delete(f"{scope}/deployments/web", propagationPolicy="Foreground")
    api.wait(lambda: not api.get(f"{CORE}/namespaces/{real_namespace}/pods")["items"], "garbage collected pods")


def test_a_job_completes(real_workloads: RealCluster, real_namespace: str) -> None:
    api, jobs = real_workloads.api, f"{BATCH}/namespaces/{real_namespace}/jobs"
    spec = {"template": {"spec": {"restartPolicy": "Never", "containers": [CONTAINER]}}}
    api.create(jobs, {"metadata": {"name": "once"}, "spec": spec})
    api.wait(lambda: api.get(f"{jobs}/once")["status"].get("succeeded") == 1, "a succeeded Job")


def test_quota_is_counted_and_enforced(real_workloads: RealCluster, real_namespace: str) -> None:
    api, scope = real_workloads.api, f"{CORE}/namespaces/{real_namespace}"
    quota = {"metadata": {"name": "small"}, "spec": {"hard": {"pods": "2", "requests.cpu": "150m"}}}
    api.create(f"{scope}/resourcequotas", quota)
    path = f"{scope}/resourcequotas/small"
    api.wait(lambda: api.get(path)["status"].get("used"), "the quota's first count")

    api.create(f"{scope}/pods", {"metadata": {"name": "one"}, "spec": {"containers": [CONTAINER]}})
    assert api.get(path)["status"]["used"] == {"pods": "1", "requests.cpu": "100m"}
    with pytest.raises(Refused, match=r"exceeded quota: small, requested: requests\.cpu=100m") as refused:
        api.create(f"{scope}/pods", {"metadata": {"name": "two"}, "spec": {"containers": [CONTAINER]}})
    assert refused.value.status == 403

    api.delete(f"{scope}/pods/one", gracePeriodSeconds=0)
    api.wait(lambda: api.get(path)["status"]["used"] == {"pods": "0", "requests.cpu": "0"}, "the pod's share given back")


def test_metrics_are_what_the_pod_says(real_workloads: RealCluster, real_namespace: str) -> None:
    api, path = real_workloads.api, f"{METRICS}/namespaces/{real_namespace}/pods"
    metadata = {"name": "busy", "annotations": {"metrics.test/cpu": "250m", "metrics.test/memory": "64Mi"}}
    api.create(f"{CORE}/namespaces/{real_namespace}/pods", {"metadata": metadata, "spec": {"containers": [CONTAINER]}})

    (found,) = api.wait(lambda: api.get(path)["items"], "metrics of a running pod")
    assert found["containers"] == [{"name": "main", "usage": {"cpu": "250m", "memory": "64Mi"}}]
    with pytest.raises(Refused, match=r'cannot list resource "pods" in API group "metrics\.k8s\.io"'):
        api.as_token(real_workloads.service_account(real_namespace, "nobody", [])).get(path)


def test_the_second_cluster_is_another_one(real_cluster: RealCluster, second_cluster: RealCluster, real_namespace: str) -> None:
    def identity(cluster: RealCluster) -> str:
        uid: str = cluster.api.get(f"{CORE}/namespaces/kube-system")["metadata"]["uid"]
        return uid

    assert identity(real_cluster) != identity(second_cluster)
    assert not second_cluster.api.exists(f"{CORE}/namespaces/{real_namespace}")
    with pytest.raises(Refused) as refused:
        second_cluster.api.as_token(real_cluster.token).get("/version")
    assert refused.value.status == 401


def test_compacted_history_is_gone(second_cluster: RealCluster) -> None:
    api, path = second_cluster.api, f"{CORE}/namespaces/default/configmaps"
    api.create(path, configmap("compacted", a="1"))
    old = api.get(path)["metadata"]["resourceVersion"]
    api.delete(f"{path}/compacted")
    revision = second_cluster.compact()

    assert int(old) < revision
    with closing(api.watch(path, resourceVersion=old)) as watch:
        event = next(watch)
    assert event["type"] == "ERROR"
    assert (event["object"]["code"], event["object"]["reason"]) == (410, "Expired")
    with pytest.raises(Refused) as refused:
        api.get(path, resourceVersion=old, resourceVersionMatch="Exact")
    assert refused.value.status == 410


def test_an_audit_event_joins_the_change_it_caused(second_cluster: RealCluster) -> None:
    api, path = second_cluster.api, f"{CORE}/namespaces/default/configmaps"
    version = api.create(path, configmap("audited"))["metadata"]["resourceVersion"]

    def event() -> dict[str, Any] | None:
        lines = second_cluster.audit_log.read_text().splitlines()
        objects = [json.loads(line) for line in lines if '"audited"' in line]
        return next((o for o in objects if o["responseObject"]["metadata"]["resourceVersion"] == version), None)

    found = api.wait(event, "the audit event of the create")
    assert (found["verb"], found["user"]["username"]) == ("create", "admin")
    api.delete(f"{path}/audited")


def test_a_kubeconfig_can_hold_several_clusters(real_cluster: RealCluster, second_cluster: RealCluster, tmp_path: Path) -> None:
    path = write_kubeconfig(tmp_path / "fleet.yaml", real_cluster, second_cluster)
    assert path.stat().st_mode & 0o077 == 0
    servers = {
        name: real_cluster.run_kubectl(
            "--kubeconfig", str(path), "--context", name, "config", "view", "--minify", "-ojsonpath={..server}"
        )
        for name in ("main", "second")
    }
    assert servers == {"main": real_cluster.server, "second": second_cluster.server}


def test_a_private_cluster_can_crash_and_be_rewound(own_cluster: ClusterFactory) -> None:
    plane = own_cluster()
    api, path = plane.cluster.api, f"{CORE}/namespaces/default/configmaps"
    api.create(path, configmap("kept"))
    plane.save("before")
    api.create(path, configmap("lost"))
    changes = [api.patch(f"{path}/lost", {"data": {"a": str(n)}}) for n in range(60)]  # more than a start of it writes
    written = int(changes[-1]["metadata"]["resourceVersion"])

    plane.stop_apiserver()
    with pytest.raises(OSError, match="refused"):
        api.get("/version")
    plane.rewind("before")

    listed = api.get(path)
    assert [item["metadata"]["name"] for item in listed["items"]] == ["kept"]
    assert int(listed["metadata"]["resourceVersion"]) < written


def test_a_killed_run_leaves_no_cluster_behind(binaries: Binaries, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from tests.controlplane import build, keeper\n"
        "lease = keeper.join(Path(sys.argv[1]), build.Binaries(Path(sys.argv[2])))\n"
        "print(lease.cluster('main').to_json(), flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(tmp_path), str(binaries.folder)]
    with subprocess.Popen(command, cwd=keeper.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as user:
        assert user.stdout is not None
        first = RealCluster.from_json(user.stdout.readline())
        assert first.api.get("/version")["major"] == "1"
        user.kill()

    def refused() -> bool:
        try:
            first.api.get("/version")
        except OSError:
            return True
        return False

    first.api.wait(refused, "the killed run's API server gone")


def test_a_failed_start_tells_why(binaries: Binaries, tmp_path: Path) -> None:
    (tmp_path / "etcd").write_text("#!/bin/sh\necho disk on fire; exit 3\n")
    (tmp_path / "etcd").chmod(0o755)
    with pytest.raises(ProcessFailed, match=r"etcd ended with 3 before it was ready(.|\n)*disk on fire"):
        ControlPlane(Binaries(tmp_path), tmp_path / "cluster", "broken").start()


def test_missing_binaries_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    with pytest.raises(Unavailable, match="lacks etcd, kube-apiserver, kubectl"):
        find_or_build()
    monkeypatch.delenv("KUBEBUILDER_ASSETS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match=r"install Go 1\.26 or newer"):
        find_or_build()


@pytest.mark.parametrize(
    ("ci", "summary", "reason"),
    [
        ("", "1 skipped", "1 tests on the real Kubernetes were NOT run: no kube-apiserver: set KUBEBUILDER_ASSETS"),
        ("true", "1 error", "CI must test on the real Kubernetes: no kube-apiserver"),
    ],
)
def test_without_binaries_tests_skip_loudly_and_fail_in_ci(tmp_path: Path, ci: str, summary: str, reason: str) -> None:
    (tmp_path / "test_needy.py").write_text("def test_needy(real_cluster): pass\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = real_k8s\n")
    home = {"PATH": str(tmp_path), "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(keeper.ROOT)}
    plugins = ["-p", "no:ipe_events", "-p", "no:xdist", "-p", "tests.controlplane.fixtures"]
    command = [sys.executable, "-m", "pytest", *plugins, str(tmp_path)]
    run = subprocess.run(command, env={**home, "CI": ci}, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert summary in run.stdout, run.stdout + run.stderr
    assert reason in run.stdout


@pytest.mark.parametrize(("ci", "arguments", "code"), [("", [], 1), ("", ["--if-possible"], 0), ("true", ["--if-possible"], 1)])
def test_a_machine_without_go_is_told_so(tmp_path: Path, ci: str, arguments: list[str], code: int) -> None:
    env = {"PATH": str(tmp_path), "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "CI": ci}
    command = [sys.executable, "-m", "tests.controlplane", "build", *arguments]
    run = subprocess.run(command, env=env, cwd=keeper.ROOT, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (code, "")
    assert "no kube-apiserver: set KUBEBUILDER_ASSETS, or install Go 1.26" in run.stderr
    assert "Traceback" not in run.stderr
