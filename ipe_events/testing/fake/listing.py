"""Lists: which state a request sees, in which pages.

The rules are the real server's (resourceVersion × resourceVersionMatch × limit × continue). A continue token carries the
resourceVersion of the first page and the key to go on from, so that all pages show one moment; when that moment is compacted,
the answer is 410 with a token that goes on without consistency, as the real server offers it.
"""

import base64
import binascii
from dataclasses import dataclass
from typing import Any

import orjson

from ipe_events.testing.fake import status
from ipe_events.testing.fake.kinds import Kind
from ipe_events.testing.fake.selectors import Predicate
from ipe_events.testing.fake.store import Compacted, Item, ObjectKey, Store

_TOKEN_VERSION = "meta.k8s.io/v1"  # noqa: S105 - a format marker, no secret
_INCONSISTENT = -1
_FORBIDDEN = "Forbidden: resourceVersionMatch is forbidden "


@dataclass(frozen=True, slots=True)
class ListOptions:
    """The options of one list; ``rv`` as the client wrote it (empty: the newest)."""

    namespace: str = ""
    selects: Predicate | None = None
    limit: int = 0
    continue_: str = ""
    rv: str = ""
    match: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """What a list answers."""

    items: list[Item]
    rv: int
    continue_: str = ""
    remaining: int | None = None

    def body(self, kind: Kind, *, partial: bool) -> bytes:
        """The JSON of the list, made of the items' own bytes."""
        metadata: dict[str, Any] = {"resourceVersion": str(self.rv)}
        if self.continue_:
            metadata["continue"] = self.continue_
            if self.remaining is not None:
                metadata["remainingItemCount"] = self.remaining
        if partial:
            head = {"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": metadata}
            items = [item.partial for item in self.items]
        else:
            head = {"kind": f"{kind.kind}List", "apiVersion": kind.group_version, "metadata": metadata}
            items = [item.raw if kind.custom else item.listed for item in self.items]
        return orjson.dumps(head)[:-1] + b',"items":[' + b",".join(items) + b"]}"


def parse_rv(text: str) -> int:
    """A resourceVersion of a request.

    Raises:
        StatusError: 400, not a number.
    """
    if not text.isdecimal():
        why = f'resourceVersion: Invalid value: "{text}": strconv.ParseUint: parsing "{text}": invalid syntax'
        raise status.bad_request(f"invalid resource version: {why}")
    return int(text)


def check(options: ListOptions) -> None:
    """Refuse options that contradict each other, as the real server's validation does.

    Raises:
        StatusError: 422.
    """
    if not options.match:
        return
    if options.continue_:
        raise status.bad_options("resourceVersionMatch", _FORBIDDEN + "when continue is provided")
    if not options.rv:
        raise status.bad_options("resourceVersionMatch", _FORBIDDEN + "unless resourceVersion is provided")
    if options.match not in ("Exact", "NotOlderThan"):
        message = f'Unsupported value: "{options.match}": supported values: "Exact", "NotOlderThan", ""'
        raise status.bad_options("resourceVersionMatch", message, reason="FieldValueNotSupported")
    if options.match == "Exact" and options.rv == "0":
        message = 'Forbidden: resourceVersionMatch "exact" is forbidden for resourceVersion "0"'
        raise status.bad_options("resourceVersionMatch", message)


def page(store: Store, kind: Kind, options: ListOptions) -> Page:
    """One page. The caller has waited for a resourceVersion from the future already.

    Raises:
        StatusError: 400, 410, 422 or 504.
    """
    check(options)
    if options.continue_:
        return _continued(store, kind, options)
    requested = parse_rv(options.rv) if options.rv else 0
    if requested > store.rv:
        raise status.too_large(requested, store.rv)
    exact = options.match == "Exact" or (options.limit > 0 and requested > 0 and not options.match)
    if exact:
        try:
            found = store.items_at(kind.group_resource, requested)
        except Compacted as error:
            raise status.exact_too_old() from error
        return _cut(found, requested, options)
    # A list from the watch cache ("0") ignores the limit.
    unlimited = options.rv == "0"
    return _cut(store.items(kind.group_resource, options.namespace), store.rv, options, unlimited=unlimited)


def _continued(store: Store, kind: Kind, options: ListOptions) -> Page:
    rv, start = _parse_token(options.continue_)
    if options.rv not in ("", "0"):
        raise status.bad_request("specifying resource version is not allowed when using continue")
    if rv == _INCONSISTENT:
        rv, found = store.rv, store.items(kind.group_resource, options.namespace)
    else:
        try:
            found = store.items_at(kind.group_resource, rv)
        except Compacted as error:
            raise status.continue_expired(_token(_INCONSISTENT, start)) from error
    return _cut([pair for pair in found if pair[0] > start], rv, options)


def _cut(found: list[tuple[ObjectKey, Item]], rv: int, options: ListOptions, *, unlimited: bool = False) -> Page:
    selected = [
        (key, item)
        for key, item in found
        if (not options.namespace or key[0] == options.namespace) and (options.selects is None or options.selects(item.obj))
    ]
    if unlimited or not options.limit or len(selected) <= options.limit:
        return Page([item for _, item in selected], rv)
    first = selected[: options.limit]
    remaining = len(selected) - options.limit if options.selects is None else None
    return Page([item for _, item in first], rv, _token(rv, first[-1][0]), remaining)


def _token(rv: int, last: ObjectKey) -> str:
    body = orjson.dumps({"v": _TOKEN_VERSION, "rv": rv, "start": list(last)})
    return base64.urlsafe_b64encode(body).decode().rstrip("=")


def _parse_token(token: str) -> tuple[int, ObjectKey]:
    try:
        body = orjson.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        (namespace, name), rv, version = body["start"], int(body["rv"]), body["v"]
    except (binascii.Error, ValueError, KeyError, TypeError) as error:
        raise status.bad_request(f"invalid continue token: continue key is not valid: {error}") from error
    if version != _TOKEN_VERSION:
        raise status.bad_request("invalid continue token: continue key is not valid: unknown version")
    return rv, (str(namespace), str(name))
