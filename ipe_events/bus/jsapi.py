"""What JetStream's API answers, as values and errors of ours."""

from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from ipe_events.bus.frames import parse_headers, parse_status
from ipe_events.errors import BusConflict, BusError, BusNotFound, BusUnavailable

if TYPE_CHECKING:
    from ipe_events.bus.connection import Bus

_CONFLICT = {10071, 10164, 10158, 10148}  # wrong last sequence (three forms), consumer exists


class Stored(NamedTuple):
    """A message as the stream keeps it; ``headers`` are the publisher's."""

    stream: str
    subject: str
    seq: int
    time: datetime
    headers: dict[str, str]
    body: bytes


def answer(body: bytes, where: str) -> dict[str, Any]:
    """The JSON object of an answer.

    Raises:
        BusNotFound: code 404.
        BusConflict: an expectation on sequences does not hold.
        BusUnavailable: code 503, JetStream cannot answer now.
        BusError: anything else that is an error, or no JSON object.
    """
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BusError(f"JetStream's answer is not JSON: {body[:80]!r}", where=where) from error
    if not isinstance(data, dict):
        raise BusError(f"JetStream's answer is no object: {body[:80]!r}", where=where)
    problem = data.get("error")
    if not problem:
        return data
    code, number = int(problem.get("code", 500)), int(problem.get("err_code", 0))
    text = f"JetStream: {problem.get('description', 'no description')} ({number})"
    if number in _CONFLICT:
        raise BusConflict(text, where=where)
    if code == 404:
        raise BusNotFound(text, where=where)
    if code == 503:
        raise BusUnavailable(text, where=where)
    raise BusError(text, where=where)


async def direct_get(bus: "Bus", stream: str, *, seq: int = 0, last_by_subject: str = "") -> Stored | None:
    """One message of a stream that allows direct gets; None when there is none."""
    verb = f"DIRECT.GET.{stream}"
    if last_by_subject:
        raw = await bus.ask(bus.js_subject(f"{verb}.{last_by_subject}"))
    else:
        raw = await bus.ask(bus.js_subject(verb), orjson.dumps({"seq": seq}))
    status, text = parse_status(raw.head)
    if status == 404:
        return None
    if status == 503:
        raise BusUnavailable("the stream does not answer direct gets (it is missing, or still starting)", where=stream)
    if status:
        raise BusError(f"direct get refused: {status} {text}", where=stream)
    headers = parse_headers(raw.head)
    try:
        return Stored(
            stream=headers.pop("Nats-Stream"),
            subject=headers.pop("Nats-Subject"),
            seq=int(headers.pop("Nats-Sequence")),
            time=datetime.fromisoformat(_micros(headers.pop("Nats-Time-Stamp"))),
            headers=headers,
            body=raw.body,
        )
    except (KeyError, ValueError) as error:
        raise BusError(f"a direct get's answer lacks {error}", where=stream) from error


def _micros(text: str) -> str:
    """An RFC 3339 time with nanoseconds, cut to the microseconds that ``datetime`` holds."""
    head, dot, rest = text.partition(".")
    return f"{head}.{rest.rstrip('Z')[:6].ljust(6, '0')}+00:00" if dot else text
