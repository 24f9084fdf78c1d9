"""Laws of the object tools, checked against independent oracles (jsonpatch, jsonpointer, Fractions)."""

import copy
import json
from decimal import Decimal
from fractions import Fraction
from typing import Any

import jsonpatch
import jsonpointer
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from ipe_events.objects import LIST_KEYS, Quantity, QuantityError, Selector, diff, paths, prune, same_quantity, to_json_patch
from ipe_events.objects.diff import equal
from ipe_events.objects.quantity import LARGEST

KEYS = st.one_of(
    st.sampled_from(["a", "b", "spec", "a/b", "a~b", "~1", "", "0", "-", "*", "x[y]", "app.kubernetes.io/name"]),
    st.text(max_size=4),
)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 3), st.integers(), st.sampled_from([0.0, 1.0, 1.5]), st.text(max_size=4)
)
NAMES = st.sampled_from(["app", "proxy", "a,b", "x=y]", "é"])


def keyed_lists(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    named = st.lists(
        st.builds(lambda name, rest: {**rest, "name": name}, NAMES, st.dictionaries(KEYS, values, max_size=2)),
        max_size=4,
        unique_by=lambda item: item["name"],
    )
    ports = st.lists(
        st.builds(
            lambda port, protocol, rest: {**rest, "containerPort": port, **({"protocol": protocol} if protocol else {})},
            st.integers(1, 3),
            st.sampled_from([None, "TCP", "UDP"]),
            st.dictionaries(st.sampled_from(["name", "hostPort"]), values, max_size=2),
        ),
        max_size=4,
    )  # a port may occur twice here: such a list is one value
    return st.one_of(
        st.fixed_dictionaries({"containers": named}),
        st.fixed_dictionaries({"env": named}),
        st.fixed_dictionaries({"ports": ports}),
    )


DOCUMENTS = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=4), keyed_lists(inner)),
    max_leaves=12,
)


@st.composite
def edited(draw: st.DrawFn) -> tuple[Any, Any]:
    """A document and a version of it with a few parts replaced, so that most of both is equal."""
    old = draw(DOCUMENTS)
    new = copy.deepcopy(old)
    for _ in range(draw(st.integers(0, 3))):
        places = [path for path, _ in leaves(new)]
        place = draw(st.sampled_from(places))
        new = paths.put(new, place[: draw(st.integers(0, len(place)))], draw(DOCUMENTS))
    return old, new


def leaves(document: Any, path: tuple[str | int, ...] = ()) -> list[tuple[tuple[str | int, ...], Any]]:
    items: Any = document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    return [(path, document)] + [leaf for key, value in items for leaf in leaves(value, (*path, key))]


def ordered(document: Any, field: str = "") -> Any:
    """The document with its keyed lists in one order: their order means nothing to the diff."""
    if isinstance(document, dict):
        return {key: ordered(value, key) for key, value in document.items()}
    if isinstance(document, list):
        values = [ordered(value) for value in document]
        return sorted(values, key=lambda value: json.dumps(value, sort_keys=True)) if field in LIST_KEYS else values
    return document


# --- pointers and paths ---------------------------------------------------------------------------------------------------


@given(st.lists(KEYS))
def test_a_pointer_comes_back_and_is_the_one_of_rfc_6901(parts: list[str]):
    text = paths.pointer(parts)
    assert paths.parse(text) == tuple(parts)
    assert text == jsonpointer.JsonPointer.from_parts(parts).path


@given(DOCUMENTS)
def test_every_value_is_found_where_it_stands(document: Any):
    for path, value in leaves(document):
        assert paths.get(document, path) is value
        assert paths.get(document, paths.pointer(path)) is value
        assert equal(jsonpointer.resolve_pointer(document, paths.pointer(path)), value)


@given(DOCUMENTS, DOCUMENTS, st.data())
def test_putting_changes_one_place_of_a_copy(document: Any, value: Any, data: st.DataObject):
    before = copy.deepcopy(document)
    place = data.draw(st.sampled_from([path for path, _ in leaves(document)]))
    changed = paths.put(document, place, value)
    assert equal(document, before)
    assert paths.get(changed, place) is value
    assert equal(paths.put(changed, place, paths.get(document, place)), document)


@given(DOCUMENTS, st.data())
def test_dropping_removes_one_place_of_a_copy(document: Any, data: st.DataObject):
    places = [path for path, _ in leaves(document) if path]
    assume(places)
    place = data.draw(st.sampled_from(places))
    dropped = paths.drop(document, place)
    oracle = jsonpatch.apply_patch(document, [{"op": "remove", "path": paths.pointer(place)}])
    assert equal(dropped, oracle)


# --- differences ----------------------------------------------------------------------------------------------------------


@given(edited())
@example(({"a": True}, {"a": 1}))
@example(({"a": {"b": [False]}}, {"a": {"b": [0]}}))
@example(({"a": {"n": 2**70, "b": True}}, {"a": {"n": 2**70, "b": 1}}))
@example(({"env": [{"name": "a"}, {"name": "b"}]}, {"env": [{"name": "c"}, {"name": "b"}, {"name": "d"}]}))
def test_the_patch_of_a_diff_turns_old_into_new(versions: tuple[Any, Any]):
    old, new = versions
    assert equal(ordered(jsonpatch.apply_patch(old, to_json_patch(diff(old, new)))), ordered(new))


@given(DOCUMENTS, DOCUMENTS)
def test_the_patch_of_a_diff_turns_anything_into_anything(old: Any, new: Any):
    assert equal(ordered(jsonpatch.apply_patch(old, to_json_patch(diff(old, new)))), ordered(new))


@given(st.lists(NAMES, unique=True, max_size=5), st.lists(NAMES, unique=True, max_size=5))
def test_items_that_keep_their_order_end_up_in_exactly_the_new_order(old_names: list[str], new_names: list[str]):
    new_names = sorted(new_names)
    old = {"containers": [{"name": name, "image": "1"} for name in sorted(old_names)]}
    new = {"containers": [{"name": name, "image": "2"} for name in new_names]}
    assert jsonpatch.apply_patch(old, to_json_patch(diff(old, new))) == new


@given(edited())
def test_equal_versions_have_no_difference_and_unequal_ones_have(versions: tuple[Any, Any]):
    old, new = versions
    assert diff(old, copy.deepcopy(old)) == []
    assert (diff(old, new) == []) is equal(ordered(old), ordered(new))


@given(edited(), st.data())
def test_some_of_the_differences_make_a_patch_that_applies(versions: tuple[Any, Any], data: st.DataObject):
    old, new = versions
    some = [difference for difference in diff(old, new) if data.draw(st.booleans())]
    jsonpatch.apply_patch(old, to_json_patch(some))


@given(edited())
def test_the_path_of_a_difference_leads_to_its_values(versions: tuple[Any, Any]):
    old, new = versions
    for found in diff(old, new):
        selector = Selector.parse(paths.keyed_text(found.path))
        assert selector.matches(found.path)
        assert Selector.parse(str(selector)) == selector
        if found.kind != "added":
            assert paths.get(old, found.at) is found.old
            assert [paths.get(old, place) for place in selector.resolve(old)] == [found.old]
        if found.kind != "removed":
            assert [paths.get(new, place) for place in selector.resolve(new)] == [found.new]


@given(DOCUMENTS, DOCUMENTS)
def test_nothing_changes_what_it_compares(old: Any, new: Any):
    before = copy.deepcopy((old, new))
    to_json_patch(diff(old, new, semantic=True))
    assert equal(list(before), [old, new])


@given(st.dictionaries(st.sampled_from(["apiVersion", "kind", "metadata", "spec", "status"]), DOCUMENTS))
def test_pruning_twice_is_pruning_once(document: dict[str, Any]):
    once = prune(document, allocated=False)
    assert equal(prune(once, allocated=False), once)
    assert "status" not in once


# --- quantities -----------------------------------------------------------------------------------------------------------

SUFFIXES = {
    "n": Fraction(1, 10**9), "u": Fraction(1, 10**6), "m": Fraction(1, 1000), "": Fraction(1), "k": Fraction(10**3),
    "M": Fraction(10**6), "G": Fraction(10**9), "T": Fraction(10**12), "P": Fraction(10**15), "E": Fraction(10**18),
    **{suffix: Fraction(1024**power) for power, suffix in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), 1)},
    **{f"{e}{exponent}": Fraction(10) ** exponent for e in "eE" for exponent in range(-12, 13)},
}  # fmt: skip
NUMBERS = st.one_of(
    st.integers(0, 10**6).map(str),
    st.integers(0, 10**19).map(str),
    st.tuples(st.integers(0, 10**4), st.integers(0, 10**12)).map(lambda pair: f"{pair[0]}.{pair[1]}"),
    st.integers(0, 10**6).map(lambda number: f".{number}"),
    st.integers(0, 10**6).map(lambda number: f"{number}."),
)
TEXTS = st.tuples(st.sampled_from(["", "+", "-"]), NUMBERS, st.sampled_from(sorted(SUFFIXES))).map("".join)


def oracle(text: str) -> Fraction:
    """The amount by rational arithmetic, rounded away from zero at 10⁻⁹."""
    number = text.lstrip("+-")
    suffix = number.lstrip("0123456789.")
    digits = number[: len(number) - len(suffix)].strip()
    whole, _, part = digits.partition(".")
    exact = (Fraction(int(whole or 0)) + (Fraction(int(part), 10 ** len(part)) if part else 0)) * SUFFIXES[suffix]
    nanos = -((-exact * 10**9) // 1)
    return Fraction(nanos, 10**9) * (-1 if text.startswith("-") else 1)


def parsed(text: str) -> Quantity:
    amount = oracle(text)
    if abs(amount) > LARGEST:
        with pytest.raises(QuantityError):
            Quantity.parse(text)
        assume(False)
    return Quantity.parse(text)


@given(TEXTS)
@example("0.5n")
@example("7Ei")
@example("9223372036854775807")
@example("9223372036854775807.1")
@example("1E")
@example("1E3")
def test_an_amount_is_what_rational_arithmetic_says(text: str):
    quantity = parsed(text)
    assert Fraction(quantity.value) == oracle(text)


@given(TEXTS)
def test_the_canonical_form_means_the_same_and_stays(text: str):
    quantity = parsed(text)
    canonical = str(quantity)
    assert "." not in canonical
    assert Quantity.parse(canonical) == quantity
    assert str(Quantity.parse(canonical)) == canonical
    assert oracle(canonical) == oracle(text)


@given(TEXTS, TEXTS)
def test_order_and_equality_go_by_the_amount(one: str, other: str):
    a, b = parsed(one), parsed(other)
    assert (a < b, a == b, a > b) == (oracle(one) < oracle(other), oracle(one) == oracle(other), oracle(one) > oracle(other))
    assert same_quantity(one, other) is (oracle(one) == oracle(other))
    if a == b:
        assert hash(a) == hash(b)


@given(TEXTS, TEXTS)
def test_sums_and_differences_are_exact(one: str, other: str):
    a, b = parsed(one), parsed(other)
    assume(abs(oracle(one)) + abs(oracle(other)) <= LARGEST)
    assert Fraction((a + b).value) == oracle(one) + oracle(other)
    assert a + b - b == a
    assert a - a == Quantity(0)
    assert (-a).nanos == -a.nanos


@given(TEXTS, st.integers(-1000, 1000), st.integers(1, 8))
def test_multiples_are_exact_or_rounded_away_from_zero(text: str, factor: int, places: int):
    quantity = parsed(text)
    assume(abs(oracle(text)) * 1000 <= LARGEST)
    assert Fraction((quantity * factor).value) == oracle(text) * factor
    exact = oracle(text) * Fraction(factor, 10**places)
    nanos = -((-abs(exact) * 10**9) // 1)
    assert abs((quantity * Decimal(factor).scaleb(-places)).nanos) == nanos


@given(st.text(max_size=12))
def test_any_text_is_a_quantity_or_an_error_of_ours(text: str):
    try:
        quantity = Quantity.parse(text)
    except QuantityError:
        return
    assert str(Quantity.parse(str(quantity))) == str(quantity)
