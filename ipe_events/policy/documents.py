"""YAML that people write, read so that a mistake is answered with its place.

PyYAML forgets where a value stood, overlooks a key that occurs twice, turns ``22:30`` into the number 1350, and its C parser ends
the whole process on text that is nested deeply enough. So the text is scanned for depth first, composed into nodes, and built
into plain data here, with the line of every key kept beside it. An alias counts as what it expands to, each time it is used. What
is wrong with the content is explained as for bodies from the bus, with file and line before it.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from yaml.constructor import SafeConstructor

from ipe_events.errors import ConfigError
from ipe_events.events.explain import Location, explain, path_text, quote

M = TypeVar("M", bound=BaseModel)

MAX_BYTES = 4 * 1024 * 1024
"""Bytes of a file; a wrong path to something huge must not fill the memory."""

MAX_NODES = 100_000
"""Keys, items and values of one document, aliases expanded."""

MAX_DEPTH = 60
"""How deep mappings and lists may nest."""

_TAG = "tag:yaml.org,2002:"
_BUILT = SafeConstructor()


@dataclass(frozen=True, slots=True)
class Document:
    """One YAML document.

    Attributes:
        source: the file, as the user named it.
        data: its content: plain JSON, a mapping.
        lines: location of a key or item → its line, counted from 1.
    """

    source: str
    data: dict[str, Any]
    lines: dict[Location, int]

    def place(self, location: Location) -> str:
        """``file:line`` of the deepest part of a location that the document holds."""
        while location and location not in self.lines:
            location = location[:-1]
        return f"{self.source}:{self.lines.get(location, 1)}"

    def read(self, model: type[M]) -> M:
        """The document as a model.

        Raises:
            ConfigError: names file and line, the path, the value, the rule, and near names of an unknown key.
        """
        try:
            return model.model_validate(self.data)
        except ValidationError as error:
            problem = explain(error, self.data, model)
            raise ConfigError(str(problem), where=self.place(problem.location)) from error


def read_documents(file: str | Path) -> list[Document]:
    """The documents of a YAML file, empty ones left out.

    Raises:
        ConfigError: it cannot be read, is too large, is not YAML, or a document is not a mapping.
    """
    try:
        with Path(file).open("rb") as handle:
            raw = handle.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read the file: {error.strerror}", where=str(file), fix="check path and permissions") from error
    return parse_documents(raw, str(file))


def parse_documents(raw: bytes | str, source: str) -> list[Document]:
    """The documents in YAML text; ``source`` names it in errors.

    Raises:
        ConfigError: as ``read_documents``.
    """
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"larger than {MAX_BYTES // 1024**2} MiB", where=source, fix="is this the right file?")
    try:
        _check_depth(raw, source)
        nodes = list(yaml.compose_all(raw, Loader=yaml.CSafeLoader))
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"not YAML: {error.problem}", where=f"{source}{line}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"not YAML: {quote(str(error).splitlines()[0], raw=True)}", where=source) from error
    documents = []
    for node in nodes:
        lines: dict[Location, int] = {}
        data = _Builder(source, lines).value(node, ())
        if data is None:
            continue
        if not isinstance(data, dict):
            raise ConfigError("the document is not a mapping of keys", where=f"{source}:{_line(node)}")
        documents.append(Document(source, data, lines))
    return documents


def _check_depth(raw: bytes | str, source: str) -> None:
    """Refuse deep nesting before the composer sees it, which recurses in C without a limit."""
    depth = 0
    for event in yaml.parse(raw, Loader=yaml.CSafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise ConfigError(f"nested deeper than {MAX_DEPTH} levels", where=f"{source}:{_line(event)}")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _line(part: yaml.Node | yaml.Event) -> int:
    return part.start_mark.line + 1 if part.start_mark else 1


class _Builder:
    """Builds one document's data and notes the line of every key and item."""

    def __init__(self, source: str, lines: dict[Location, int]) -> None:
        self._source = source
        self._lines = lines
        self._nodes = 0

    def value(self, node: yaml.Node, location: Location) -> Any:
        """The data of a node, which stands at this location."""
        line = _line(node)
        self._lines.setdefault(location, line)
        self._nodes += 1
        if self._nodes > MAX_NODES or len(location) > MAX_DEPTH:
            raise self._error(location, line, f"more than {MAX_NODES:,} values", fix="do not nest aliases")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, location)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*location, index)) for index, item in enumerate(node.value)]
        return self._scalar(node, location, line)

    def _mapping(self, node: yaml.MappingNode, location: Location) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = _line(key_node)
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == f"{_TAG}merge":
                raise self._error(location, line, "a key is not plain text", fix="write `key: value`, without `<<` or `?`")
            key = str(key_node.value)
            if key in mapping:
                raise self._error((*location, key), line, "the key occurs twice", fix="keep one of them")
            self._lines[(*location, key)] = line
            mapping[key] = self.value(value_node, (*location, key))
        return mapping

    def _scalar(self, node: yaml.Node, location: Location, line: int) -> Any:
        kind = node.tag.removeprefix(_TAG)
        if kind == "timestamp" or (kind in ("int", "float") and ":" in node.value):
            return node.value  # a date or a time of day stays the text that was written
        if kind not in ("null", "bool", "int", "float", "str"):
            raise self._error(location, line, f"tag {node.tag!r} is not allowed", fix="write plain YAML")
        try:
            value = _BUILT.construct_object(node)
        except (ValueError, yaml.YAMLError) as error:
            raise self._error(location, line, f"{quote(node.value)} is no {kind}") from error
        finally:
            _BUILT.constructed_objects.clear()
        if isinstance(value, float) and not math.isfinite(value):
            raise self._error(location, line, f"{quote(node.value)} is not a finite number")
        return value

    def _error(self, location: Location, line: int, message: str, *, fix: str = "") -> ConfigError:
        return ConfigError(f"{path_text(location)}: {message}", where=f"{self._source}:{line}", fix=fix)
