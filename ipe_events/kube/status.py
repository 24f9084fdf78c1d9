"""Foreign failures become ours here: HTTP answers with a ``Status`` body, watch ``ERROR`` events, aiohttp's exceptions.

The class says what to do (``retryable``), ``status`` and ``reason`` what the API said. For a connection that failed, ``reason``
is ``Unreachable`` when nothing was sent, and ``ConnectionLost`` when the request may have been carried out.
"""

from collections.abc import Mapping

import aiohttp
import msgspec

from ipe_events.errors import (
    KubeConflict,
    KubeError,
    KubeForbidden,
    KubeGone,
    KubeInvalid,
    KubeNotFound,
    KubeThrottled,
    KubeTimeout,
    KubeUnauthorized,
    KubeUnavailable,
)

RV_TOO_LARGE = "ResourceVersionTooLarge"
"""Reason of an answer to a list or watch that asks for a resourceVersion which the server has not reached yet."""

UNREACHABLE = "Unreachable"
CONNECTION_LOST = "ConnectionLost"

_LONGEST = 4_000
"""Characters of a message that are kept: it goes into logs, states and outcomes, and is searched for what must be masked."""
_LONGEST_REASON = 200
_QUOTED_BODY = 500
"""How many characters of a body that is no Status are quoted."""


class _Cause(msgspec.Struct):
    reason: str = ""
    message: str = ""


class _Details(msgspec.Struct):
    causes: list[_Cause] | None = None
    retryAfterSeconds: float = 0.0  # noqa: N815 - the API's own name


class Status(msgspec.Struct):
    """The parts of a ``v1.Status`` that decide what to do."""

    kind: str = ""
    code: int = 0
    reason: str = ""
    message: str = ""
    details: _Details | None = None


_STATUS = msgspec.json.Decoder(Status)

_KINDS: dict[int, type[KubeError]] = {
    400: KubeInvalid,
    401: KubeUnauthorized,
    403: KubeForbidden,
    404: KubeNotFound,
    405: KubeInvalid,
    406: KubeInvalid,
    409: KubeConflict,
    410: KubeGone,
    413: KubeInvalid,
    415: KubeInvalid,
    422: KubeInvalid,
    504: KubeTimeout,
}


def parse_status(body: bytes) -> Status | None:
    """The ``Status`` in ``body``; None when it is something else (a proxy's page, an empty body)."""
    try:
        status = _STATUS.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return status if status.kind == "Status" else None


def error_of(code: int, body: bytes, where: str, headers: Mapping[str, str] | None = None) -> KubeError:
    """The error for an answer with this HTTP status code (or an ``ERROR`` event with this body and code 0).

    Args:
        code: HTTP status; 0: take the Status's own.
        body: what the server sent.
        where: request line for people, e.g. ``prod-eu: GET /api/v1/pods``.
        headers: of the answer, for ``Retry-After``.
    """
    status = parse_status(body)
    if status is None:
        text = body[:_QUOTED_BODY].decode("utf-8", "replace").strip()
        status = Status(code=code, message=text or f"HTTP {code} without a body")
    code = code or status.code
    reason = status.reason[:_LONGEST_REASON]
    message = _cut(" ".join(status.message.split())) or reason or f"HTTP {code}"
    details = status.details or _Details()
    if any(cause.reason == RV_TOO_LARGE for cause in details.causes or ()):
        reason = RV_TOO_LARGE
    if code == 429:
        return KubeThrottled(message, retry_after=_retry_after(headers, details), reason=reason, where=where)
    if reason == "Expired" and code == 0:
        code = 410
    kind = _KINDS.get(code) or (KubeUnavailable if code >= 500 else KubeError)
    return kind(message, status=code, reason=reason, where=where)


def _cut(text: str) -> str:
    """The text; a cut is said, with the full length."""
    note = f"… (cut, {len(text):,} characters)"
    return text if len(text) <= _LONGEST else text[: _LONGEST - len(note)] + note


def _retry_after(headers: Mapping[str, str] | None, details: _Details) -> float:
    text = (headers or {}).get("Retry-After", "")
    try:
        seconds = float(text) if text else details.retryAfterSeconds
    except ValueError:  # the header may hold a date; one second is as good a guess as parsing it
        seconds = details.retryAfterSeconds
    return min(max(seconds or 1.0, 0.1), 300.0)


def translate(error: Exception, where: str) -> KubeError:
    """The error for an exception of aiohttp or the socket below it."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, aiohttp.ConnectionTimeoutError | aiohttp.ClientConnectorError | aiohttp.ClientProxyConnectionError):
        return KubeUnavailable(f"cannot connect: {text}", reason=UNREACHABLE, where=where)
    if isinstance(error, TimeoutError):
        return KubeTimeout(f"no answer in time: {text}", where=where)
    if isinstance(error, aiohttp.InvalidURL):
        return KubeInvalid(f"not a URL: {text}", where=where)
    return KubeUnavailable(f"connection lost: {text}", reason=CONNECTION_LOST, where=where)
