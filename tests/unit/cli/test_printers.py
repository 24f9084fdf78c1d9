"""Tables, JSON, YAML and names; what a hostile name can do to a terminal."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
import yaml

from ipe_events.cli.common import Session
from ipe_events.cli.printers import Column, Stream, Table, clean, print_items, print_record

TABLE: Table[dict[str, Any]] = Table(
    columns=(
        Column("NAME", lambda item: item["name"]),
        Column("READY", lambda item: item["ready"]),
        Column("SINCE", lambda item: item["since"], wide=True),
    ),
    name=lambda item: item["name"],
    data=lambda item: item,
    empty="no things",
)
ITEMS = [
    {"name": "one", "ready": True, "since": datetime(2026, 1, 2, tzinfo=UTC)},
    {"name": "a-longer-name", "ready": False, "since": None},
]


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)


def test_a_pipe_gets_aligned_columns_without_colour(capsys):
    print_items(Session(), ITEMS, TABLE)
    assert capsys.readouterr().out == "NAME            READY\none             yes\na-longer-name   no\n"


def test_wide_shows_more_and_headers_can_be_left_out(capsys):
    print_items(Session(output="wide", headers=False), ITEMS, TABLE)
    assert capsys.readouterr().out.splitlines()[0].split() == ["one", "yes", "2026-01-02", "00:00:00+00:00"]


def test_json_and_yaml_have_one_versioned_shape(capsys):
    print_items(Session(output="json"), ITEMS, TABLE)
    as_json = json.loads(capsys.readouterr().out)
    print_items(Session(output="yaml"), ITEMS, TABLE)
    assert yaml.safe_load(capsys.readouterr().out) == as_json
    assert as_json["version"] == 1
    assert as_json["items"][0] == {"name": "one", "ready": True, "since": "2026-01-02T00:00:00+00:00"}


def test_names_are_one_a_line(capsys):
    print_items(Session(output="name"), ITEMS, TABLE)
    assert capsys.readouterr().out == "one\na-longer-name\n"


def test_nothing_is_said_on_standard_error_and_is_an_empty_list_in_json(capsys):
    print_items(Session(), [], TABLE)
    assert capsys.readouterr() == ("", "no things\n")
    print_items(Session(output="json"), [], TABLE)
    assert json.loads(capsys.readouterr().out)["items"] == []


def test_colour_is_forced_and_forbidden_by_environment(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    print_items(Session(), ITEMS, TABLE)
    assert "\x1b[" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    print_items(Session(), ITEMS, TABLE)
    assert "\x1b[" not in capsys.readouterr().out


@pytest.mark.parametrize("evil", ["a\x1b[2Jb", "a\rb", "a\nb", "a\u202eb", "a\x9bb"])
@pytest.mark.parametrize("colour", ["", "1"])
def test_control_characters_never_reach_a_terminal(capsys, monkeypatch, evil, colour):
    monkeypatch.setenv("FORCE_COLOR", colour)
    print_items(Session(headers=False), [{"name": evil, "ready": None, "since": None}], TABLE)
    print_record(Session(), {"name": evil}, TABLE, {"Name": evil})
    out = capsys.readouterr().out
    assert clean(evil) in out
    assert evil not in out


def test_markup_in_a_name_is_text(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    print_items(Session(), [{"name": "[red]x[/red]", "ready": None, "since": None}], TABLE)
    assert "[red]x[/red]" in capsys.readouterr().out


def test_a_stream_prints_json_lines_or_widening_columns(capsys):
    stream = Stream(Session(output="json"), TABLE)
    for item in ITEMS:
        stream.print(item)
    assert [json.loads(line)["name"] for line in capsys.readouterr().out.splitlines()] == ["one", "a-longer-name"]
    stream = Stream(Session(), TABLE, widths=(5, 3))
    for item in ITEMS:
        stream.print(item)
    assert capsys.readouterr().out == "NAME   READY\none    yes\na-longer-name  no\n"
