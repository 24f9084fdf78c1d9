"""Lists: pages, consistency, resourceVersion rules, selectors, metadata only."""

import asyncio

from tests.contract.api import CORE, PARTIAL, PARTIAL_LIST, ApiServer, Compact, JsonObject
from tests.helpers import eventually


async def _five(api: ApiServer) -> str:
    namespace = await api.namespace()
    for number in range(5):
        await api.config_map(namespace, f"c{number}", {"parity": "even" if number % 2 == 0 else "odd"}, x=str(number))
    return f"{CORE}/namespaces/{namespace}/configmaps"


def _names(body: JsonObject) -> list[str]:
    return [item["metadata"]["name"] for item in body["items"] if item["metadata"]["name"] != "kube-root-ca.crt"]


async def test_items_of_a_builtin_list_have_no_kind(api: ApiServer):
    body = await api.ok("GET", await _five(api))

    assert (body["kind"], body["apiVersion"]) == ("ConfigMapList", "v1")
    assert _names(body) == ["c0", "c1", "c2", "c3", "c4"]
    assert all("kind" not in item and "apiVersion" not in item for item in body["items"])
    assert max(int(item["metadata"]["resourceVersion"]) for item in body["items"]) <= int(body["metadata"]["resourceVersion"])


async def test_pages_show_one_moment(api: ApiServer):
    path = await _five(api)
    first = await api.ok("GET", path, limit=2)
    await api.ok("DELETE", f"{path}/c3")
    await api.ok("PATCH", f"{path}/c4", {"data": {"x": "changed"}}, kind="application/merge-patch+json")
    second = await api.ok("GET", path, limit=2, **{"continue": first["metadata"]["continue"]})
    third = await api.ok("GET", path, limit=2, **{"continue": second["metadata"]["continue"]})

    assert (_names(first), _names(second), _names(third)[:1]) == (["c0", "c1"], ["c2", "c3"], ["c4"])
    assert third["items"][0]["data"] == {"x": "4"}
    versions = {page["metadata"]["resourceVersion"] for page in (first, second, third)}
    assert len(versions) == 1
    assert first["metadata"]["remainingItemCount"] - second["metadata"]["remainingItemCount"] == 2
    assert "continue" not in third["metadata"]
    assert "remainingItemCount" not in third["metadata"]


async def test_a_selected_page_does_not_tell_how_many_remain(api: ApiServer):
    page = await api.ok("GET", await _five(api), limit=2, labelSelector="parity=even")

    assert _names(page) == ["c0", "c2"]
    assert page["metadata"]["continue"]
    assert "remainingItemCount" not in page["metadata"]


async def test_from_the_cache_the_limit_is_ignored(api: ApiServer):
    path = await _five(api)

    async def all_of_them() -> bool:
        body = await api.ok("GET", path, limit=2, resourceVersion="0")
        return "continue" not in body["metadata"] and _names(body) == ["c0", "c1", "c2", "c3", "c4"]

    assert await eventually(all_of_them)


async def test_an_exact_list_shows_the_past(api: ApiServer):
    path = await _five(api)
    then = (await api.ok("GET", path))["metadata"]["resourceVersion"]
    await api.ok("DELETE", f"{path}/c0")

    past = await api.ok("GET", path, resourceVersion=then, resourceVersionMatch="Exact")
    page = await api.ok("GET", path, resourceVersion=then, limit=1)
    newer = await api.ok("GET", path, resourceVersion=then, resourceVersionMatch="NotOlderThan")

    assert _names(past) == ["c0", "c1", "c2", "c3", "c4"]
    assert past["metadata"]["resourceVersion"] == then
    assert _names(page) == ["c0"]
    assert int(newer["metadata"]["resourceVersion"]) >= int(then)


async def test_a_compacted_continue_token_offers_an_inconsistent_one(compactable: tuple[ApiServer, Compact]):
    api, compact = compactable
    path = await _five(api)
    first = await api.ok("GET", path, limit=2)
    await api.ok("DELETE", f"{path}/c2")
    await compact()

    refused = await api.call("GET", path, limit=2, **{"continue": first["metadata"]["continue"]})
    refused.refused(410, "Expired")
    assert "too old to display a consistent list result" in refused.json["message"]
    rest = await api.ok("GET", path, **{"continue": refused.json["metadata"]["continue"]})
    assert _names(rest) == ["c3", "c4"]


async def test_an_exact_list_of_compacted_history_is_gone(compactable: tuple[ApiServer, Compact]):
    api, compact = compactable
    path = await _five(api)
    then = (await api.ok("GET", path))["metadata"]["resourceVersion"]
    await api.ok("DELETE", f"{path}/c2")
    await compact()

    refused = await api.call("GET", path, resourceVersion=then, resourceVersionMatch="Exact")
    refused.refused(410, "Expired", "The resourceVersion for the provided list is too old.")


async def test_a_version_from_the_future_is_too_large(api: ApiServer):
    path = await _five(api)
    answers = await asyncio.gather(
        api.call("GET", path, resourceVersion="99999999"),
        api.call("GET", path, resourceVersion="99999999", resourceVersionMatch="NotOlderThan"),
        api.call("GET", f"{path}/c0", resourceVersion="99999999"),
    )
    for answer in answers:
        details = answer.refused(504, "Timeout")
        assert answer.json["message"].startswith("Timeout: Too large resource version: 99999999, current: ")
        assert details["causes"] == [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]
        assert details["retryAfterSeconds"] == 1


async def test_contradicting_options_are_refused(api: ApiServer):
    path = await _five(api)
    token = (await api.ok("GET", path, limit=1))["metadata"]["continue"]
    unless = "Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided"
    cases = [
        ({"resourceVersionMatch": "Exact"}, unless),
        (
            {"resourceVersionMatch": "Exact", "resourceVersion": "0"},
            'Forbidden: resourceVersionMatch "exact" is forbidden for resourceVersion "0"',
        ),
        (
            {"resourceVersionMatch": "Foo", "resourceVersion": "1"},
            'Unsupported value: "Foo": supported values: "Exact", "NotOlderThan", ""',
        ),
        (
            {"resourceVersionMatch": "NotOlderThan", "resourceVersion": "1", "continue": token},
            "Forbidden: resourceVersionMatch is forbidden when continue is provided",
        ),
    ]
    for query, why in cases:
        answer = await api.call("GET", path, **query)
        details = answer.refused(422, "Invalid", f'ListOptions.meta.k8s.io "" is invalid: resourceVersionMatch: {why}')
        assert details["causes"][0]["field"] == "resourceVersionMatch"
    listed = await api.call("GET", path, resourceVersion="5", **{"continue": token})
    listed.refused(400, "BadRequest", "specifying resource version is not allowed when using continue")


async def test_what_does_not_parse_is_a_bad_request(api: ApiServer):
    path = await _five(api)
    parse = 'strconv.ParseUint: parsing "abc": invalid syntax'
    version = await api.call("GET", path, resourceVersion="abc")
    version.refused(400, "BadRequest", f'invalid resource version: resourceVersion: Invalid value: "abc": {parse}')
    limit = await api.call("GET", path, limit="x")
    limit.refused(400, "BadRequest", 'strconv.ParseInt: parsing "x": invalid syntax')
    for query in ({"labelSelector": "a==="}, {"fieldSelector": "nonsense"}, {"continue": "bogus"}):
        (await api.call("GET", path, **query)).refused(400, "BadRequest")
    field = await api.call("GET", path, fieldSelector="spec.foo=x")
    known = '"metadata.name", "metadata.namespace"'
    field.refused(400, "BadRequest", f'"spec.foo" is not a known field selector: only {known}')
    pods = await api.call("GET", f"{CORE}/pods", fieldSelector="spec.foo=x")
    pods.refused(400, "BadRequest", "field label not supported: spec.foo")


async def test_label_selectors(api: ApiServer):
    path = await _five(api)
    cases = {
        "parity": ["c0", "c1", "c2", "c3", "c4"],
        "parity=odd": ["c1", "c3"],
        "parity==odd": ["c1", "c3"],
        "parity!=odd,parity": ["c0", "c2", "c4"],
        "parity in (odd,none)": ["c1", "c3"],
        "parity notin (odd),parity": ["c0", "c2", "c4"],
        "!parity": [],
        "parity=odd,parity!=odd": [],
        "parity in (odd,even),parity=even": ["c0", "c2", "c4"],
    }
    for selector, expected in cases.items():
        assert _names(await api.ok("GET", path, labelSelector=selector)) == expected, selector


async def test_field_selectors(api: ApiServer):
    path = await _five(api)
    namespace = path.split("/")[4]
    everywhere = await api.ok("GET", f"{CORE}/configmaps", fieldSelector=f"metadata.name=c1,metadata.namespace={namespace}")

    assert _names(await api.ok("GET", path, fieldSelector="metadata.name=c3")) == ["c3"]
    assert _names(await api.ok("GET", path, fieldSelector="metadata.name!=c3", labelSelector="parity=odd")) == ["c1"]
    assert _names(everywhere) == ["c1"]


async def test_metadata_only(api: ApiServer):
    path = await _five(api)
    one = await api.ok("GET", f"{path}/c1", accept=PARTIAL)
    page = await api.ok("GET", path, accept=PARTIAL_LIST, limit=1)

    assert set(one) == {"kind", "apiVersion", "metadata"}
    assert (one["kind"], one["apiVersion"]) == ("PartialObjectMetadata", "meta.k8s.io/v1")
    assert (page["kind"], page["apiVersion"]) == ("PartialObjectMetadataList", "meta.k8s.io/v1")
    assert page["metadata"]["continue"]
    assert set(page["items"][0]) == {"kind", "apiVersion", "metadata"}
    assert page["items"][0]["metadata"]["labels"] == {"parity": "even"}


async def test_a_form_that_is_not_served_is_not_acceptable(api: ApiServer):
    answer = await api.call("GET", f"{CORE}/namespaces/default", accept="application/vnd.foo")
    answer.refused(406, "NotAcceptable")


async def test_deleting_a_collection(api: ApiServer):
    path = await _five(api)
    deleted = await api.ok("DELETE", path, labelSelector="parity=odd")

    assert deleted["kind"] == "ConfigMapList"
    assert _names(deleted) == ["c1", "c3"]
    assert _names(await api.ok("GET", path)) == ["c0", "c2", "c4"]
