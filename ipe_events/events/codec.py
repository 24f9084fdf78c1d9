"""Bodies on the bus: payload models to bytes and back, with one rule for hostile input.

Writing is deterministic (sorted keys, no blanks), so that a hash of the bytes means something. Reading trusts nothing. JSON
leaves room that two readers fill differently: a key that occurs twice, ``NaN``, ``1e999``, an integer beyond 64 bits, half a
surrogate pair. An auditor and an agent that understand one command in two ways are a hole, so all of these are refused before any
model sees the body. Events are read leniently (unknown fields ignored, at every depth), requests strictly (unknown fields
refused, no conversion of types, at every depth); a version from the future is named as such.
"""

import json
import re
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from ipe_events.errors import SchemaError
from ipe_events.events.base import Payload, Request, RequestPart
from ipe_events.events.explain import explain, quote

M = TypeVar("M", bound=BaseModel)

MAX_BODY = 8 * 1024 * 1024
"""Bytes of an event's body: ``max_payload`` of the embedded server."""

MAX_REQUEST = 2 * 1024 * 1024
"""Bytes of a request's body: etcd takes no object above 1.5 MiB."""

INTEGERS = range(-(2**63), 2**64)
"""Integers that every reader of the bus can hold."""

_CE_TYPE = re.compile(r"(dev\.ipe\.[a-z0-9-]+\.[a-z0-9-]+)\.v([1-9][0-9]{0,5})")


def encode(payload: BaseModel) -> bytes:
    """The JSON body of a payload; the same payload gives the same bytes.

    Raises:
        SchemaError: it holds what JSON cannot say: NaN, an infinity, half a surrogate pair, a foreign Python object.
    """
    try:
        value = payload.model_dump(mode="json", by_alias=True)
        text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        body = text.encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise SchemaError(f"{type(payload).__name__} does not fit into JSON: {quote(str(error), raw=True)}") from error
    limit = _limit(type(payload))
    if len(body) > limit:
        raise SchemaError(f"{type(payload).__name__} takes {len(body):,} bytes, at most {limit:,} are allowed")
    return body


def decode(model: type[M], body: bytes, *, ce_type: str | None = None) -> M:
    """The payload in a body.

    Args:
        model: what is expected. A ``Request`` or ``RequestPart`` is read strictly, everything else leniently.
        body: UTF-8 JSON.
        ce_type: the message's ``ce-type``, when it has one; type and version are checked against the model's.

    Raises:
        SchemaError: too big, not JSON, ambiguous JSON, of another type, from a future version, or against the model's rules;
            names the path, the value and the rule.
    """
    name = model.type_name if issubclass(model, Payload) else model.__name__
    if ce_type is not None and issubclass(model, Payload):
        _check_type(model, ce_type)
    if len(body) > _limit(model):
        raise SchemaError(f"{name}: the body takes {len(body):,} bytes, at most {_limit(model):,} are allowed")
    document = parse(body, where=name)
    _check_version(model, document, name)
    strict = _is_strict(model)
    try:
        return model.model_validate_json(
            body, strict=strict, extra="forbid" if strict else "ignore", by_alias=True, by_name=False
        )
    except ValidationError as error:
        raise SchemaError(str(explain(error, document, model)), where=name) from error


def parse(body: bytes, *, where: str = "body") -> Any:
    """Plain JSON from bytes, if every reader would read the same.

    Raises:
        SchemaError: not UTF-8, not JSON, nested too deeply, a key twice in one object, a number that is not finite or an integer
            beyond 64 bits, half a surrogate pair.
    """
    try:
        value = _DECODER.decode(body.decode())
        if b"\\u" in body:
            json.dumps(value, ensure_ascii=False).encode()  # fails on half a surrogate pair, which only an escape can bring
    except UnicodeDecodeError as error:
        raise SchemaError(f"byte {error.start} is not UTF-8 text", where=where) from error
    except UnicodeEncodeError as error:
        raise SchemaError("a string holds half a surrogate pair", where=where) from error
    except json.JSONDecodeError as error:
        raise SchemaError(f"not JSON: {error.msg} at byte {len(error.doc[: error.pos].encode())}", where=where) from error
    except RecursionError as error:
        raise SchemaError("nested too deeply", where=where) from error
    except _Ambiguous as error:
        raise SchemaError(str(error), where=where) from error
    return value


class _Ambiguous(Exception):
    """JSON that two readers may understand differently."""


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]  # set.add gives None
        raise _Ambiguous(f"key {quote(twice)} occurs twice in one object")
    return value


def _integer(text: str) -> int:
    if len(text) > 20 or (value := int(text)) not in INTEGERS:
        raise _Ambiguous(f"integer {quote(text, raw=True)} is beyond 64 bits")
    return value


def _float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise _Ambiguous(f"number {quote(text, raw=True)} is not finite")
    return value


def _constant(text: str) -> NoReturn:
    raise _Ambiguous(f"{text} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_pairs, parse_int=_integer, parse_float=_float, parse_constant=_constant)


def _limit(model: type[BaseModel]) -> int:
    return MAX_REQUEST if _is_strict(model) else MAX_BODY


def _is_strict(model: type[BaseModel]) -> bool:
    return issubclass(model, Request | RequestPart)


def _check_type(model: type[Payload], ce_type: str) -> None:
    """Refuse another type, and a version that this program does not know; older versions are left to the model."""
    match = _CE_TYPE.fullmatch(ce_type)
    family, _, version = model.ce_type().rpartition(".v")
    if not match or match[1] != family:
        raise SchemaError(f"type {quote(ce_type)} is not {family}", where=model.type_name)
    if int(match[2]) > int(version):
        _from_the_future(model.type_name, int(match[2]), int(version))


def _check_version(model: type[BaseModel], document: object, name: str) -> None:
    """Refuse a document whose own ``schema_version`` or ``version`` is newer than the model's."""
    if not isinstance(document, dict):
        return
    for field in ("schema_version", "version"):
        known = model.model_fields[field].default if field in model.model_fields else None
        found = document.get(field)
        if isinstance(known, int) and isinstance(found, int) and found > known:
            _from_the_future(f"{name}.{field}", found, known)


def _from_the_future(where: str, found: int, known: int) -> NoReturn:
    raise SchemaError(
        f"version {found} is from the future, this program reads up to {known}",
        where=where,
        fix="upgrade ipe-events on this side",
    )
