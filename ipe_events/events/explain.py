"""Validation errors in words: where, what was found there, and what was expected.

pydantic reports a list of records whose locations hold tags of unions and whose inputs can be megabytes. A person wants one line:
the path as they wrote it, the value (cut, and said so), the rule, and, for a name that does not exist, the names that come near.
Bodies from the bus (``ipe_events.events.codec``) and documents that people write (``ipe_events.policy``) are explained alike.
"""

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

VALUE_LIMIT = 200
"""How many characters of an offending value an error message quotes."""

Location = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """The first thing that is wrong with a document.

    Attributes:
        location: keys and indexes from the root, as they occur in the document.
        rule: what was expected, as a sentence without a full stop.
        value: the offending value, quoted and cut; empty when something is missing.
        near: names that exist and look like the one that does not.
        others: how many further problems there are.
    """

    location: Location
    rule: str
    value: str
    near: tuple[str, ...]
    others: int

    @property
    def path(self) -> str:
        """``spec.clusters[0].name``; ``(root)`` for the document itself."""
        return path_text(self.location)

    def __str__(self) -> str:
        value = f": value {self.value}" if self.value else ""
        near = f" (did you mean {' or '.join(map(repr, self.near))}?)" if self.near else ""
        others = f" (and {self.others} more problem{'s' if self.others > 1 else ''})" if self.others else ""
        return f"{self.path}{value}: {self.rule}{near}{others}"


def path_text(location: Location) -> str:
    """A location as people write it: keys joined by dots, indexes in brackets; ``(root)`` when empty."""
    text = ""
    for part in location:
        plain = isinstance(part, str) and part.replace("_", "").replace("-", "").isalnum()
        text += f".{part}" if plain else f"[{json.dumps(part)}]"
    return quote(text.removeprefix("."), raw=True) or "(root)"


def quote(value: object, *, raw: bool = False) -> str:
    """A value in at most ``VALUE_LIMIT`` characters; a cut is said, with the full length.

    Args:
        value: anything; text and plain JSON are shown as JSON.
        raw: the value is text that is shown as it is.
    """
    text = value if raw and isinstance(value, str) else json.dumps(value, default=repr)
    return text if len(text) <= VALUE_LIMIT else f"{text[:VALUE_LIMIT]}… (cut, {len(text):,} characters)"


def explain(error: ValidationError, document: object, model: type[BaseModel]) -> Problem:
    """What pydantic found wrong with a document.

    Args:
        error: raised by ``model``.
        document: what was validated, as plain JSON.
        model: whose fields are suggested for an unknown name.
    """
    details = error.errors(include_url=False, include_context=False)
    unknown_first = sorted(details, key=lambda detail: detail["type"] != "extra_forbidden")
    first = unknown_first[0]
    location = _real_location(first["loc"], document)
    rule, value = first["msg"].removeprefix("Value error, "), quote(first["input"])
    near: tuple[str, ...] = ()
    if first["type"] == "extra_forbidden":
        known = sorted(set(_names_at(model, location[:-1], document)))
        near = tuple(difflib.get_close_matches(str(location[-1]), known, n=2))
        rule = f"unknown field, known here: {quote(', '.join(known), raw=True)}" if known else "unknown field"
    elif first["type"] == "missing":
        rule, value = "required, but missing", ""
    return Problem(location, rule, value, near, len(details) - 1)


def _real_location(location: Sequence[str | int], document: object) -> Location:
    """The location without the tags of unions: a tag is a part that is not in the document although more parts follow."""
    real: list[str | int] = []
    for position, part in enumerate(location):
        inside = (isinstance(document, Mapping) and part in document) or (
            isinstance(document, Sequence) and not isinstance(document, str) and isinstance(part, int) and part < len(document)
        )
        if inside:
            document = document[part]  # type: ignore[index]  # `inside` says that it is a container that holds the part
        elif position < len(location) - 1:
            continue
        real.append(part)
    return tuple(real)


def _names_at(model: type[BaseModel], location: Location, document: object) -> Iterator[str]:
    """Names of the fields that the model knows at a location (of every variant of a union)."""
    root = model.model_json_schema()
    schemas: list[dict[str, Any]] = list(_variants(root, root, document))
    for part in location:
        document = document[part] if isinstance(document, Mapping | list) else None  # type: ignore[index]  # a real location
        inner = [
            schema.get("items", {}) if isinstance(part, int) else schema.get("properties", {}).get(part) for schema in schemas
        ]
        outer = [schema.get("additionalProperties") for schema in schemas if not isinstance(part, int)]
        schemas = [
            variant for schema in (*inner, *outer) if isinstance(schema, dict) for variant in _variants(schema, root, document)
        ]
    for schema in schemas:
        yield from schema.get("properties", {})


def _variants(schema: dict[str, Any], root: dict[str, Any], document: object) -> Iterator[dict[str, Any]]:
    """The object schemas behind references and unions; of a tagged union the one that the document's tag names."""
    if "$ref" in schema:
        yield from _variants(root["$defs"][schema["$ref"].rpartition("/")[2]], root, document)
        return
    tag = schema.get("discriminator", {})
    chosen = document.get(tag["propertyName"]) if tag and isinstance(document, Mapping) else None
    if isinstance(chosen, str) and chosen in tag["mapping"]:
        yield from _variants({"$ref": tag["mapping"][chosen]}, root, document)
        return
    for variant in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        yield from _variants(variant, root, document)
    yield schema
