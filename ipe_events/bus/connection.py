"""The bus as everybody uses it: publish, ask, serve, read, keep.

``Bus`` is a ``Link`` (``ipe_events.bus.link``: reconnects, errors) that was checked when it was opened: the server is new enough
and runs JetStream. ``publish`` survives what happens on the way: it waits for the connection and repeats with the same message
id, so that the stream keeps one copy. What is larger lives in modules of its own, and ``Bus`` is the door to it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, Self

import orjson

from ipe_events.bus import jsapi
from ipe_events.bus.calls import Raw
from ipe_events.bus.frames import encode_headers, parse_headers, parse_status
from ipe_events.bus.link import Link
from ipe_events.bus.settings import BusSettings
from ipe_events.bus.version import check_version
from ipe_events.errors import BusError, BusPermissionDenied, BusTimeout, BusUnavailable, ServiceError

if TYPE_CHECKING:
    from ipe_events.bus.consumer import Delivery
    from ipe_events.bus.kv import KeyValue
    from ipe_events.bus.objects import ObjectStore
    from ipe_events.bus.services import Endpoint, ServiceHandle

__all__ = ["Bus", "BusSettings", "PubAck", "Reply"]

_ATTEMPT_SECONDS = 2.5
_NO_STREAM_SECONDS = 2.0
_RETRY_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class PubAck:
    """JetStream's word that a message is stored.

    Attributes:
        stream: where.
        seq: its position there.
        duplicate: the stream had this id already; ``seq`` is the first copy's.
    """

    stream: str
    seq: int
    duplicate: bool


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer to a request, and what a service's handler returns.

    Attributes:
        body: the payload.
        headers: without NATS' own status line.
        subject: where it arrived; empty on the answering side.
    """

    body: bytes = b""
    headers: Mapping[str, str] | None = None
    subject: str = ""


class Bus(Link):
    """A connection; made by ``Bus.connect``, closed by ``close`` or as an async context manager."""

    @classmethod
    async def connect(cls, settings: BusSettings, *, name: str, on_state: Callable[[bool], None] | None = None) -> Self:
        """Opens a connection and checks that the server is new enough and runs JetStream.

        Args:
            settings: where and as whom.
            name: how the server lists this connection.
            on_state: called with False when the connection is lost and True when it is back.

        Raises:
            BusUnavailable: no server answers.
            BusPermissionDenied: the credentials are refused.
            BusError: the server is too old or has no JetStream.
            ConfigError: a file of the settings cannot be used.
        """
        bus = cls(settings, name)
        if on_state:
            bus._listeners.append(on_state)
        await bus._open()
        try:
            await bus._check_server()
        except BaseException:
            await bus.client.close()
            raise
        return bus

    async def _check_server(self) -> None:
        info = self.client._server_info  # noqa: SLF001 - nats-py shows only parts of it
        place = ", ".join(self.settings.servers)
        check_version(str(info.get("version", "")), place)
        deadline = asyncio.get_running_loop().time() + self.settings.connect_timeout
        while True:
            try:
                await self.js_api("INFO")
            except BusPermissionDenied:
                if self._calls.inbox_error or not info.get("jetstream"):
                    raise
            except BusError as error:
                starting = error.retryable and info.get("jetstream")  # it recovers its streams, or has no leader yet
                if starting and asyncio.get_running_loop().time() < deadline:
                    await asyncio.sleep(_RETRY_SECONDS)
                    continue
                raise BusError(
                    f"JetStream is not on: {error.message}", where=place, fix="set `jetstream {}` in the server's configuration"
                ) from error
            return

    # --- publish and ask ---------------------------------------------------------------------------------------------------

    async def publish(
        self,
        subject: str,
        body: bytes,
        *,
        id: str | None = None,  # noqa: A002 - the name that CloudEvents and every caller use
        headers: Mapping[str, str] | None = None,
        timeout: float = 5.0,
    ) -> PubAck:
        """Stores a message in the stream of its subject; repeated with the same id until it is acknowledged or time is up.

        Args:
            subject: must belong to a stream.
            body: the payload.
            id: ``Nats-Msg-Id``; a random one, which serves for the repetitions, when None.
            headers: further headers.
            timeout: seconds, repetitions included.

        Raises:
            BusPermissionDenied, PayloadTooLarge: not sent.
            BusConflict: an expected sequence in the headers does not hold.
            BusUnavailable, BusTimeout: not acknowledged in time; it may be stored.
            BusError: the stream refused it, or no stream has this subject.
        """
        head = encode_headers({**(headers or {}), "Nats-Msg-Id": id or self.client._nuid.next().decode()})  # noqa: SLF001 - nats-py's id source
        loop = asyncio.get_running_loop()
        start = loop.time()
        while True:
            left = start + timeout - loop.time()
            try:
                raw = await self.ask(subject, body, head=head, timeout=min(max(left, 0.001), _ATTEMPT_SECONDS))
            except (BusUnavailable, BusTimeout):
                if loop.time() - start + _RETRY_SECONDS >= timeout:
                    raise
                continue
            if parse_status(raw.head)[0] != 503:
                return _pub_ack(raw.body, subject)
            if loop.time() - start + _RETRY_SECONDS >= min(timeout, _NO_STREAM_SECONDS):
                raise BusError("no stream keeps this subject", where=subject, fix="create the streams with `ipe bus apply`")
            await asyncio.sleep(_RETRY_SECONDS)

    async def request(
        self, subject: str, body: bytes = b"", *, headers: Mapping[str, str] | None = None, timeout: float = 5.0
    ) -> Reply:
        """Asks a service.

        Raises:
            ServiceError: the service answered with an error; code 503 when nobody serves the subject.
            BusUnavailable, BusTimeout, BusPermissionDenied, PayloadTooLarge: as in ``ask``.
        """
        return _service_reply(await self.ask(subject, body, head=encode_headers(headers or {}), timeout=timeout), subject)

    async def request_many(
        self,
        subject: str,
        body: bytes = b"",
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float = 5.0,
        until: Callable[[Reply], bool] | None = None,
    ) -> AsyncIterator[Reply]:
        """Asks a service that streams its answer, or everybody who listens.

        Without ``until`` the stream ends at the services' end marker, whose count is checked; with it, after the first reply for
        which it is true. ``timeout`` is the longest silence before each reply.

        Raises:
            ServiceError: the service answered with an error, perhaps after some replies.
            BusError: replies were lost on the way, or came faster than they were read.
            BusUnavailable, BusTimeout, BusPermissionDenied, PayloadTooLarge: as in ``ask``.
        """
        from ipe_events.bus.services import END_HEADER  # services build on connections

        received = 0
        with self._calls.open(subject) as call:
            self.client.write(self.frame(subject, encode_headers(headers or {}), body, call.inbox))
            while True:
                reply = _service_reply(await call.next(timeout), subject)
                count = (reply.headers or {}).get(END_HEADER)
                if count is not None and not reply.body:
                    if count != str(received):
                        raise BusError(f"the service sent {count} replies, {received} arrived", where=subject, fix="ask again")
                    return
                received += 1
                yield reply
                if until and until(reply):
                    return

    # --- JetStream ---------------------------------------------------------------------------------------------------------

    async def js_api(self, verb: str, request: Mapping[str, Any] | None = None, *, timeout: float = 5.0) -> dict[str, Any]:
        """One call of the JetStream API, e.g. ``js_api("STREAM.INFO.IPE_GOV")``.

        Raises:
            BusNotFound, BusConflict, BusError: JetStream's answer, with its error code.
            BusUnavailable: JetStream does not answer there (yet).
            BusTimeout, BusPermissionDenied: as in ``ask``.
        """
        raw = await self.ask(self.js_subject(verb), b"" if request is None else orjson.dumps(request), timeout=timeout)
        if parse_status(raw.head)[0] == 503:
            raise BusUnavailable("JetStream does not answer (off, or still starting)", where=verb)
        return jsapi.answer(raw.body, verb)

    def js_subject(self, verb: str) -> str:
        """The JetStream API's subject for a verb, in our domain."""
        return f"$JS.{self.settings.js_domain}.API.{verb}" if self.settings.js_domain else f"$JS.API.{verb}"

    async def stream_info(self, name: str) -> dict[str, Any]:
        """Configuration and state of a stream, as JetStream writes them.

        Raises:
            BusNotFound: no such stream.
        """
        return await self.js_api(f"STREAM.INFO.{name}")

    async def get_message(self, stream: str, *, seq: int = 0, last_by_subject: str = "") -> "jsapi.Stored | None":
        """One message of a stream, by its sequence or as the last of a subject; None when there is none."""
        return await jsapi.direct_get(self, stream, seq=seq, last_by_subject=last_by_subject)

    def read(
        self,
        stream: str,
        subjects: Iterable[str] = (),
        *,
        start: "int | datetime | Literal['all', 'last', 'new', 'last_per_subject']" = "all",
        limit: int = 0,
        follow: bool = False,
    ) -> "AsyncIterator[Delivery]":
        """Messages of a stream in order, without acknowledging; ends at the stream's end unless ``follow``."""
        from ipe_events.bus.reading import read  # reading builds on connections

        return read(self, stream, tuple(subjects), start=start, limit=limit, follow=follow)

    async def kv(self, bucket: str, *, create: bool = False, ttl: float | None = None, history: int = 1) -> "KeyValue":
        """A key-value bucket.

        Args:
            bucket: its name.
            create: make it when it is missing.
            ttl: seconds after which values vanish (only used when it is made).
            history: how many values each key keeps (only used when it is made).

        Raises:
            BusNotFound: it is missing and ``create`` is false.
        """
        from ipe_events.bus.kv import KeyValue  # buckets build on connections

        return await KeyValue.open(self, bucket, create=create, ttl=ttl, history=history)

    async def object_store(self, bucket: str, *, create: bool = False) -> "ObjectStore":
        """A store for large values.

        Raises:
            BusNotFound: it is missing and ``create`` is false.
        """
        from ipe_events.bus.objects import ObjectStore  # stores build on connections

        return await ObjectStore.open(self, bucket, create=create)

    async def serve(
        self,
        service: str,
        version: str,
        endpoints: "Sequence[Endpoint]",
        *,
        description: str = "",
        metadata: Mapping[str, str] | None = None,
    ) -> "ServiceHandle":
        """Starts a NATS micro service.

        Raises:
            BusPermissionDenied: the identity may not subscribe to an endpoint's subject.
            UsageError: a name or version that NATS does not take.
        """
        from ipe_events.bus.services import ServiceHandle  # services build on connections

        return await ServiceHandle.start(self, service, version, endpoints, description=description, metadata=metadata)


def _pub_ack(body: bytes, subject: str) -> PubAck:
    data = jsapi.answer(body, subject)
    return PubAck(stream=str(data["stream"]), seq=int(data["seq"]), duplicate=bool(data.get("duplicate", False)))


def _service_reply(raw: Raw, subject: str) -> Reply:
    """The reply, or the error that its headers carry."""
    if parse_status(raw.head)[0] == 503 and not raw.body:
        raise ServiceError("nobody serves this subject", code=503, where=subject, fix="start the service, or check its name")
    headers = parse_headers(raw.head)
    text = headers.get("Nats-Service-Error")
    code = headers.get("Nats-Service-Error-Code")
    if text is not None or code is not None:
        raise ServiceError(text or "no description", code=int(code) if code and code.isdecimal() else 500, where=subject)
    return Reply(body=raw.body, headers=headers, subject=raw.subject)
