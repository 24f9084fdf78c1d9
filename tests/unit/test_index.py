"""The index: which sight of an object is news."""

import pytest

from ipe_events.errors import SchemaError
from ipe_events.kube.index import Index


def test_only_what_is_newer_counts() -> None:
    index = Index()
    assert index.put("u", 5, "ns", "a") == "added"
    assert index.put("u", 5, "ns", "a") == ""
    assert index.put("u", 4, "ns", "a") == ""
    assert index.put("u", 6, "ns", "a") == "modified"
    assert index.get("u") == (6, "ns", "a")


def test_a_delete_ranks_above_its_own_version_and_below_later_ones() -> None:
    index = Index()
    index.put("u", 5, "ns", "a")
    assert not index.remove("u", 4)
    assert index.remove("u", 5)
    assert not index.remove("u", 6)


def test_a_relist_is_a_diff() -> None:
    index = Index()
    for number in range(4):
        index.put(f"u{number}", number + 1, "ns", f"n{number}")
    index.begin_list()
    for uid in ("u0", "u2"):
        index.mark(uid)
    assert index.end_list(10) == [("u1", (2, "ns", "n1")), ("u3", (4, "ns", "n3"))]
    assert len(index) == 2


def test_a_broken_list_deletes_nothing() -> None:
    index = Index()
    index.put("u", 1, "ns", "a")
    index.begin_list()
    index.abort_list()
    assert index.end_list(10) == []
    assert "u" in index


def test_what_came_after_the_list_is_not_missing_from_it() -> None:
    index = Index()
    index.put("u", 11, "ns", "a")
    index.begin_list()
    assert index.end_list(10) == []


def test_a_replayed_delete_is_not_resurrected() -> None:
    index = Index()
    index.replay("u", 5, "ns", "a", deleted=False)
    index.replay("u", 7, "ns", "a", deleted=True)
    assert index.put("u", 5, "ns", "a") == ""
    assert index.put("u", 7, "ns", "a") == ""
    assert not index.remove("u", 7)
    index.forget_deletes()
    assert index.put("u", 8, "ns", "a") == "added"


def test_forgotten_versions_are_news_again() -> None:
    index = Index()
    index.put("old", 5, "ns", "a")
    index.put("new", 9, "ns", "b")
    index.forget_versions(above=5)
    assert index.put("old", 5, "ns", "a") == ""
    assert index.put("new", 9, "ns", "b") == "modified"


def test_a_stored_index_is_the_same() -> None:
    index = Index()
    for number in range(100):
        index.put(f"uid-{number}", number, f"ns-{number % 3}" if number % 7 else "", f"name-{number}")
    again = Index.load(index.copy().dump())
    assert dict(again.items()) == dict(index.items())
    assert again.put("uid-5", 5, "ns-2", "name-5") == ""


@pytest.mark.parametrize("data", [b"", b"garbage", Index().dump()[:-3]])
def test_a_damaged_index_is_refused(data: bytes) -> None:
    with pytest.raises(SchemaError):
        Index.load(data)
