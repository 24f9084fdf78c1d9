"""The bytes of NATS messages: header blocks and publish frames.

A header block is ``NATS/1.0``, an optional status, and ``Name: value`` lines, each ended by CR LF, with an empty line at the end.
Encoding a dict for every message is what costs most on the way out, and parsing it what costs most on the way in; so the hot
paths handle blocks as bytes (the publisher builds them from templates, the consumer keeps them raw until somebody asks), and the
functions here are for everybody else. What could end a line early, and with it smuggle a protocol command, is refused.
"""

import re
from collections.abc import Mapping

from ipe_events.errors import SchemaError, UsageError

VERSION_LINE = b"NATS/1.0\r\n"
"""First line of a header block without a status."""

_VERSION = b"NATS/1.0"
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_FORBIDDEN = re.compile(r"[\r\n\x00]")
_TO_ESCAPE = re.compile(r"[^!#$&-~]")
_ESCAPED = re.compile(r"(?:%[0-9A-Fa-f]{2})+")
_SUBJECT = re.compile(rb"[^\s\x00]+")


def encode_headers(headers: Mapping[str, str]) -> bytes:
    """The block for these headers; empty without any.

    Raises:
        UsageError: a name is no token, or a value holds CR, LF or NUL.
    """
    if not headers:
        return b""
    lines = ["NATS/1.0"]
    for name, value in headers.items():
        if not _NAME.fullmatch(name):
            raise UsageError(f"header name {name!r} is not a token", fix="use letters, digits and hyphens")
        if _FORBIDDEN.search(value):
            raise UsageError(f"header {name} holds a line break or NUL: {value!r}", fix="percent-encode the value")
        lines.append(f"{name}: {value}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def parse_headers(block: bytes) -> dict[str, str]:
    """The headers of a block; empty for an empty one. A status line is skipped.

    Of several with one name the first counts, as for ``events.headers``: two readers must not read a message differently.

    Raises:
        SchemaError: the block is not one that NATS clients write.
    """
    if not block:
        return {}
    head, _, rest = block.partition(b"\r\n")
    if not head.startswith(_VERSION):
        raise SchemaError(f"header block starts with {head[:20]!r}, not with {_VERSION.decode()}")
    headers: dict[str, str] = {}
    try:
        text = rest.decode()
    except UnicodeDecodeError as error:
        raise SchemaError(f"header block is not UTF-8 at byte {error.start}") from error
    for line in text.split("\r\n"):
        if not line:
            continue
        name, colon, value = line.partition(":")
        if not colon or not _NAME.fullmatch(name):
            raise SchemaError(f"header line {line[:80]!r} is not `Name: value`")
        headers.setdefault(name, value.strip())
    return headers


def parse_status(block: bytes) -> tuple[int, str]:
    """Status and description of a block's first line: ``(503, "No Responders")``; ``(0, "")`` without one."""
    line = block[len(_VERSION) : block.find(b"\r\n")].strip()
    code, _, text = line.partition(b" ")
    return (int(code), text.decode("utf-8", "replace")) if code.isdigit() else (0, "")


def percent_encode(value: str) -> str:
    """A CloudEvents attribute as a header value: space, ``"``, ``%``, controls and non-ASCII become ``%XX`` of their UTF-8.

    >>> percent_encode('a "b" 100% ü')
    'a%20%22b%22%20100%25%20%C3%BC'
    """
    return _TO_ESCAPE.sub(lambda match: "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8", "surrogatepass")), value)


def percent_decode(value: str) -> str:
    """The attribute behind a header value; what is not a valid escape stays as it is."""
    if "%" not in value:
        return value

    def decode(match: re.Match[str]) -> str:
        try:
            return bytes.fromhex(match[0].replace("%", "")).decode()
        except UnicodeDecodeError:
            return match[0]

    return _ESCAPED.sub(decode, value)


def publish_frame(subject: bytes, reply: bytes, head: bytes, body: bytes) -> bytes:
    """A PUB or HPUB command; ``head`` is a header block or empty, ``reply`` a subject or empty.

    Raises:
        UsageError: the subject is empty or holds white space, so that it would end the command early.
    """
    if not _SUBJECT.fullmatch(subject):
        raise UsageError(f"subject {subject.decode(errors='replace')!r} is empty or holds white space")
    if head:
        return b"HPUB %b %b %d %d\r\n%b%b\r\n" % (subject, reply, len(head), len(head) + len(body), head, body)
    return b"PUB %b %b %d\r\n%b\r\n" % (subject, reply, len(body), body)
