"""The two sides of the contract: every test here runs against FakeCluster and against the real API server.

A difference is a bug of the fake. Tests stay inside a namespace of their own, because the real server is shared.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from ipe_events.testing.fake import FakeCluster, Rule
from tests.contract.api import ApiServer, Compact, JsonObject
from tests.controlplane.cluster import RealCluster

TOKEN = "contract-admin"
SIDES = ["fake", pytest.param("real", marks=pytest.mark.real_k8s)]


@pytest.fixture(params=SIDES)
def side(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def api(side: str, request: pytest.FixtureRequest) -> AsyncIterator[ApiServer]:
    """An API server with a watch cache and nobody working in it."""
    async for server in _server(side, request, "real_cluster"):
        yield server


@pytest.fixture
async def live_api(side: str, request: pytest.FixtureRequest) -> AsyncIterator[ApiServer]:
    """An API server whose namespaces and quotas are looked after."""
    async for server in _server(side, request, "real_workloads"):
        yield server


@pytest.fixture
async def compactable(side: str, request: pytest.FixtureRequest) -> AsyncIterator[tuple[ApiServer, Compact]]:
    """An API server without a watch cache, and how to compact its history."""
    async for server, compact in _compactable(side, request):
        yield server, compact


async def _server(side: str, request: pytest.FixtureRequest, fixture: str) -> AsyncIterator[ApiServer]:
    async with aiohttp.ClientSession() as session:
        if side == "real":
            yield _real(request.getfixturevalue(fixture), session)
            return
        async with FakeCluster("contract", token=TOKEN, fresh_timeout=0.2) as cluster:
            yield _fake(cluster, session)


async def _compactable(side: str, request: pytest.FixtureRequest) -> AsyncIterator[tuple[ApiServer, Compact]]:
    async with aiohttp.ClientSession() as session:
        if side == "real":
            cluster: RealCluster = request.getfixturevalue("second_cluster")

            async def compact() -> None:
                await asyncio.to_thread(cluster.compact)

            yield _real(cluster, session), compact
            return
        async with FakeCluster("contract", token=TOKEN, fresh_timeout=0.2) as fake:

            async def compact_fake() -> None:
                fake.compact()

            yield _fake(fake, session), compact_fake


def _real(cluster: RealCluster, session: aiohttp.ClientSession) -> ApiServer:
    async def make_user(namespace: str, name: str, rules: list[JsonObject]) -> str:
        return await asyncio.to_thread(cluster.service_account, namespace, name, rules)

    tls = ssl.create_default_context(cadata=cluster.ca_pem)
    return ApiServer(cluster.server, cluster.token, tls, session, make_user, simulated=False)


def _fake(cluster: FakeCluster, session: aiohttp.ClientSession) -> ApiServer:
    async def make_user(namespace: str, name: str, rules: list[JsonObject]) -> str:
        token = f"{namespace}-{name}"
        allowed = [_rule(rule, namespace) for rule in rules]
        cluster.add_token(token, f"system:serviceaccount:{namespace}:{name}", rules=allowed)
        return token

    return ApiServer(cluster.url, cluster.token, None, session, make_user, simulated=True)


def _rule(rule: dict[str, Any], namespace: str) -> Rule:
    return Rule(tuple(rule["verbs"]), tuple(rule["resources"]), tuple(rule["apiGroups"]), (namespace,))
