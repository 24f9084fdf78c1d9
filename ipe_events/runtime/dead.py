"""Dead letters: a copy of what a handler gave up on, with the reason in its headers, then ``term``.

The copy keeps body and headers, so that ``ipe dlq replay`` can publish it again as it was. The text of an exception may quote
what it was working on; it is masked and cut before it leaves the process.
"""

import re

from ipe_events.bus.frames import percent_encode
from ipe_events.clock import Clock, rfc3339
from ipe_events.events.headers import parse
from ipe_events.events.ids import derived_id
from ipe_events.runtime.port import Port
from ipe_events.runtime.work import Work
from ipe_events.subjects import DLQ

MAX_MESSAGE = 500
"""Characters of an exception's text that are kept."""

_SECRET = re.compile(
    r"(?i)\b(authorization|bearer|password|passwd|pwd|secret|token|api[-_]?key|access[-_]?key|private[-_]?key)\b"
    r"(\W{1,4}(?:bearer\s+|basic\s+)?)([^\s,;'\"&]+)"
)
_URL_USER = re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")
_OPAQUE = re.compile(r"\beyJ[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]+)*|\b[A-Za-z0-9+/_-]{40,}={0,2}")


def mask(text: str) -> str:
    """One line of an exception's text, without what looks like a credential.

    >>> mask("401 for https://bob:hunter2@db, password=hunter2")
    '401 for https://***@db, password=***'
    """
    line = " ".join(text.split())
    line = _SECRET.sub(r"\1\2***", _URL_USER.sub("***", line))
    line = _OPAQUE.sub("***", line)
    return line if len(line) <= MAX_MESSAGE else f"{line[:MAX_MESSAGE]}… ({len(line)} characters)"


async def bury(port: Port, clock: Clock, *, handler: str, identity: str, work: Work, error: BaseException) -> None:
    """Publish the dead letter; the same message of one handler becomes one dead letter, however often this is called.

    Raises:
        BusError: it is not stored; the message must not be terminated then.
    """
    delivery = work.delivery
    kept = {name: value for name, value in parse(delivery.header_bytes).items() if not name.startswith("Nats-")}
    reason = {
        "ipe-dlq-handler": handler,
        "ipe-dlq-consumer": identity,
        "ipe-dlq-subject": delivery.subject,
        "ipe-dlq-stream": delivery.stream,
        "ipe-dlq-sequence": str(delivery.seq),
        "ipe-dlq-error": type(error).__name__,
        "ipe-dlq-message": mask(str(error)),
        "ipe-dlq-attempts": str(work.attempt),
        "ipe-dlq-time": rfc3339(clock.now()),
    }
    headers = {name: percent_encode(value) for name, value in (kept | reason).items()}
    await port.publish(
        DLQ.format(handler=handler),
        delivery.body,
        id=derived_id(identity, delivery.stream, delivery.seq, "dlq"),
        headers=headers,
    )
