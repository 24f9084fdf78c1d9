"""Reads the agent's YAML so that a mistake is answered with its place.

PyYAML's constructor forgets where a value stood, so the file is composed first and the position of every key is kept beside the
data. pydantic then tells *what* is wrong by a path of keys; together they make the one line that a person needs:
``agent.yaml:14: grants[0].mdoe: unknown key (fix: did you mean `mode`?)``. Duplicate keys are refused, which plain YAML loaders
overlook.
"""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from ipe_events.errors import ConfigError

Path_ = tuple[str | int, ...]
ModelT = TypeVar("ModelT", bound=BaseModel)

MAX_BYTES = 4 << 20
"""No configuration is larger; a wrong path to some huge file must not fill the memory."""

MAX_NODES = 200_000
"""Keys, items and values of one document; aliases count each time they are used (a few lines can expand to millions)."""


@dataclass(frozen=True, slots=True)
class Document:
    """One YAML document of a file.

    Attributes:
        source: the file, as the user named it.
        data: its content; always a mapping.
        lines: path of keys → line, counted from 1.
    """

    source: str
    data: dict[str, Any]
    lines: dict[Path_, int]

    def place(self, path: Path_) -> str:
        """``file:line`` of the deepest part of ``path`` that the document holds."""
        while path and path not in self.lines:
            path = path[:-1]
        return f"{self.source}:{self.lines.get(path, 1)}"


def read_documents(file: str | Path) -> list[Document]:
    """The documents of a YAML file, empty ones left out.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or a document is not a mapping.
    """
    source = str(file)
    try:
        with Path(file).open("rb") as handle:
            raw = handle.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read the file: {error.strerror}", where=source, fix="check path and permissions") from error
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"the file is larger than {MAX_BYTES >> 20} MiB", where=source, fix="is this the right file?")
    return parse_documents(raw, source)


def parse_documents(raw: bytes | str, source: str) -> list[Document]:
    """The documents in YAML text; ``source`` names it in errors.

    Raises:
        ConfigError: the text is not YAML, or a document is not a mapping.
    """
    documents = []
    try:
        for node in yaml.compose_all(raw, Loader=yaml.CSafeLoader):
            lines: dict[Path_, int] = {}
            data = _Reader(source, lines).construct(node, ())
            if data is None:
                continue
            if not isinstance(data, dict):
                raise ConfigError("a document is not a mapping of keys", where=f"{source}:{node.start_mark.line + 1}")
            documents.append(Document(source, data, lines))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"not valid YAML: {problem}", where=f"{source}{line}") from error
    return documents


def validate(document: Document, model: type[ModelT], data: dict[str, Any], base: Path_ = ()) -> ModelT:
    """``data`` (found at ``base`` in the document) as a model.

    Raises:
        ConfigError: names file and line, the path to the first wrong key, its value, and the nearest known key.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first, *others = error.errors(include_url=False)
        path = tuple(part for part in first["loc"])
        where = f"{document.place((*base, *path))}: {_dotted((*base, *path))}"
        more = f" (and {len(others)} more mistakes)" if others else ""
        if first["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(path[-1]), list(_known_keys(model, path[:-1])), n=1, cutoff=0.6)
            known = ", ".join(sorted(_known_keys(model, path[:-1])))
            fix = f"did you mean `{near[0]}`?" if near else f"known keys here: {known}"
            raise ConfigError(f"unknown key{more}", where=where, fix=fix) from None
        if first["type"] == "missing":
            raise ConfigError(f"required, but missing{more}", where=where) from None
        message = first["msg"].removeprefix("Value error, ")
        shown = repr(first["input"])
        value = f", not {shown if len(shown) <= 120 else shown[:117] + '...'}" if not isinstance(first["input"], dict) else ""
        raise ConfigError(f"{message[0].lower()}{message[1:]}{value}{more}", where=where) from None


class _Reader:
    """Turns a composed document into data and notes the line of every key and item on the way."""

    def __init__(self, source: str, lines: dict[Path_, int]) -> None:
        self._source = source
        self._lines = lines
        self._nodes = 0

    def construct(self, node: yaml.Node, path: Path_) -> Any:
        """The value of a node, which stands at ``path``."""
        line = node.start_mark.line + 1
        self._lines.setdefault(path, line)
        self._nodes += 1
        if self._nodes > MAX_NODES or len(path) > 50:
            raise ConfigError("too large or nested too deeply", where=f"{self._source}:{line}", fix="do not nest aliases")
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.construct(item, (*path, index)) for index, item in enumerate(node.value)]
        return _scalar(node)

    def _mapping(self, node: yaml.MappingNode, path: Path_) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
                raise ConfigError("keys are plain text", where=f"{self._source}:{line}")
            key = str(key_node.value)
            if key in mapping:
                raise ConfigError(f"key {key!r} appears twice", where=f"{self._source}:{line}: {_dotted((*path, key))}")
            self._lines[*path, key] = line
            mapping[key] = self.construct(value_node, (*path, key))
        return mapping


def _scalar(node: yaml.Node) -> Any:
    """A scalar by YAML's own rules, but a date stays the text that was written."""
    if node.tag == "tag:yaml.org,2002:timestamp":
        return node.value
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(node)
    finally:
        loader.dispose()


def _known_keys(model: type[BaseModel], path: Path_) -> Iterator[str]:
    """The keys that the (sub)model at ``path`` knows, as they are written in YAML."""
    current: Any = model
    for part in path:
        if isinstance(part, int):
            continue
        field = next((info for name, info in current.model_fields.items() if part in (name, info.alias)), None)
        current = _model_in(field.annotation) if field is not None else None
        if current is None:
            return
    for name, info in current.model_fields.items():
        yield info.alias or name


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that an annotation such as ``tuple[Grant, ...]`` or ``Lease | None`` holds."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _model_in(argument)
        if found is not None:
            return found
    return None


def _dotted(path: Path_) -> str:
    """``("grants", 0, "mode")`` as ``grants[0].mode``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text or "the document"
