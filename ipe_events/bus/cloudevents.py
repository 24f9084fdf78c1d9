"""CloudEvents 1.0 in the binary mode of its NATS binding: attributes are headers, the body is the payload as it is.

``headers_for`` writes them for payloads with a JSON body; changes have the same attributes, but the publisher builds theirs from
a template. ``parse`` reads what anybody wrote: attributes by name, percent-decoded, unknown ones left alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from ipe_events.bus.frames import percent_decode, percent_encode
from ipe_events.clock import rfc3339
from ipe_events.errors import SchemaError
from ipe_events.events.base import Payload

SPEC_VERSION = "1.0"
CONTENT_TYPE = "application/json"

_REQUIRED = ("ce-specversion", "ce-id", "ce-source", "ce-type")


@dataclass(frozen=True, slots=True)
class Attributes:
    """What the headers of an event say.

    Attributes:
        id, source, type: the required attributes.
        subject: what it is about; empty when it does not say.
        time: when it happened; None when it does not say.
        trace: W3C ``traceparent``; empty without one.
        extensions: all other ``ce-`` attributes, without the prefix.
    """

    id: str
    source: str
    type: str
    subject: str
    time: datetime | None
    trace: str
    extensions: Mapping[str, str]


def headers_for(
    payload: Payload | type[Payload],
    *,
    id: str,  # noqa: A002 - CloudEvents' own name
    source: str,
    subject: str = "",
    time: datetime,
    trace: str = "",
    extensions: Mapping[str, str | int] | None = None,
) -> dict[str, str]:
    """The headers of an event with this payload.

    Args:
        payload: decides ``ce-type``.
        id: ``ce-id`` and ``Nats-Msg-Id``: the same event has the same id for ever.
        source: ``/clusters/<cluster>`` or ``/handlers/<handler>``.
        subject: what it is about, e.g. ``namespace/deployments.apps/name``.
        time: when it happened.
        trace: W3C ``traceparent`` of the step that publishes it.
        extensions: ``kind``, ``name``, ``sequence``, ``cause``, ``hops``… without the prefix ``ce-``; empty values are left out.
    """
    headers = {
        "ce-specversion": SPEC_VERSION,
        "ce-id": percent_encode(id),
        "ce-source": percent_encode(source),
        "ce-type": payload.ce_type(),
        "ce-time": rfc3339(time),
        "Content-Type": CONTENT_TYPE,
        "Nats-Msg-Id": percent_encode(id),
    }
    if subject:
        headers["ce-subject"] = percent_encode(subject)
    if trace:
        headers["traceparent"] = trace
    for name, value in (extensions or {}).items():
        if value != "":
            headers[f"ce-{name}"] = percent_encode(str(value))
    return headers


def parse(headers: Mapping[str, str]) -> Attributes:
    """The attributes in an event's headers.

    Raises:
        SchemaError: they are not those of a CloudEvent 1.0.
    """
    missing = [name for name in _REQUIRED if not headers.get(name)]
    if missing:
        raise SchemaError(f"no CloudEvent: {', '.join(missing)} missing", fix="publish in binary mode with ce- headers")
    if headers["ce-specversion"] != SPEC_VERSION:
        raise SchemaError(f"CloudEvents version {headers['ce-specversion']!r} is not {SPEC_VERSION}")
    values = {name.removeprefix("ce-"): percent_decode(value) for name, value in headers.items() if name.startswith("ce-")}
    values.pop("specversion")
    text = values.pop("time", "")
    try:
        time = datetime.fromisoformat(text) if text else None
    except ValueError as error:
        raise SchemaError(f"ce-time {text!r} is no RFC 3339 time") from error
    if time is not None and time.tzinfo is None:
        raise SchemaError(f"ce-time {text!r} has no time zone")
    return Attributes(
        id=values.pop("id"),
        source=values.pop("source"),
        type=values.pop("type"),
        subject=values.pop("subject", ""),
        time=time,
        trace=headers.get("traceparent", ""),
        extensions=values,
    )
