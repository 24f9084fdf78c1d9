"""The pytest side of the real Kubernetes.

`real_cluster` is one control plane per test run, shared by all workers; `real_namespace` is a fresh namespace in
it; `real_workloads` is the same cluster with controllers and nodes, where pods run; `second_cluster` is another
one without a watch cache, to compact and to audit; `own_cluster` starts a private one that a test may break.

A test that names one of them is marked `real_k8s` by itself; one that asks for it while it runs marks itself. The
binaries are built after collection, where no test's time-out runs. On a machine that has neither binaries nor Go
these tests skip and the summary counts them; with `CI=true` they fail instead.
"""

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.controlplane import build, keeper
from tests.controlplane.cluster import CORE, RealCluster
from tests.controlplane.plane import WORKLOAD_TOOLS, ControlPlane
from tests.controlplane.process import ProcessFailed

FIXTURES = {"real_cluster", "real_namespace", "real_workloads", "second_cluster", "own_cluster"}
SKIPPED = "no real Kubernetes here"
LEASE = pytest.StashKey[keeper.Lease]()
CLUSTERS = pytest.StashKey[dict[str, RealCluster]]()

ClusterFactory = Callable[..., ControlPlane]


def pytest_configure(config: pytest.Config) -> None:
    config.stash[CLUSTERS] = {}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker("real_k8s")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build the binaries if a chosen test needs them; what goes wrong is told by the fixtures."""
    if session.config.option.collectonly or not any(item.get_closest_marker("real_k8s") for item in session.items):
        return
    capture = session.config.pluginmanager.getplugin("capturemanager")
    with ExitStack() as stack:
        if capture is not None:
            stack.enter_context(capture.global_and_fixture_disabled())
        try:
            build.find_or_build()
        except build.Unavailable:
            return


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """Put the end of the control plane's logs under a failed test that used it."""
    report = yield
    if report.failed and item.get_closest_marker("real_k8s"):
        for cluster in item.config.stash[CLUSTERS].values():
            for program, tail in cluster.log_tails().items():
                report.sections.append((f"{program} of cluster {cluster.name}", tail))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = [report for report in terminalreporter.stats.get("skipped", []) if SKIPPED in str(report.longrepr)]
    if skipped:
        reason = str(skipped[0].longrepr[-1]).partition(f"{SKIPPED}: ")[2]
        terminalreporter.write_line(f"{len(skipped)} tests on the real Kubernetes were NOT run: {reason}", yellow=True)


def pytest_unconfigure(config: pytest.Config) -> None:
    lease = config.stash.get(LEASE, None)
    if lease is not None:
        lease.close()


@pytest.fixture(scope="session")
def binaries() -> build.Binaries:
    """The control plane's programs; skips (fails with `CI=true`) where there are none."""
    try:
        return build.find_or_build()
    except build.Unavailable as error:
        _give_up(str(error))


@pytest.fixture(scope="session")
def real_cluster(binaries: build.Binaries, request: pytest.FixtureRequest) -> RealCluster:
    """The shared cluster: API server and etcd; stay inside a `real_namespace` and leave the rest alone."""
    return _shared(request, binaries, "main")


@pytest.fixture(scope="session")
def second_cluster(binaries: build.Binaries, request: pytest.FixtureRequest) -> RealCluster:
    """Another cluster; no watch cache, so `compact()` gives 410s at once (any test may do so); writes are audited."""
    return _shared(request, binaries, "second")


@pytest.fixture(scope="session")
def real_workloads(binaries: build.Binaries, request: pytest.FixtureRequest) -> RealCluster:
    """The shared cluster with controller-manager, scheduler and two kwok nodes: pods run, quotas are recounted."""
    missing = binaries.lacks(WORKLOAD_TOOLS)
    if missing:
        _give_up(f"{binaries.folder} lacks {', '.join(missing)}")
    return _shared(request, binaries, "main", workloads=True)


@pytest.fixture
def real_namespace(real_cluster: RealCluster) -> Iterator[str]:
    """A fresh namespace of the shared cluster, ready for pods; its deletion is asked for afterwards, not awaited."""
    name = f"test-{uuid.uuid4().hex[:10]}"
    real_cluster.create_namespace(name)
    yield name
    real_cluster.api.delete(f"{CORE}/namespaces/{name}")


@pytest.fixture
def own_cluster(binaries: build.Binaries, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[ClusterFactory]:
    """`own_cluster(name, watch_cache=True, audit=False)` starts a private ControlPlane (4 s) that a test may break."""
    with ExitStack() as stack:

        def start(name: str = "own", **options: bool) -> ControlPlane:
            plane = stack.enter_context(ControlPlane(binaries, tmp_path / f"cluster-{name}", name, **options))
            request.config.stash[CLUSTERS][name] = plane.cluster
            stack.callback(request.config.stash[CLUSTERS].pop, name)
            return plane

        yield start


def _shared(request: pytest.FixtureRequest, binaries: build.Binaries, name: str, *, workloads: bool = False) -> RealCluster:
    stash = request.config.stash
    try:
        if LEASE not in stash:
            stash[LEASE] = keeper.join(_run_folder(request), binaries)
        try:
            cluster = stash[LEASE].cluster(name, workloads=workloads)
        except keeper.KeeperLeft:
            stash[LEASE].close()
            stash[LEASE] = keeper.join(_run_folder(request), binaries)
            cluster = stash[LEASE].cluster(name, workloads=workloads)
    except ProcessFailed as error:
        pytest.fail(str(error), pytrace=False)
    stash[CLUSTERS][name] = cluster
    return cluster


def _run_folder(request: pytest.FixtureRequest) -> Path:
    """A folder that all workers of this run, and only they, have in common."""
    base: Path = request.getfixturevalue("tmp_path_factory").getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "controlplane"


def _give_up(reason: str) -> NoReturn:
    if build.must_exist():
        pytest.fail(f"CI must test on the real Kubernetes: {reason}", pytrace=False)
    pytest.skip(f"{SKIPPED}: {reason}")
