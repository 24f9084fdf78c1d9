"""Watches: where they start, what they send, how they end."""

import asyncio

import pytest

from tests.contract.api import CORE, MERGE, PARTIAL, ApiServer, Compact, JsonObject

INITIAL_END = {"k8s.io/initial-events-end": "true"}


@pytest.fixture
async def path(api: ApiServer) -> str:
    """The ConfigMaps of a fresh namespace that holds ``a``; ``kube-root-ca.crt`` carries no label ``mine``."""
    namespace = await api.namespace()
    await api.config_map(namespace, "a", {"mine": "yes"}, x="1")
    return f"{CORE}/namespaces/{namespace}/configmaps"


async def _create(api: ApiServer, path: str, name: str) -> JsonObject:
    return await api.config_map(path.split("/")[4], name, {"mine": "yes"}, x="1")


async def test_from_a_version_come_all_later_changes(api: ApiServer, path: str):
    start = (await api.ok("GET", f"{path}/a"))["metadata"]["resourceVersion"]
    created = await _create(api, path, "b")
    patched = await api.ok("PATCH", f"{path}/b", {"data": {"x": "2"}}, kind=MERGE)
    await api.ok("DELETE", f"{path}/b")

    async with api.watch(path, resourceVersion=start, fieldSelector="metadata.name=b") as watch:
        added, modified, deleted = [await watch.next() for _ in range(3)]

    assert [added[0], modified[0], deleted[0]] == ["ADDED", "MODIFIED", "DELETED"]
    assert added[1] == created
    assert modified[1] == patched
    assert deleted[1]["data"] == {"x": "2"}
    assert int(deleted[1]["metadata"]["resourceVersion"]) > int(patched["metadata"]["resourceVersion"])
    assert (added[1]["kind"], added[1]["apiVersion"]) == ("ConfigMap", "v1")


@pytest.mark.parametrize("version", ["", "0"])
async def test_without_a_version_the_present_comes_first(api: ApiServer, path: str, version: str):
    query = {"resourceVersion": version} if version else {}
    async with api.watch(path, labelSelector="mine", **query) as watch:
        first = await watch.next()
        await _create(api, path, "later")
        second = await watch.next()

    assert [(kind, obj["metadata"]["name"]) for kind, obj in (first, second)] == [("ADDED", "a"), ("ADDED", "later")]


async def test_initial_events_end_with_a_bookmark(api: ApiServer, path: str):
    options = {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan", "allowWatchBookmarks": "true"}
    async with api.watch(path, labelSelector="mine", **options) as watch:
        added, bookmark = [await watch.next() for _ in range(2)]
        await _create(api, path, "later")
        later = await watch.next()

    assert (added[0], added[1]["metadata"]["name"]) == ("ADDED", "a")
    assert bookmark[0] == "BOOKMARK"
    assert bookmark[1]["metadata"]["annotations"] == INITIAL_END
    assert (bookmark[1]["kind"], bookmark[1]["apiVersion"]) == ("ConfigMap", "v1")
    assert int(bookmark[1]["metadata"]["resourceVersion"]) >= int(added[1]["metadata"]["resourceVersion"])
    assert later[1]["metadata"]["name"] == "later"


async def test_initial_events_can_be_declined(api: ApiServer, path: str):
    async with api.watch(path, sendInitialEvents="false", resourceVersionMatch="NotOlderThan") as watch:
        await _create(api, path, "later")
        kind, obj = await watch.next()

    assert (kind, obj["metadata"]["name"]) == ("ADDED", "later")


async def test_contradicting_watch_options_are_refused(api: ApiServer, path: str):
    cases = [
        ({"sendInitialEvents": "true"}, "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"),
        (
            {"resourceVersionMatch": "NotOlderThan"},
            "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        ),
    ]
    for query, why in cases:
        answer = await api.call("GET", path, watch="1", timeoutSeconds="1", **query)
        message = f'ListOptions.meta.k8s.io "" is invalid: resourceVersionMatch: Forbidden: {why}'
        answer.refused(422, "Invalid", message)


async def test_initial_events_from_the_future_fail_by_an_event(api: ApiServer, path: str):
    options = {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan", "resourceVersion": "99999999"}
    async with api.watch(path, **options) as watch:
        kind, obj = await watch.next()

    assert (kind, obj["code"], obj["reason"]) == ("ERROR", 504, "Timeout")
    assert obj["details"]["causes"][0]["reason"] == "ResourceVersionTooLarge"


async def test_a_label_that_goes_looks_like_a_delete(api: ApiServer, path: str):
    async with api.watch(path, labelSelector="mine=yes") as watch:
        await watch.next()
        gone = await api.ok("PATCH", f"{path}/a", {"metadata": {"labels": {"mine": "no"}}}, kind=MERGE)
        await api.ok("PATCH", f"{path}/a", {"data": {"x": "unseen"}}, kind=MERGE)
        back = await api.ok("PATCH", f"{path}/a", {"metadata": {"labels": {"mine": "yes"}}}, kind=MERGE)
        left, returned = [await watch.next() for _ in range(2)]

    assert left[0] == "DELETED"
    assert left[1]["metadata"]["resourceVersion"] == gone["metadata"]["resourceVersion"]
    assert left[1]["metadata"]["labels"] == {"mine": "yes"}
    assert returned == ("ADDED", back)


async def test_a_bookmark_comes_before_the_timeout(api: ApiServer, path: str):
    start = (await api.ok("GET", path))["metadata"]["resourceVersion"]
    other = await api.namespace()
    async with api.watch(path, resourceVersion=start, allowWatchBookmarks="true", timeoutSeconds="5") as watch:
        moved = await api.config_map(other, "elsewhere", x="1")
        bookmarks = [obj for kind, obj in await watch.rest() if kind == "BOOKMARK"]

    assert set(bookmarks[-1]["metadata"]) == {"resourceVersion"}
    assert int(bookmarks[-1]["metadata"]["resourceVersion"]) >= int(moved["metadata"]["resourceVersion"])


async def test_the_timeout_ends_a_quiet_watch(api: ApiServer, path: str):
    start = (await api.ok("GET", path))["metadata"]["resourceVersion"]
    began = asyncio.get_running_loop().time()
    async with api.watch(path, resourceVersion=start, fieldSelector="metadata.name=none", timeoutSeconds="1") as watch:
        assert await watch.rest() == []
    assert asyncio.get_running_loop().time() - began < 5


async def test_history_that_is_compacted_is_gone(compactable: tuple[ApiServer, Compact]):
    api, compact = compactable
    namespace = await api.namespace()
    first = await api.config_map(namespace, "a", x="1")
    await api.config_map(namespace, "b", x="1")
    await compact()

    version = first["metadata"]["resourceVersion"]
    async with api.watch(f"{CORE}/namespaces/{namespace}/configmaps", resourceVersion=version) as watch:
        assert watch.response.status == 200
        kind, obj = await watch.next()
    assert (kind, obj["kind"], obj["code"], obj["reason"]) == ("ERROR", "Status", 410, "Expired")


async def test_metadata_only_watch(api: ApiServer, path: str):
    async with api.watch(path, accept=PARTIAL, labelSelector="mine") as watch:
        kind, obj = await watch.next()

    assert kind == "ADDED"
    assert set(obj) == {"kind", "apiVersion", "metadata"}
    assert (obj["kind"], obj["apiVersion"]) == ("PartialObjectMetadata", "meta.k8s.io/v1")


async def test_a_watch_of_all_namespaces(api: ApiServer, path: str):
    start = (await api.ok("GET", path))["metadata"]["resourceVersion"]
    created = await _create(api, path, "everywhere")
    name = f"metadata.name=everywhere,metadata.namespace={created['metadata']['namespace']}"
    async with api.watch(f"{CORE}/configmaps", resourceVersion=start, fieldSelector=name) as watch:
        assert await watch.next() == ("ADDED", created)


async def test_watching_from_the_future_waits(api: ApiServer, path: str):
    async with api.watch(path, resourceVersion="99999999", timeoutSeconds="1") as watch:
        assert watch.response.status == 200
        assert await watch.rest() == []


async def test_a_watch_from_the_future_skips_what_comes_before_it(api: ApiServer, path: str):
    present = await api.ok("GET", f"{path}/a")
    start = int(present["metadata"]["resourceVersion"]) + 40
    async with api.watch(path, resourceVersion=start, timeoutSeconds="20") as watch:
        await _create(api, path, "early")
        last, changes = 0, 0
        while last <= start:
            changes += 1
            patched = await api.ok("PATCH", f"{path}/a", {"data": {"x": str(changes)}}, kind=MERGE)
            last = int(patched["metadata"]["resourceVersion"])
        kind, obj = await watch.next()

    assert (kind, obj["metadata"]["name"], obj["metadata"]["resourceVersion"]) == ("MODIFIED", "a", str(last))


async def test_a_watch_from_the_future_gets_no_bookmark_from_before_it(api: ApiServer, path: str):
    async with api.watch(path, resourceVersion="99999999", allowWatchBookmarks="true", timeoutSeconds="5") as watch:
        assert await watch.rest() == []


async def test_without_a_watch_cache_the_future_waits_too(compactable: tuple[ApiServer, Compact]):
    api, _ = compactable
    async with api.watch(f"{CORE}/configmaps", resourceVersion="99999999", timeoutSeconds="1") as watch:
        assert watch.response.status == 200
        assert await watch.rest() == []


async def test_a_version_that_is_no_number(api: ApiServer, path: str):
    answer = await api.call("GET", path, watch="1", resourceVersion="abc")
    assert answer.status in {400, 500}
    assert 'parsing "abc": invalid syntax' in answer.json["message"]
