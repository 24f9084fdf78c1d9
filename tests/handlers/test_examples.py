"""The three examples, each by the same test in memory and on a real nats-server."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ipe_events.testing import change

EXAMPLES = Path(__file__).parents[2] / "handlers" / "examples"

both = pytest.mark.parametrize("test_bus", ["memory", "nats"], indirect=True)


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def deployment(replicas: int, *images: str, version: str = "7") -> dict[str, Any]:
    containers = [{"name": f"c{index}", "image": image} for index, image in enumerate(images or ("web:1.2",))]
    return {
        "kind": "Deployment",
        "apiVersion": "apps/v1",
        "metadata": {"name": "cart", "namespace": "shop", "resourceVersion": version},
        "spec": {"replicas": replicas, "template": {"spec": {"containers": containers}}},
    }


def pod(restarts: int, version: str) -> dict[str, Any]:
    return {
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": {"name": "cart-1", "namespace": "shop", "resourceVersion": version},
        "status": {"containerStatuses": [{"name": "app", "restartCount": restarts}]},
    }


@both
async def test_scale_guard_caps_with_a_guard(test_bus):
    bus = await test_bus(load("scale_guard").scale_guard)
    await bus.send(change(deployment(80), cluster="prod-eu"))
    await bus.send(change(deployment(50, version="8"), cluster="prod-eu"))
    await bus.send(change(deployment(80, version="9"), cluster="prod-eu", verb="deleted"))
    assert await bus.send(change(deployment(80), cluster="test-eu")) == []
    (command,) = bus.commands
    assert (command.cluster, command.handler, command.hops, command.reason) == ("prod-eu", "scale_guard", 1, "cap 50")
    assert [(one.op, one.path, one.value) for one in command.action.operations] == [
        ("test", "/spec/replicas", 80),
        ("replace", "/spec/replicas", 50),
    ]
    assert command.precondition.uid == command.target.uid != ""
    assert (command.expires - command.issued).total_seconds() == 600
    assert command.cause == change(deployment(80), cluster="prod-eu").id


@both
async def test_latest_tag_finds_unpinned_images(test_bus):
    module = load("latest_tag")
    bus = await test_bus(module.latest_tag)
    pinned = ("web:1.2", "registry:5000/web:2", "web@sha256:abc")
    await bus.send(change(deployment(1, *pinned), cluster="prod"))
    assert bus.published == []
    await bus.send(change(deployment(1, "web", "registry:5000/web:latest", "web:1", version="8"), cluster="prod"))
    (finding,) = bus.of(module.LatestTag)
    assert finding.containers == ("c0", "c1")
    assert str(finding.subject) == "shop/deployments.apps/cart"
    (message,) = bus.published
    assert message.subject == "ipe.finding.latest_tag.prod.shop.latest-tag"


@both
async def test_restart_digest_keeps_state_and_reports(test_bus, fake_clock):
    module = load("restart_digest")
    bus = await test_bus(module.count, module.digest)
    await bus.tick(module.digest)
    assert bus.published == []
    for restarts, version in ((2, "1"), (3, "2"), (3, "3"), (5, "4")):
        await bus.send(change(pod(restarts, version), cluster="prod"))
    fake_clock.advance("5m")
    await bus.tick(module.digest)
    (digest,) = bus.of(module.RestartDigest)
    assert digest.restarts == {"prod/shop": 3}
    await bus.tick(module.digest)
    assert len(bus.of(module.RestartDigest)) == 1
