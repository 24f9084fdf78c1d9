"""Stretches of time, which people write in many forms."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipe_events.durations import ago, seconds
from ipe_events.errors import UsageError


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("30s", 30),
        ("90s", 90),
        ("1h30m", 5400),
        ("250ms", 0.25),
        ("2d", 172_800),
        ("1.5m", 90),
        ("1d2h3m4s5ms", 93_784.005),
        (5, 5),
        (0.5, 0.5),
    ],
)
def test_a_duration_is_read(text, length):
    assert seconds(text) == pytest.approx(length)


NO_DURATION = ["", "5", "s", "5 s", "-5s", "5sx", "5s,", "1h 30m", "٣s", "٣s5", "1m30", ".5s", "1e3s", "9" * 400 + "d", "1s" * 11]


@pytest.mark.parametrize("value", [*NO_DURATION, True, None, b"5s", ["5s"]])
def test_what_is_no_duration_is_refused(value):
    with pytest.raises(UsageError, match="is not a duration") as refused:
        seconds(value, zero=True)
    assert "1h30m" in refused.value.fix


@pytest.mark.parametrize("value", [0, "0s", "0d0h"])
def test_nothing_is_a_duration_only_where_that_makes_sense(value):
    assert seconds(value, zero=True) == 0
    with pytest.raises(UsageError, match=f"pause {value!r} is not positive"):
        seconds(value, what="pause")


@pytest.mark.parametrize("value", [-1, -0.5, math.inf, math.nan])
def test_a_number_must_be_positive_and_finite(value):
    with pytest.raises(UsageError, match="is not positive"):
        seconds(value, zero=True)


@given(st.integers(0, 400), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999))
def test_parts_add_up(days, hours, minutes, rest, thousandths):
    expected = days * 86_400 + hours * 3_600 + minutes * 60 + rest + thousandths / 1_000
    assert seconds(f"{days}d{hours}h{minutes}m{rest}s{thousandths}ms", zero=True) == pytest.approx(expected)


@given(st.text(alphabet="0123456789.smhd", max_size=12))
def test_any_text_is_read_or_refused(text):
    try:
        length = seconds(text, zero=True)
    except UsageError:
        return
    assert 0 <= length < math.inf
    assert seconds(text + "1s", zero=True) == pytest.approx(length + 1)


@given(st.floats(0, 1e9))
def test_what_is_told_is_a_duration_of_about_that_length(length):
    assert seconds(ago(length), zero=True) == pytest.approx(length, rel=0.26, abs=0.51)
