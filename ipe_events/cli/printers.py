"""How items reach standard output: a table for people, JSON or YAML for programs, names for pipes.

A command describes its items once by a ``Table`` (columns as functions of an item, which of them are for ``-o wide``, how an item
becomes a JSON object, what its name is) and hands the items over. On a terminal ``rich`` draws the table, elsewhere it is plain
aligned columns. JSON and YAML have one versioned shape, ``{"version": 1, "items": […]}``; streams (``tail``) print one JSON
object per line. Control characters, which a cluster or bus peer could use to fool a terminal, are shown escaped.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

import click

from ipe_events.cli.common import Session

T = TypeVar("T")

SHAPE_VERSION = 1
"""Version of the JSON and YAML shape; grows when a reader would break."""

STYLES = {
    "connected": "green", "applied": "green", "ok": "green", "enforce": "green",
    "syncing": "yellow", "connecting": "yellow", "refused": "yellow", "expired": "yellow", "pending": "yellow",
    "disconnected": "red", "failed": "red", "unknown": "red", "high": "red", "critical": "red", "gap": "red",
}  # fmt: skip
"""Words that get a colour on a terminal."""


@dataclass(frozen=True, slots=True)
class Column(Generic[T]):
    """One column: its header, what it shows of an item, and whether only ``-o wide`` shows it."""

    header: str
    value: Callable[[T], object]
    wide: bool = False


@dataclass(frozen=True, slots=True)
class Table(Generic[T]):
    """How one kind of item is printed.

    Attributes:
        columns: left to right.
        name: an item's name, for ``-o name``.
        data: an item as a JSON object.
        empty: what to tell a person when there is nothing.
    """

    columns: Sequence[Column[T]]
    name: Callable[[T], str]
    data: Callable[[T], Mapping[str, Any]]
    empty: str = "nothing found"


def clean(value: object) -> str:
    """Text that is safe on a terminal: control characters escaped, None empty, booleans as yes and no."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = str(value)
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def print_items(session: Session, items: Iterable[T], table: Table[T]) -> None:
    """Print items as the session's ``-o`` says."""
    found = list(items)
    if session.output in {"json", "yaml"}:
        _print_data({"version": SHAPE_VERSION, "items": [dict(table.data(item)) for item in found]}, session.output)
    elif session.output == "name":
        for item in found:
            click.echo(clean(table.name(item)))
    elif not found:
        session.note(table.empty)
    else:
        columns = [column for column in table.columns if not column.wide or session.output == "wide"]
        rows = [[clean(column.value(item)) for column in columns] for item in found]
        _print_table([column.header for column in columns], rows, shown=session.headers)


def print_record(session: Session, item: T, table: Table[T], fields: Mapping[str, object]) -> None:
    """Print one item at length: its fields as ``key: value`` lines for people, otherwise like a list of one."""
    if session.output in {"json", "yaml", "name"}:
        print_items(session, [item], table)
        return
    width = max(map(len, fields), default=0) + 1
    for key, value in fields.items():
        click.echo(f"{key + ':':<{width}} {clean(value)}".rstrip())


class Stream(Generic[T]):
    """Prints items one by one as they come (``tail``, ``--watch``).

    Tables get fixed column widths from ``widths``; JSON is one object per line, YAML one document per item.
    """

    def __init__(self, session: Session, table: Table[T], widths: Sequence[int] = ()) -> None:
        self._session = session
        self._table = table
        self._columns = [column for column in table.columns if not column.wide or session.output == "wide"]
        self._widths = [*widths, *([0] * len(self._columns))]
        self._header_due = session.headers

    def print(self, item: T) -> None:
        """Print one item and flush, so that a pipe sees it at once."""
        if self._session.output == "json":
            click.echo(to_json(self._table.data(item), indent=None))
        elif self._session.output == "yaml":
            click.echo("---\n" + _yaml(self._table.data(item)), nl=False)
        elif self._session.output == "name":
            click.echo(clean(self._table.name(item)))
        else:
            if self._header_due:
                self._header_due = False
                self._line([column.header for column in self._columns])
            self._line([clean(column.value(item)) for column in self._columns])
        sys.stdout.flush()

    def _line(self, cells: Sequence[str]) -> None:
        self._widths = [max(width, len(cell)) for width, cell in zip(self._widths, cells, strict=False)]
        click.echo("  ".join(f"{cell:<{width}}" for cell, width in zip(cells, self._widths, strict=False)).rstrip())


def colourful() -> bool:
    """Whether standard output takes colour: a terminal, or ``FORCE_COLOR``; never with ``NO_COLOR``."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or sys.stdout.isatty()


def _print_data(value: Mapping[str, Any], output: str) -> None:
    click.echo(to_json(value, indent=2) if output == "json" else _yaml(value).rstrip("\n"))


def tell(text: str) -> None:
    """Print a line that may hold colour; it is taken out where colour is not wanted."""
    click.echo(text, color=colourful())


def to_json(value: object, *, indent: int | None = 2) -> str:
    """JSON text of anything that a payload can hold; dates as RFC 3339."""
    return json.dumps(value, indent=indent, ensure_ascii=False, default=_plain)


def _yaml(value: object) -> str:
    import yaml

    text: str = yaml.safe_dump(json.loads(to_json(value, indent=None)), sort_keys=False, allow_unicode=True)
    return text


def _plain(value: object) -> object:
    """What ``json`` does not know: dates and pydantic models."""
    if isinstance(value, datetime):
        return value.isoformat()
    dump = getattr(value, "model_dump", None)
    if dump is not None:
        return dump(mode="json")
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _print_table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, shown: bool) -> None:
    if colourful():
        _print_rich(headers, rows, shown=shown)
        return
    lines = [headers, *rows] if shown else rows
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        click.echo("   ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip())


def _print_rich(headers: Sequence[str], rows: Sequence[Sequence[str]], *, shown: bool) -> None:
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    table = RichTable(box=None, pad_edge=False, show_header=shown, header_style="bold", padding=(0, 3, 0, 0))
    for header in headers:
        table.add_column(header, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style=STYLES.get(cell.split(":")[0].lower(), "")) for cell in row))
    Console(file=sys.stdout, force_terminal=True, highlight=False).print(table)
