"""Where a value stands in a Kubernetes object: JSON pointers, keyed paths, and selectors for many of them.

Three notations, one idea. A *pointer* (RFC 6901, ``/spec/containers/0/image``) is what the API's patches speak, and it means
something else as soon as an item is inserted. A *keyed path* names the item instead of its position
(``/spec/containers[name=app]/image``): it stays true while the list changes, so findings, ledgers and ignore rules speak it. A
*selector* is a keyed path with wildcards (``/spec/containers[*]/image``, ``/metadata/annotations/*``). Objects are plain JSON
(dict, list, str, int, float, bool, None) and are never changed in place: ``put`` and ``drop`` copy what lies on the way and share
the rest.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ipe_events.errors import IpeError

Pointer = tuple[str | int, ...]
"""A location by position: keys of objects and indexes of lists, from the root."""


class PathError(IpeError, LookupError):
    """A pointer or selector is malformed, or leads nowhere in the object at hand."""


KEY_DEFAULTS: Mapping[str, str] = {"protocol": "TCP"}
"""Value of a merge key that an item may leave out."""


class Item(NamedTuple):
    """One item of a keyed list, by its merge keys: ``Item(("containerPort", "protocol"), (80, "TCP"))``."""

    keys: tuple[str, ...]
    values: tuple[str | int, ...]

    def __str__(self) -> str:
        pairs = zip(self.keys, self.values, strict=True)
        return ",".join(f"{_escaped(key, _ITEM_ESCAPES)}={_escaped(str(value), _ITEM_ESCAPES)}" for key, value in pairs)

    def fits(self, value: object) -> bool:
        """Whether an item of a list is the one that is named; what it leaves out counts as its default."""
        return isinstance(value, Mapping) and all(
            str(value.get(key, KEY_DEFAULTS.get(key))) == str(wanted) for key, wanted in zip(self.keys, self.values, strict=True)
        )


KeyedPath = tuple[str | int | Item, ...]
"""A location in which items of keyed lists are named; indexes remain where a list has no keys."""


# --- pointers -------------------------------------------------------------------------------------------------------------


def parse(pointer: str) -> tuple[str, ...]:
    """The unescaped tokens of an RFC 6901 pointer; the empty pointer is the whole document.

    Raises:
        PathError: it does not begin with ``/`` or holds a ``~`` that escapes nothing.
    """
    if pointer == "":
        return ()
    if not pointer.startswith("/"):
        raise PathError(f"JSON pointer {_shown(pointer)} does not begin with `/`", fix=f"write {_shown('/' + pointer)}")
    if _BAD_ESCAPE.search(pointer):
        raise PathError(
            f"JSON pointer {_shown(pointer)} holds a `~` that escapes nothing", fix="write `~` as `~0` and `/` as `~1`"
        )
    return tuple(token.replace("~1", "/").replace("~0", "~") for token in pointer[1:].split("/"))


def pointer(path: Iterable[str | int]) -> str:
    """The RFC 6901 pointer of a location: the inverse of ``parse``."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def get(document: Any, path: str | Iterable[str | int], default: Any = ...) -> Any:
    """The value at a pointer.

    Args:
        document: plain JSON.
        path: a pointer, or its parts; a list takes an index or its decimal text.
        default: what is returned when there is no such value; without it that is an error.

    Raises:
        PathError: the pointer is malformed, or leads nowhere and there is no default; names the part where it ended.
    """
    parts = _parts(path)
    for depth, part in enumerate(parts):
        try:
            document = document[_step(document, part)]
        except (KeyError, IndexError):
            if default is not ...:
                return default
            raise _nowhere(parts, depth, document) from None
    return document


def has(document: Any, path: str | Iterable[str | int]) -> bool:
    """Whether there is a value (null is one) at a pointer.

    Raises:
        PathError: the pointer is malformed.
    """
    missing = object()
    return get(document, path, missing) is not missing


def put(document: Any, path: str | Iterable[str | int], value: Any) -> Any:
    """A document with this value at a pointer; objects that lack on the way are made, ``-`` appends to a list.

    Raises:
        PathError: the pointer is malformed or passes through something that is neither object nor list, or beyond a list's end.
    """
    parts = _parts(path)
    return _put(document, parts, 0, value)


def drop(document: Any, path: str | Iterable[str | int]) -> Any:
    """A document without the value at a pointer.

    Raises:
        PathError: the pointer is malformed, empty, or there is no such value.
    """
    parts = _parts(path)
    if not parts:
        raise PathError("the whole document cannot be dropped from itself")
    get(document, parts)
    parent = get(document, parts[:-1])
    rest: Any
    if isinstance(parent, list):
        index = int(_step(parent, parts[-1]))
        rest = [*parent[:index], *parent[index + 1 :]]
    else:
        rest = {key: value for key, value in parent.items() if key != parts[-1]}
    return _put(document, parts[:-1], 0, rest)


_INDEX = re.compile(r"0|[1-9][0-9]{0,8}")
_BAD_ESCAPE = re.compile(r"~(?![01])")


def _parts(path: str | Iterable[str | int]) -> Pointer:
    return parse(path) if isinstance(path, str) else tuple(path)


def _step(container: Any, part: str | int) -> Any:
    """The key or index that a part means in this container; KeyError when it means nothing there."""
    if isinstance(container, Mapping):
        return part
    if isinstance(container, list):
        if isinstance(part, int) and part >= 0:
            return part
        if isinstance(part, str) and _INDEX.fullmatch(part):
            return int(part)
    raise KeyError(part)


def _put(container: Any, parts: Pointer, depth: int, value: Any) -> Any:
    if depth == len(parts):
        return value
    part = parts[depth]
    if isinstance(container, Mapping):
        if not isinstance(part, str):
            raise _nowhere(parts, depth, container)
        return {**container, part: _put(container.get(part, {}), parts, depth + 1, value)}
    if isinstance(container, list):
        index = len(container) if part == "-" else _index(container, parts, depth)
        inner = container[index] if index < len(container) else {}
        return [*container[:index], _put(inner, parts, depth + 1, value), *container[index + 1 :]]
    raise _nowhere(parts, depth, container)


def _index(container: list[Any], parts: Pointer, depth: int) -> int:
    try:
        index = int(_step(container, parts[depth]))
    except KeyError:
        raise _nowhere(parts, depth, container) from None
    if index >= len(container):
        raise _nowhere(parts, depth, container)
    return index


def _nowhere(parts: Pointer, depth: int, container: Any) -> PathError:
    kind = (
        "an object" if isinstance(container, Mapping) else "a list" if isinstance(container, list) else "neither object nor list"
    )
    size = f" of {len(container)} items" if isinstance(container, list) else ""
    place = pointer(parts[:depth]) or "the root"
    return PathError(
        f"{_shown(pointer(parts))} leads nowhere: {_shown(place)} is {kind}{size} without {_shown(str(parts[depth]))}"
    )


def _shown(text: str) -> str:
    return repr(text) if len(text) <= 200 else f"{text[:200]!r}… (cut, {len(text):,} characters)"


# --- keyed paths and selectors ----------------------------------------------------------------------------------------------

_SEGMENT_ESCAPES = {"~": "~0", "/": "~1", "[": "~2", "*": "~3"}
_SEGMENT_UNESCAPES = {escape: character for character, escape in _SEGMENT_ESCAPES.items()}
_ITEM_ESCAPES = {**_SEGMENT_ESCAPES, "]": "~4", ",": "~5", "=": "~6"}
_ITEM_UNESCAPES = {escape: character for character, escape in _ITEM_ESCAPES.items()}
_SEGMENT = re.compile(r"/([^/\[]*)((?:\[[^\[\]]*\])?)")


def _escaped(text: str, escapes: Mapping[str, str]) -> str:
    return "".join(escapes.get(character, character) for character in text)


def keyed_text(path: KeyedPath) -> str:
    """A keyed path as people write it: ``/spec/ports[port=80,protocol=TCP]/targetPort``; an index stands in brackets too."""
    return "".join(f"[{part}]" if isinstance(part, Item | int) else "/" + _escaped(part, _SEGMENT_ESCAPES) for part in path)


class _Any(NamedTuple):
    """Wildcard: any key of an object, or (in brackets) any item of a list."""

    items: bool


@dataclass(frozen=True, slots=True)
class Selector:
    """Locations of one shape, e.g. ``/spec/template/spec/containers[*]/resources``.

    A segment is a key or ``*`` (any key); brackets after it choose items of the list there: ``[name=app]``, ``[0]``, ``[*]``.
    ``~0 ~1 ~2 ~3`` stand for ``~ / [ *`` in keys, in brackets also ``~4 ~5 ~6`` for ``] , =``.
    """

    segments: tuple[str | int | Item | _Any, ...]

    @classmethod
    def parse(cls, text: str) -> "Selector":
        """Read a selector.

        Raises:
            PathError: it is malformed.
        """
        segments: list[str | int | Item | _Any] = []
        position = 0
        while position < len(text):
            match = _SEGMENT.match(text, position)
            if not match:
                raise PathError(
                    f"selector {_shown(text)} is malformed at character {position + 1}",
                    fix="e.g. `/spec/containers[name=app]/image`",
                )
            name, choice = match.groups()
            segments.append(_Any(items=False) if name == "*" else _unescaped(name, _SEGMENT_UNESCAPES, text))
            if choice:
                segments.append(_choice(choice[1:-1], text))
            position = match.end()
        return cls(tuple(segments))

    def __str__(self) -> str:
        text = ""
        for segment in self.segments:
            if isinstance(segment, _Any):
                text += "[*]" if segment.items else "/*"
            else:
                text += keyed_text((segment,))
        return text

    def matches(self, path: KeyedPath, *, below: bool = False) -> bool:
        """Whether a keyed path (as ``diff`` reports it) is one of these locations.

        Args:
            path: the location.
            below: whether locations below one of these match too (an ignore rule on a map covers its keys).
        """
        if len(path) < len(self.segments) or (len(path) > len(self.segments) and not below):
            return False
        return all(_same(segment, part) for segment, part in zip(self.segments, path, strict=False))

    def resolve(self, document: Any) -> list[Pointer]:
        """The locations of this shape that exist in a document, by position, in the document's order."""
        return [tuple(found) for found in _resolve(document, self.segments, ())]


def _unescaped(text: str, unescapes: Mapping[str, str], whole: str) -> str:
    def character(match: re.Match[str]) -> str:
        if match[0] not in unescapes:
            raise PathError(f"selector {_shown(whole)} holds {match[0]!r}, which escapes nothing", fix="write `~` as `~0`")
        return unescapes[match[0]]

    return re.sub(r"~.?", character, text, flags=re.DOTALL)


def _choice(text: str, whole: str) -> int | Item | _Any:
    """What stands in brackets: ``*``, an index, or ``key=value,…``."""
    if text == "*":
        return _Any(items=True)
    if _INDEX.fullmatch(text):
        return int(text)
    pairs = [part.partition("=") for part in text.split(",")]
    if any(not key or not sign or "=" in value for key, sign, value in pairs):
        raise PathError(f"selector {_shown(whole)} holds `[{text[:200]}]`", fix="write `[name=app]`, `[0]` or `[*]`")
    keys = tuple(_unescaped(key, _ITEM_UNESCAPES, whole) for key, _, _ in pairs)
    return Item(keys, tuple(_unescaped(value, _ITEM_UNESCAPES, whole) for _, _, value in pairs))


def _same(segment: str | int | Item | _Any, part: str | int | Item) -> bool:
    if isinstance(segment, _Any):
        return isinstance(part, Item | int) if segment.items else isinstance(part, str)
    if isinstance(segment, Item) and isinstance(part, Item):
        # a selector may name fewer keys than the list has: [containerPort=80] covers both protocols
        return segment.fits(dict(zip(part.keys, part.values, strict=True)))
    return type(segment) is type(part) and segment == part


def _resolve(document: Any, segments: tuple[str | int | Item | _Any, ...], done: Pointer) -> Iterator[Pointer]:
    if not segments:
        yield done
        return
    segment, rest = segments[0], segments[1:]
    if isinstance(document, Mapping):
        keys = (
            list(document)
            if segment == _Any(items=False)
            else [segment]
            if isinstance(segment, str) and segment in document
            else []
        )
        for key in keys:
            yield from _resolve(document[key], rest, (*done, key))
    elif isinstance(document, list) and not isinstance(segment, str):
        for index, value in enumerate(document):
            if (
                segment == _Any(items=True)
                or (type(segment) is int and segment == index)
                or (isinstance(segment, Item) and segment.fits(value))
            ):
                yield from _resolve(value, rest, (*done, index))
