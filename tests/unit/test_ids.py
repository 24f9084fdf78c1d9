"""Ids that are the same for ever."""

import pytest

from ipe_events.errors import SchemaError
from ipe_events.events.ids import ChangeId, derived_id, parse_change_id

POD = "3f1c/0//pods/9a2e/1234/added"


def test_a_change_id_says_what_the_change_is():
    change = parse_change_id(POD)
    assert change == ChangeId("3f1c", 0, "", "pods", "9a2e", "1234", "added")
    assert str(change) == POD


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a/b",
        POD + "/x",
        "/0//pods/u/1/added",
        "c/0//pods//1/added",
        "c/0//pods/u//added",
        "c/0///u/1/added",
        "c/-1//pods/u/1/added",
        "c/01//pods/u/1/added",
        "c/٣//pods/u/1/added",
        "c/" + "9" * 5_000 + "//pods/u/1/added",
    ],
)
def test_what_is_no_change_id_is_refused_in_one_short_line(text: str):
    with pytest.raises(SchemaError, match="is not the id of a change") as caught:
        parse_change_id(text)
    assert len(str(caught.value)) < 500


def test_derived_ids_depend_on_the_parts_and_on_where_they_end():
    # pinned: an id that changes between releases would make every handler publish its outputs twice
    assert derived_id("guard", "c/0//pods/u/1/added", 0) == "e360927f8a317927c8e8fe4e6eae1dc6"
    assert len({derived_id("a", "b"), derived_id("ab"), derived_id("ab", ""), derived_id("", "ab"), derived_id("b", "a")}) == 5
    assert derived_id("x", 1) == derived_id("x", "1")
