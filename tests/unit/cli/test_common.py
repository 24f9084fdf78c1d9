"""Durations, which users type in many forms."""

import pytest

from ipe_events.cli.common import parse_duration
from ipe_events.errors import UsageError


@pytest.mark.parametrize(("text", "seconds"), [("30s", 30), ("1h30m", 5400), ("500ms", 0.5), ("2d", 172_800), ("1.5m", 90)])
def test_a_duration_is_read(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "s", "5 s", "-5s", "5sx", "5s,", "1h 30m", "٣s5"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(UsageError, match="not a duration"):
        parse_duration(text)
