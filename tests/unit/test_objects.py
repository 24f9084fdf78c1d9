"""The object tools on the objects of everyday."""

import copy
import json
from typing import Any

import jsonpatch
import pytest

from ipe_events.objects import PathError, Quantity, QuantityError, Selector, diff, paths, prune, same_quantity, to_json_patch

DEPLOYMENT: dict[str, Any] = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "cart", "labels": {"app.kubernetes.io/name": "cart"}, "uid": "u1", "resourceVersion": "7"},
    "spec": {
        "replicas": 2,
        "template": {
            "spec": {
                "containers": [
                    {
                        "name": "app",
                        "image": "cart:1",
                        "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
                        "ports": [{"containerPort": 53}, {"containerPort": 53, "protocol": "UDP"}],
                        "resources": {"limits": {"cpu": "1", "memory": "1Gi"}},
                        "args": ["--a", "--b"],
                    },
                    {"name": "proxy", "image": "proxy:1"},
                ]
            }
        },
    },
    "status": {"replicas": 2},
}


def edited(path: str, value: Any) -> Any:
    return paths.put(DEPLOYMENT, path, value)


def said(old: Any, new: Any, **options: Any) -> list[str]:
    return [str(difference) for difference in diff(old, new, **options)]


# --- pointers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pointer", "parts"),
    [("", ()), ("/", ("",)), ("/a/b", ("a", "b")), ("/a~1b/~0", ("a/b", "~")), ("/~01", ("~1",)), ("/spec/0", ("spec", "0"))],
)
def test_pointers_are_read_and_written(pointer: str, parts: tuple[str, ...]):
    assert paths.parse(pointer) == parts
    assert paths.pointer(parts) == pointer


@pytest.mark.parametrize(
    ("pointer", "message"),
    [("a", r"'a' does not begin with `/` \(fix: write '/a'\)"), ("/~", "escapes nothing"), ("/~2", "escapes nothing")],
)
def test_a_malformed_pointer_is_an_error_with_its_fix(pointer: str, message: str):
    with pytest.raises(PathError, match=message):
        paths.parse(pointer)


@pytest.mark.parametrize(
    ("pointer", "message"),
    [
        ("/spec/replica", "'/spec' is an object without 'replica'"),
        ("/spec/template/spec/containers/2", "is a list of 2 items without '2'"),
        ("/spec/template/spec/containers/-1", "without '-1'"),
        ("/spec/template/spec/containers/01", "without '01'"),
        ("/spec/template/spec/containers/-", "without '-'"),
        ("/spec/replicas/x", "'/spec/replicas' is neither object nor list without 'x'"),
        ("/Spec", "'the root' is an object without 'Spec'"),
    ],
)
def test_a_pointer_that_leads_nowhere_says_where_it_ended(pointer: str, message: str):
    with pytest.raises(PathError, match=message):
        paths.get(DEPLOYMENT, pointer)
    assert paths.get(DEPLOYMENT, pointer, None) is None
    assert not paths.has(DEPLOYMENT, pointer)


def test_null_is_a_value():
    assert paths.has({"a": None}, "/a")
    assert paths.get({"a": None}, "/a", 1) is None


def test_put_makes_objects_on_the_way_and_appends_to_lists():
    assert paths.put({}, "/metadata/annotations/a", "b") == {"metadata": {"annotations": {"a": "b"}}}
    assert paths.put({"l": [1]}, "/l/-", 2) == {"l": [1, 2]}
    assert paths.put({"l": [1]}, "/l/0", 2) == {"l": [2]}
    assert paths.put(1, "", 2) == 2


def test_put_does_not_guess():
    for document, pointer in (({"l": [1]}, "/l/1"), ({"l": [1]}, "/l/x"), ({"s": "text"}, "/s/a"), ({"s": None}, "/s/a")):
        with pytest.raises(PathError, match="leads nowhere"):
            paths.put(document, pointer, 1)
    with pytest.raises(PathError, match="leads nowhere"):
        paths.put({}, (0,), 1)


def test_drop_leaves_the_rest():
    assert paths.drop({"a": 1, "b": 2}, "/a") == {"b": 2}
    assert paths.drop({"l": [1, 2, 3]}, "/l/1") == {"l": [1, 3]}
    for pointer in ("", "/x", "/l/3"):
        with pytest.raises(PathError):
            paths.drop({"l": [1, 2, 3]}, pointer)


# --- selectors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("selector", "found"),
    [
        ("/spec/template/spec/containers[name=app]/image", ["cart:1"]),
        ("/spec/template/spec/containers[*]/image", ["cart:1", "proxy:1"]),
        ("/spec/template/spec/containers[1]/image", ["proxy:1"]),
        ("/spec/template/spec/containers[name=app]/ports[containerPort=53,protocol=TCP]", [{"containerPort": 53}]),
        ("/spec/template/spec/containers[name=gone]/image", []),
        ("/metadata/labels/*", ["cart"]),
        ("/metadata/labels/app.kubernetes.io~1name", ["cart"]),
        ("/*/replicas", [2, 2]),
        ("/spec[*]", []),
        ("", [DEPLOYMENT]),
    ],
)
def test_a_selector_finds_what_it_names(selector: str, found: list[Any]):
    assert [paths.get(DEPLOYMENT, place) for place in Selector.parse(selector).resolve(DEPLOYMENT)] == found
    assert str(Selector.parse(selector)) == selector


@pytest.mark.parametrize(
    "text", ["spec", "/a[", "/a[]", "/a[x]", "/a[=1]", "/a[n=1=2]", "/a[n=1]b", "/a~9", "/a~", "/a[n=1][n=2]"]
)
def test_a_malformed_selector_is_an_error_of_ours(text: str):
    with pytest.raises(PathError):
        Selector.parse(text)


def test_a_selector_matches_the_paths_of_differences():
    (found,) = diff(DEPLOYMENT, edited("/spec/template/spec/containers/0/env/1/value", "3"))
    assert paths.keyed_text(found.path) == "/spec/template/spec/containers[name=app]/env[name=B]/value"
    for yes in ("/spec/template/spec/containers[*]/env[name=B]/value", paths.keyed_text(found.path)):
        assert Selector.parse(yes).matches(found.path)
    assert Selector.parse("/spec/template").matches(found.path, below=True)
    for no in (
        "/spec/template",
        "/spec/template/spec/containers[name=proxy]/env[*]/value",
        "/spec/template/spec/containers/*/env[*]/value",
    ):
        assert not Selector.parse(no).matches(found.path)


# --- differences ----------------------------------------------------------------------------------------------------------


def test_differences_name_items_instead_of_positions():
    new = copy.deepcopy(DEPLOYMENT)
    containers = new["spec"]["template"]["spec"]["containers"]
    containers[0]["env"] = [{"name": "C", "value": "3"}, {"name": "B", "value": "two"}]
    containers.insert(0, {"name": "sidecar", "image": "x"})
    new["spec"]["replicas"] = 5
    del new["metadata"]["labels"]
    assert said(DEPLOYMENT, new) == [
        "removed /metadata/labels",
        "changed /spec/replicas",
        "changed /spec/template/spec/containers[name=app]/env[name=B]/value",
        "removed /spec/template/spec/containers[name=app]/env[name=A]",
        "added /spec/template/spec/containers[name=app]/env[name=C]",
        "added /spec/template/spec/containers[name=sidecar]",
    ]
    assert jsonpatch.apply_patch(DEPLOYMENT, to_json_patch(diff(DEPLOYMENT, new))) == new


def test_an_item_that_moved_has_not_changed():
    assert (
        said(DEPLOYMENT, edited("/spec/template/spec/containers", DEPLOYMENT["spec"]["template"]["spec"]["containers"][::-1]))
        == []
    )


def test_lists_without_keys_are_one_value():
    args = "/spec/template/spec/containers/0/args"
    assert said(DEPLOYMENT, edited(args, ["--b", "--a"])) == ["changed /spec/template/spec/containers[name=app]/args"]


def test_a_list_with_one_key_twice_or_none_is_one_value():
    for values in ([{"name": "app"}, {"name": "app"}], [{"image": "x"}], ["app"]):
        assert said(DEPLOYMENT, edited("/spec/template/spec/containers", values)) == ["changed /spec/template/spec/containers"]


def test_a_port_without_protocol_is_tcp():
    ports = "/spec/template/spec/containers/0/ports"
    new = edited(ports, [{"containerPort": 53, "protocol": "UDP", "name": "dns"}, {"containerPort": 53, "protocol": "TCP"}])
    assert said(DEPLOYMENT, new) == [
        "added /spec/template/spec/containers[name=app]/ports[containerPort=53,protocol=UDP]/name",
        "added /spec/template/spec/containers[name=app]/ports[containerPort=53,protocol=TCP]/protocol",
    ]
    service = {"spec": {"ports": [{"port": 80, "targetPort": 8080}]}}
    assert said(service, {"spec": {"ports": [{"port": 80, "targetPort": 9090}]}}) == [
        "changed /spec/ports[port=80,protocol=TCP]/targetPort"
    ]


def test_true_is_not_one_but_one_is_one_point_zero():
    assert said({"a": {"b": True}}, {"a": {"b": 1}}) == ["changed /a/b"]
    assert said({"a": [True]}, {"a": [1]}) == ["changed /a"]
    assert said({"a": 1}, {"a": 1.0}) == []
    assert said({"a": None}, {}) == ["removed /a"]


def test_spellings_of_one_quantity_are_equal_where_quantities_stand():
    new = edited("/spec/template/spec/containers/0/resources/limits", {"cpu": "1000m", "memory": "1024Mi"})
    assert len(said(DEPLOYMENT, new)) == 2
    assert said(DEPLOYMENT, new, semantic=True) == []
    assert said({"env": {"SIZE": "1"}}, {"env": {"SIZE": "1000m"}}, semantic=True) == ["changed /env/SIZE"]
    assert said({"limits": {"cpu": 1}}, {"limits": {"cpu": "1"}}, semantic=True) == []


def test_a_patch_tests_everything_it_relies_on_first():
    new = edited("/spec/template/spec/containers/1/image", "proxy:2")
    patch = to_json_patch(diff(DEPLOYMENT, new))
    assert patch == [
        {"op": "test", "path": "/spec/template/spec/containers/1/name", "value": "proxy"},
        {"op": "test", "path": "/spec/template/spec/containers/1/image", "value": "proxy:1"},
        {"op": "replace", "path": "/spec/template/spec/containers/1/image", "value": "proxy:2"},
    ]
    swapped = edited("/spec/template/spec/containers", DEPLOYMENT["spec"]["template"]["spec"]["containers"][::-1])
    with pytest.raises(jsonpatch.JsonPatchTestFailed):
        jsonpatch.apply_patch(swapped, patch)


def test_a_patch_of_a_port_does_not_test_a_protocol_that_may_be_absent():
    new = edited("/spec/template/spec/containers/0/ports/0/name", "dns")
    patch = to_json_patch(diff(DEPLOYMENT, new))
    assert jsonpatch.apply_patch(DEPLOYMENT, patch) == new
    assert {"op": "test", "path": "/spec/template/spec/containers/0/ports/0/containerPort", "value": 53} in patch


# --- prune ----------------------------------------------------------------------------------------------------------------


def test_prune_keeps_what_a_person_wrote():
    before = json.dumps(DEPLOYMENT)
    pruned = prune(DEPLOYMENT)
    assert pruned["metadata"] == {"name": "cart", "labels": {"app.kubernetes.io/name": "cart"}}
    assert "status" not in pruned
    assert pruned["spec"] is DEPLOYMENT["spec"]
    assert json.dumps(DEPLOYMENT) == before


def test_prune_drops_what_was_handed_out_only_when_asked():
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "spec": {"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "type": "ClusterIP"},
    }
    assert prune(service)["spec"] == service["spec"]
    assert prune(service, allocated=False)["spec"] == {"type": "ClusterIP"}
    assert prune({"apiVersion": "v1", "kind": "Service", "spec": "hostile"}, allocated=False)["spec"] == "hostile"
    assert prune({"metadata": "hostile"}) == {"metadata": "hostile"}


# --- quantities -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("1000m", "1"), ("0.5", "500m"), (".5", "500m"), ("1.", "1"), ("1500m", "1500m"), ("1.5Gi", "1536Mi"), ("1024Mi", "1Gi"),
        ("1000", "1k"), ("1024", "1024"), ("1023Ki", "1023Ki"), ("0.5Gi", "512Mi"), ("512", "512"), ("0.5Ki", "512"),
        ("1e3", "1e3"), ("12E6", "12e6"), ("1E", "1E"), ("1e-3", "1e-3"), ("100n", "100n"), ("0.1n", "1n"), ("-0.1n", "-1n"),
        ("-1500m", "-1500m"), ("+1", "1"), ("0", "0"), ("0Gi", "0"), ("-0", "0"), ("1.25Ki", "1280"), ("0.1Ki", "102400m"),
        ("3000Mi", "3000Mi"), ("7Ei", "7Ei"), ("00001", "1"), (2, "2"), (0.5, "500m"), (1e-07, "100e-9"),
        ("1.0000000001", "1000000001n"),
    ],
)  # fmt: skip
def test_the_canonical_form(text: object, canonical: str):
    assert str(Quantity.parse(text)) == canonical


@pytest.mark.parametrize(
    "value",
    ["", " 1", "1 ", "1\n", "m", ".", "+", "1 Gi", "1gi", "1K", "1ki", "1KB", "1e", "1e1.5", "1e3Ki", "0x10", "1_000", "١", "--1",
     "1e99999", "nan", "Infinity", True, None, [], {}, float("nan"), float("inf"), "1" * 200],
)  # fmt: skip
def test_what_is_no_quantity_is_refused(value: object):
    with pytest.raises(QuantityError, match="is no quantity") as caught:
        Quantity.parse(value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("value", ["8Ei", "16Ei", "9223372036854775808", "1e19", "-10E", "1e9999", 2**63])
def test_an_amount_beyond_what_the_api_holds_is_refused_not_capped(value: object):
    with pytest.raises(QuantityError) as caught:
        Quantity.parse(value)
    assert len(str(caught.value)) < 400


def test_an_integer_that_python_does_not_write_out_is_an_error_of_ours():
    with pytest.raises(QuantityError, match="an integer of 16610 bits is no quantity"):
        Quantity.parse(10**5000)


def test_arithmetic_keeps_the_format_and_the_bounds():
    assert str(Quantity.parse("1Gi") + Quantity.parse("512Mi")) == "1536Mi"
    assert str(Quantity.parse("0") + Quantity.parse("512Mi")) == "512Mi"
    assert str(Quantity.parse("1") - Quantity.parse("1500m")) == "-500m"
    assert str(2 * Quantity.parse("100m")) == "200m"
    with pytest.raises(QuantityError, match="beyond what Kubernetes holds"):
        Quantity.parse("7Ei") + Quantity.parse("7Ei")
    for factor in (1.5, "2", None, 10**30):
        with pytest.raises(QuantityError, match="is no factor"):
            Quantity.parse("1") * factor  # type: ignore[operator]  # what an untyped caller may do


def test_same_quantity_compares_amounts_and_leaves_the_rest_alone():
    assert same_quantity("1000m", 1)
    assert same_quantity("not one", "not one")
    assert not same_quantity("not one", "other")
    assert not same_quantity(True, 1)
    assert not same_quantity("1", None)
