"""From the API server's bytes to (verb, metadata, body) without building the object.

Decoding whole objects is what makes other watchers slow. Here a big chunk is cut at its line breaks; the envelope
``{"type":…,"object":…}`` is recognised by its fixed prefix, so that one typed pass of msgspec over the object both proves that it
is one complete JSON object and yields the few metadata fields that we need; the body stays a slice of the chunk. An envelope that
is written otherwise is decoded the long way, with the same result.

Lists come item by item: ``ListSplitter`` finds where an item ends by trying the place where the next one seems to start, which
the decoder confirms (a JSON object has one end), and falls back on counting braces outside strings. What surrounds the items is
small and decoded at the end, since some servers write the list's metadata after them. Items get the ``kind`` and ``apiVersion``
that lists leave out: the same object has the same bytes from a list and from a watch.
"""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple, cast

import msgspec

from ipe_events.errors import KubeError

Body = bytes | memoryview
"""An object's JSON, possibly a slice of what was read."""

MAX_LINE = 64 << 20
"""Bytes of one object beyond which the server is not believed (etcd's own limit is 1.5 MiB)."""

_ENVELOPE = b'{"type":"%b","object":'
_VERBS = {ord(verb[0]): (verb, _ENVELOPE % verb.encode()) for verb in ("ADDED", "MODIFIED", "DELETED")}
_VERB_AT = len(b'{"type":"')
_BRACE = ord("}")
_QUOTE = ord('"')


class Meta(msgspec.Struct, gc=False):
    """What every change needs of an object's metadata."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resourceVersion: str = ""  # noqa: N815 - the API's own names here and below


class Head(msgspec.Struct, gc=False):
    """An object as far as we read it."""

    metadata: Meta
    kind: str = ""
    apiVersion: str = ""  # noqa: N815


class Wants(NamedTuple):
    """What to decode beyond ``Meta``; each costs about a microsecond.

    Attributes:
        labels: for selections.
        managed_fields: to hand out bodies without them.
    """

    labels: bool = False
    managed_fields: bool = False


PLAIN = Wants()


class _Labelled(Meta, gc=False):
    labels: dict[str, str] | None = None


class _Managed(Meta, gc=False):
    managedFields: msgspec.Raw = msgspec.Raw()  # noqa: N815


class _LabelledManaged(_Labelled, gc=False):
    managedFields: msgspec.Raw = msgspec.Raw()  # noqa: N815


def labels_of(meta: Meta) -> dict[str, str]:
    """The labels of an object that was decoded with them."""
    return getattr(meta, "labels", None) or {}


def _decoder(meta: type[Meta]) -> Callable[[Body], Head]:
    shape = msgspec.defstruct("_Head", [("metadata", meta)], bases=(Head,), gc=False)
    return cast(Callable[[Body], Head], msgspec.json.Decoder(shape).decode)


def head_of(body: Body, where: str, wants: Wants = PLAIN) -> Head:
    """What we read of one object.

    Raises:
        KubeError: it is none.
    """
    try:
        return _DECODE[wants](body)
    except _FAILURES as error:
        raise KubeError(f"the answer is no object: {error}", where=where) from error


WatchEvent = tuple[str, Head, Body, bool]
"""One line of a watch: its type as the API writes it, the object's head, its bytes, and whether they lie in the last chunk
entirely (a plain tuple: one is made for every event)."""


class _Envelope(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _BookmarkMeta(msgspec.Struct):
    resourceVersion: str = ""  # noqa: N815
    annotations: dict[str, str] | None = None


class _Bookmark(msgspec.Struct):
    metadata: _BookmarkMeta


class Bookmark(NamedTuple):
    """A bookmark: the watch is complete up to ``rv``; ``initial_end``: the initial events of a WatchList are over."""

    rv: str
    initial_end: bool


_decode_envelope = msgspec.json.Decoder(_Envelope).decode
_decode_bookmark = msgspec.json.Decoder(_Bookmark).decode
_DECODE: dict[Wants, Callable[[Body], Head]] = {
    Wants(): _decoder(Meta),
    Wants(labels=True): _decoder(_Labelled),
    Wants(managed_fields=True): _decoder(_Managed),
    Wants(labels=True, managed_fields=True): _decoder(_LabelledManaged),
}

INITIAL_EVENTS_END = "k8s.io/initial-events-end"
_FAILURES = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding raises; the last for objects that somebody nested a thousand levels deep."""


class WatchDecoder:
    """Cuts what a watch delivers into events; one per connection, since it keeps the unfinished line.

    Args:
        where: the place for error messages, e.g. ``prod-eu: pods``.
        wants: what to decode beyond the names.
    """

    def __init__(self, where: str, wants: Wants = PLAIN) -> None:
        self._where = where
        self._decode = _DECODE[wants]
        self._strip = wants.managed_fields
        self._rest = b""

    @property
    def pending(self) -> int:
        """Bytes of a line whose end has not come."""
        return len(self._rest)

    def feed(self, chunk: bytes) -> Iterator[WatchEvent]:
        """The events that ``chunk`` completes; bodies are slices of it, so they hold it in memory.

        Raises:
            KubeError: a line is not a watch event, or grows without end.
        """
        first = chunk.find(b"\n")
        if first < 0:
            self._rest += chunk
            if len(self._rest) > MAX_LINE:
                raise KubeError(f"a watch event is larger than {MAX_LINE >> 20} MiB", where=self._where)
            return
        parts = [(chunk, 0, True)]
        if self._rest:
            parts = [(self._rest + chunk[: first + 1], 0, False), (chunk, first + 1, True)]
        verbs, decode, strip = _VERBS, self._decode, self._strip
        for data, start, whole in parts:
            view = memoryview(data)
            while (end := data.find(b"\n", start)) >= 0:
                entry = verbs.get(data[start + _VERB_AT]) if end - start > _VERB_AT else None
                if entry is not None and data.startswith(entry[1], start) and data[end - 1] == _BRACE:
                    at = start + len(entry[1])
                    body: Body = view[at : end - 1]
                    try:
                        head = decode(body)
                        if strip:
                            body = _without_managed_fields(head.metadata, data, view, at, end - 1)
                    except _FAILURES:  # perhaps something follows the object; the long way knows
                        yield self._event(view[start:end])
                    else:
                        yield entry[0], head, body, whole
                elif end > start:
                    yield self._event(view[start:end])
                start = end + 1
        self._rest = chunk[start:]

    def _event(self, line: memoryview) -> WatchEvent:
        """One line, whatever its form."""
        try:
            envelope = _decode_envelope(line)
            body = bytes(envelope.object)
            if envelope.type in ("ERROR", "BOOKMARK"):
                return envelope.type, _NO_HEAD, body, False
            head = self._decode(body)
            return envelope.type, head, _stripped(head.metadata, body) if self._strip else body, False
        except _FAILURES as error:
            raise self._malformed(error) from error

    def _malformed(self, error: Exception) -> KubeError:
        return KubeError(f"the watch delivered something that is no event: {error}", where=self._where)


_NO_HEAD = Head(metadata=Meta())


def parse_bookmark(body: Body, where: str) -> Bookmark:
    """The object of a ``BOOKMARK`` event.

    Raises:
        KubeError: it is none.
    """
    try:
        metadata = _decode_bookmark(body).metadata
    except _FAILURES as error:
        raise KubeError(f"malformed bookmark: {error}", where=where) from error
    return Bookmark(metadata.resourceVersion, (metadata.annotations or {}).get(INITIAL_EVENTS_END) == "true")


def version_of(text: str, where: str) -> int:
    """A resourceVersion as a number (KEP-5504: clients may compare them so).

    Raises:
        KubeError: it is no decimal number.
    """
    if not (text.isascii() and text.isdecimal()):
        raise KubeError(f"resourceVersion {text[:40]!r} is no number, so changes cannot be put in order", where=where)
    return int(text)


# --- lists ---------------------------------------------------------------------------------------------------------------


class ListMeta(msgspec.Struct):
    """Metadata of a list."""

    resourceVersion: str = ""  # noqa: N815
    continue_: str = msgspec.field(name="continue", default="")


class _List(msgspec.Struct):
    metadata: ListMeta


class Item(NamedTuple):
    """One item of a list."""

    head: Head
    body: bytes


_ITEMS = re.compile(rb'"items"\s*:\s*(\[|null)')
_STRUCTURE = re.compile(rb'["{}]')
_IN_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)
_GAP = re.compile(rb"[\s,]*")
_SIGNATURE = 14
_MOST_ATTEMPTS = 8
_MAX_FRAME = 1 << 20

_decode_list = msgspec.json.Decoder(_List).decode


class ListSplitter:
    """Cuts one page of a list into items as its bytes arrive; holds one item and the current chunk, never the page.

    Args:
        where: the place for error messages.
        kind: of the items, added where they do not carry it.
        api_version: of the items, likewise.
        wants: what to decode beyond the names.
    """

    def __init__(self, where: str, kind: str, api_version: str, wants: Wants = PLAIN) -> None:
        self._where = where
        self._decode = _DECODE[wants]
        self._strip = wants.managed_fields
        self._prefix = msgspec.json.encode({"kind": kind, "apiVersion": api_version})[:-1] + b","
        self._buffer = bytearray()
        self._frame = b""
        self._state = "before"
        self._begin()

    def _begin(self) -> None:
        """The next item's search begins; all places are relative to its start."""
        self._searched = 0
        self._attempts = 0
        self._scanned = 0
        self._depth = 0
        self._inside = False

    def feed(self, chunk: bytes) -> Iterator[Item]:
        """The items that ``chunk`` completes.

        Raises:
            KubeError: this is no list, or an item grows without end.
        """
        self._buffer += chunk
        if self._state == "before" and not self._open():
            return
        if self._state == "items":
            yield from self._items()
        if len(self._buffer) > (MAX_LINE if self._state == "items" else _MAX_FRAME):
            raise KubeError("an item of the list is larger than any object can be", where=self._where)

    def finish(self) -> ListMeta:
        """The list's metadata, once all bytes were fed.

        Raises:
            KubeError: the list broke off.
        """
        if self._state != "after":
            raise KubeError("the list broke off in the middle", where=self._where)
        try:
            return _decode_list(self._frame + bytes(self._buffer)).metadata
        except _FAILURES as error:
            raise KubeError(f"the answer is no list: {error}", where=self._where) from error

    def _open(self) -> bool:
        """Look for the start of the items."""
        found = _ITEMS.search(self._buffer)
        if not found:
            return False
        empty = found[1] == b"null"
        self._frame = bytes(self._buffer[: found.end()])
        self._state = "after" if empty else "items"
        del self._buffer[: found.end()]
        return True

    def _items(self) -> Iterator[Item]:
        buffer = self._buffer
        at = 0
        while True:
            start = _GAP.match(buffer, at).end()  # type: ignore[union-attr]  # the pattern matches the empty string
            if start >= len(buffer):
                break
            if buffer[start] == 0x5D:  # ]
                self._state = "after"
                at = start
                break
            if buffer[start] != 0x7B:  # {
                raise KubeError(f"a list item starts with {bytes(buffer[start : start + 20])!r}", where=self._where)
            found = self._item(buffer, start)
            if found is None:
                at = start
                break
            item, at = found
            self._begin()
            yield item
        del buffer[:at]

    def _item(self, buffer: bytearray, start: int) -> tuple[Item, int] | None:
        """The item that starts at ``start`` and where it ends; None: its end has not come yet.

        Goes on where the last call stopped, so that one huge item costs each of its bytes once, not once per chunk.
        """
        following = b"}," + buffer[start : start + _SIGNATURE]
        while self._attempts < _MOST_ATTEMPTS and len(buffer) - start >= _SIGNATURE:
            at = buffer.find(following, start + self._searched)
            if at < 0:
                self._searched = max(self._searched, len(buffer) - start - len(following) + 1)
                break
            item = self._try(bytes(buffer[start : at + 1]))
            if item is not None:
                return item, at + 1
            self._attempts += 1
            self._searched = at + 1 - start
        end = self._scan(buffer, start)
        if end is None:
            return None
        item = self._try(bytes(buffer[start:end]))
        if item is None:
            raise KubeError("an item of the list is no object", where=self._where)
        return item, end

    def _try(self, body: bytes) -> Item | None:
        try:
            head = self._decode(body)
        except _FAILURES:
            return None
        if self._strip:
            body = _stripped(head.metadata, body)
        if not head.kind:
            body = self._prefix + body[1:]
        return Item(head, body)

    def _scan(self, buffer: bytearray, start: int) -> int | None:
        """Where the braces outside strings are balanced again; goes on where the last call stopped."""
        at, size = start + self._scanned, len(buffer)
        while at < size:
            if self._inside:
                at = _IN_STRING.match(buffer, at).end()  # type: ignore[union-attr]  # the pattern matches the empty string
                if at >= size or buffer[at] != _QUOTE:  # the string's end, or what its backslash means, has not come
                    break
                self._inside = False
                at += 1
                continue
            found = _STRUCTURE.search(buffer, at)
            if found is None:
                at = size
                break
            at = found.end()
            first = buffer[found.start()]
            if first == _QUOTE:
                self._inside = True
            elif first == _BRACE:
                self._depth -= 1
                if self._depth == 0:
                    return at
            else:
                self._depth += 1
        self._scanned = at - start
        return None


# --- managedFields -------------------------------------------------------------------------------------------------------

_MANAGED = b'"managedFields":'
_COMMA = ord(",")


def _stripped(meta: Meta, body: bytes) -> bytes:
    """``_without_managed_fields`` of an object that stands alone."""
    return bytes(_without_managed_fields(meta, body, memoryview(body), 0, len(body)))


def _without_managed_fields(meta: Meta, data: bytes, view: memoryview, start: int, end: int) -> Body:
    """The object without ``metadata.managedFields``, by cutting out the bytes that the decoder found; the rest is untouched.

    Args:
        meta: decoded with ``Wants(managed_fields=True)`` from these bytes.
        data: holds the object's JSON, and perhaps more.
        view: of ``data``.
        start: of the object.
        end: likewise, exclusive.
    """
    managed = getattr(meta, "managedFields")  # noqa: B009 - msgspec's generated classes are not typed
    if not len(managed):
        return view[start:end]
    # an unescaped quote cannot stand inside a string, so the first match is a key; metadata comes first, so it is nearly always
    # the right one, and that the decoder's bytes follow proves it
    key = data.find(_MANAGED, start, end)
    value = key + len(_MANAGED)
    if key > start and data.startswith(managed, value):
        after = value + len(managed)
        if data[key - 1] == _COMMA:
            return b"".join((view[start : key - 1], view[after:end]))
        if data[after] == _COMMA:
            return b"".join((view[start:key], view[after + 1 : end]))
    document = msgspec.json.decode(view[start:end])
    document["metadata"].pop("managedFields", None)
    return msgspec.json.encode(document)
