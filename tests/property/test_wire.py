"""Laws of what travels: subjects, ids, bodies."""

import json
from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st

from ipe_events.errors import SchemaError, SubjectError
from ipe_events.events import Finding, ObjectRef
from ipe_events.events.codec import decode, encode, parse
from ipe_events.events.ids import ChangeId, derived_id, parse_change_id
from ipe_events.subjects import PARTITIONS, TOPICS, Topic, escape, partition, topic_of, unescape

TEXT = st.text(max_size=12)
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=12)
"""With lone surrogates, which a hostile JSON body can bring."""

PART = st.text(st.characters(exclude_characters="/", codec="utf-8"), min_size=1, max_size=12)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False, allow_infinity=False), TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=10,
)


@given(ANY_TEXT)
def test_a_token_comes_back_and_is_one_token(value: str):
    token = escape(value)
    assert unescape(token) == value
    assert token
    assert not set(token) & set(". *>\t\r\n")
    assert token.isascii()


@given(ANY_TEXT, ANY_TEXT)
def test_two_texts_never_share_a_token(one: str, other: str):
    assert (escape(one) == escape(other)) is (one == other)


@given(st.text(st.sampled_from("aZ0-_=F2é."), max_size=8))
def test_a_token_has_one_meaning_or_none(token: str):
    try:
        value = unescape(token)
    except SubjectError:
        return
    assert escape(value) == token


@given(st.sampled_from(TOPICS), st.data())
def test_what_a_topic_formats_it_parses(topic: Topic, data: st.DataObject):
    values = {field: data.draw(TEXT, label=field) for field in topic.fields}
    assume(values.get("group") != "core")  # no API group has that name: it is the token of the one without a name
    subject = topic.format(**values)
    assert topic.parse(subject) == values
    assert topic_of(subject).parse(subject) == values
    assert subject.count(".") == topic.pattern.count(".")


@given(TEXT, TEXT, TEXT)
def test_a_partition_is_one_of_the_partitions(cluster: str, namespace: str, resource: str):
    assert 0 <= partition(cluster, namespace, resource) < PARTITIONS


@given(PART, st.integers(0, 10**17), st.one_of(st.just(""), PART), PART, PART, PART, PART)
def test_a_change_id_comes_back(cluster: str, epoch: int, group: str, resource: str, uid: str, version: str, verb: str):
    change = ChangeId(cluster, epoch, group, resource, uid, version, verb)
    assert parse_change_id(str(change)) == change


@given(st.text(st.sampled_from("a0/é1-"), max_size=30))
def test_a_change_id_has_one_text(text: str):
    try:
        change = parse_change_id(text)
    except SchemaError:
        return
    assert str(change) == text


@given(st.lists(TEXT, max_size=4), st.lists(TEXT, max_size=4))
def test_derived_ids_tell_all_inputs_apart(one: list[str], other: list[str]):
    assert (derived_id(*one) == derived_id(*other)) is (one == other)


@given(st.dictionaries(TEXT, JSON, max_size=3), TEXT)
def test_what_is_written_is_read_and_written_again_the_same(proposal: dict[str, Any], message: str):
    finding = Finding(cluster="c", subject=ObjectRef(resource="pods", name="p"), message=message, proposal=proposal)
    body = encode(finding)
    again = decode(Finding, body)
    assert again == finding
    assert encode(again) == body


@given(st.one_of(st.binary(max_size=40), st.text(st.sampled_from('{}[]",:1eE-.\\ud8 NaIfty'), max_size=30).map(str.encode)))
def test_any_bytes_are_json_or_an_error_of_ours(data: bytes):
    try:
        value = parse(data)
    except SchemaError:
        return
    assert json.loads(json.dumps(value, allow_nan=False)) == value
