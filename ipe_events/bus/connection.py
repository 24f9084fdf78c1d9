"""One connection to the bus: publish, ask, serve, and say clearly what went wrong.

``Bus`` wraps our nats-py ``Client`` (``ipe_events.bus.client``) and is the border for errors: nothing of ``nats`` leaves it. NATS
tells of a permission violation asynchronously, on the connection and not to the caller, who would see a time-out; ``Bus``
remembers which call published or subscribed to which subject, and fails exactly those. A lost connection fails every waiting
call at once; ``publish`` then waits for the connection and repeats with the same message id, so the stream keeps one copy.
Reconnecting never ends; its delays grow to eight seconds and carry jitter, so that a fleet does not come back in one wave.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, Self

import orjson
from nats import errors as nats_errors
from nats.aio.client import Server

from ipe_events.bus import jsapi
from ipe_events.bus.calls import Call, Calls, Kind, Raw
from ipe_events.bus.client import Client
from ipe_events.bus.frames import encode_headers, parse_headers, parse_status, publish_frame
from ipe_events.bus.settings import BusSettings
from ipe_events.bus.version import check_version
from ipe_events.errors import (
    BusError,
    BusPermissionDenied,
    BusTimeout,
    BusUnavailable,
    IpeError,
    PayloadTooLarge,
    ServiceError,
)
from ipe_events.telemetry.log import get_logger

if TYPE_CHECKING:
    from ipe_events.bus.consumer import Delivery
    from ipe_events.bus.kv import KeyValue
    from ipe_events.bus.objects import ObjectStore
    from ipe_events.bus.services import Endpoint, ServiceHandle

__all__ = ["Bus", "BusSettings", "PubAck", "Reply"]

log = get_logger(__name__)

_PING_SECONDS = 10
_ATTEMPT_SECONDS = 2.5
_NO_STREAM_SECONDS = 2.0
_RETRY_SECONDS = 0.1
_MAX_DELAY_SECONDS = 8.0
_BREATHE_BYTES = 4 << 20


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


class Bus:
    """A connection; made by ``Bus.connect``, closed by ``close`` or as an async context manager.

    Attributes:
        identity: who we are, for error messages.
        client: our nats-py client, for this package's hot paths only.
        name: how the server lists this connection.
    """

    def __init__(self, settings: BusSettings, name: str) -> None:
        self.settings = settings
        self.name = name
        self.identity = settings.identity
        self.client = Client()
        self.client.on_violation = self._violated
        self._up = asyncio.Event()
        self._listeners: list[Callable[[bool], None]] = []
        self._violations: list[Callable[[str, str], None]] = []
        self._calls: Calls
        self._attempts = 0
        self._first_error: Exception | None = None
        self._closing = False

    # --- life --------------------------------------------------------------------------------------------------------------

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

    async def _open(self) -> None:
        settings, client = self.settings, self.client
        place = ", ".join(settings.servers)
        if settings.nkey_seed_file and not settings.jwt_file:
            client._public_nkey = self.identity  # noqa: SLF001 - nats-py sets it only when it holds the seed itself
        options = settings.client_options()
        try:
            async with asyncio.timeout(settings.connect_timeout):
                await client.connect(
                    list(settings.servers),
                    name=self.name,
                    allow_reconnect=False,  # only for the first time, below: a refused password is final then
                    max_reconnect_attempts=1,
                    reconnect_time_wait=0.1,  # type: ignore[arg-type]  # seconds; a fraction works
                    connect_timeout=settings.connect_timeout,  # type: ignore[arg-type]  # likewise
                    ping_interval=_PING_SECONDS,
                    error_cb=self._on_error,
                    disconnected_cb=self._on_down,
                    reconnected_cb=self._on_up,
                    reconnect_to_server_handler=self._next_server,
                    **options,
                )
        except (nats_errors.Error, OSError, TimeoutError) as error:
            await client.close()
            raise self._connect_error(self._first_error or error, place) from error
        except BaseException:
            await client.close()
            raise
        client.options["allow_reconnect"] = True
        client.options["max_reconnect_attempts"] = -1
        self._up.set()
        self._calls = Calls(client, client.new_inbox())

    def _connect_error(self, error: Exception, place: str) -> IpeError:
        """Our error for why the first connection failed."""
        if isinstance(error.__cause__, IpeError):
            return error.__cause__
        text = str(error).removeprefix("nats: ").strip("'")
        if "authorization" in text.lower() or "authentication" in text.lower():
            return BusPermissionDenied(
                f"NATS refuses the credentials of {self.identity!r}",
                where=place,
                fix="check user, creds or nkey; see `ipe context list`",
            )
        if "certificate" in text.lower() or "ssl" in type(error).__name__.lower():
            return BusError(f"TLS with NATS failed: {text}", where=place, fix="check tls_ca, tls_cert and the server's name")
        reason = text or ("no answer" if isinstance(error, TimeoutError) else type(error).__name__)
        return BusUnavailable(
            f"NATS cannot be reached: {reason}", where=place, fix="start one with `ipe bus serve`, or set a context"
        )

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

    async def close(self) -> None:
        """Sends what is buffered, ends subscriptions and closes; does nothing the second time."""
        if self._closing:
            return
        self._closing = True
        if self.client.is_connected:
            with suppress(nats_errors.Error, OSError):  # the connection goes away in any case
                await self.client.flush(timeout=2)
        self._calls.fail_all(BusUnavailable("the connection was closed"))
        await self.client.close()
        self._up.clear()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    # --- state -------------------------------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether the connection is up now."""
        return self._up.is_set()

    async def wait_connected(self) -> None:
        """Returns when the connection is up."""
        await self._up.wait()

    @property
    def max_payload(self) -> int:
        """What headers and body of one message may have together, in bytes."""
        return int(self.client.max_payload)

    def on_state(self, callback: Callable[[bool], None]) -> Callable[[], None]:
        """Calls back with False when the connection is lost and True when it is back; returns what ends that."""
        self._listeners.append(callback)
        return lambda: self._listeners.remove(callback)

    def on_violation(self, callback: Callable[[str, str], None]) -> Callable[[], None]:
        """Calls back with ``publish`` or ``subscription`` and the lower-case subject of each permission violation."""
        self._violations.append(callback)
        return lambda: self._violations.remove(callback)

    def _next_server(self, servers: list[Server], _info: dict[str, Any]) -> tuple[Server, float]:
        """Which server to try next and after how many seconds: round robin, growing delays with jitter."""
        attempt, self._attempts = self._attempts, self._attempts + 1
        rounds = attempt // len(servers)
        delay = min(_MAX_DELAY_SECONDS, 0.1 * 2 ** min(rounds, 10))
        return servers[attempt % len(servers)], delay * random.uniform(0.5, 1.0)  # noqa: S311 - jitter

    async def _on_error(self, error: Exception) -> None:
        if not self._up.is_set() and self._first_error is None:
            self._first_error = error
        log.debug("NATS client error", error=str(error), bus=self.name)

    async def _on_down(self) -> None:
        if not self._up.is_set():
            return
        self._up.clear()
        self._calls.fail_all(
            BusUnavailable("the connection to NATS was lost while waiting", where=", ".join(self.settings.servers))
        )
        if not self._closing:
            log.warning("connection to NATS lost; reconnecting", bus=self.name)
        self._tell(up=False)

    async def _on_up(self) -> None:
        self._attempts = 0
        self._up.set()
        log.info("connection to NATS is back", bus=self.name)
        self._tell(up=True)

    def _tell(self, *, up: bool) -> None:
        for listener in list(self._listeners):
            try:
                listener(up)
            except Exception:
                log.exception("a connection listener failed", bus=self.name)

    def _violated(self, kind: str, subject: str) -> None:
        log.warning("NATS permission violation", kind=kind, subject=subject, identity=self.identity)
        self._calls.deny(kind, subject, self._denied)
        for callback in list(self._violations):
            callback(kind, subject)

    def _denied(self, kind: str, subject: str) -> BusPermissionDenied:
        act = "publish to" if kind == "publish" else "subscribe to"
        return BusPermissionDenied(
            f"{self.identity!r} may not {act} {subject!r}", where=self.name, fix="grant it in the identity's NATS permissions"
        )

    # --- publish and ask ---------------------------------------------------------------------------------------------------

    def frame(self, subject: str, head: bytes, body: bytes, reply: str = "") -> bytes:
        """A publish command, refused when it exceeds ``max_payload``: the server would close the connection.

        Raises:
            PayloadTooLarge: headers and body together are too large.
        """
        size = len(head) + len(body)
        if size > self.max_payload:
            raise PayloadTooLarge(
                f"message of {size} bytes exceeds the server's max_payload of {self.max_payload}",
                where=subject,
                fix="send less, or raise max_payload",
            )
        return publish_frame(subject.encode(), reply.encode(), head, body)

    def send(self, subject: str, body: bytes = b"", *, headers: Mapping[str, str] | None = None) -> None:
        """A core NATS publish without any acknowledgement.

        Raises:
            BusUnavailable: there is no connection.
            PayloadTooLarge: headers and body together are too large.
        """
        frame = self.frame(subject, encode_headers(headers or {}), body)
        if not self.connected:
            raise BusUnavailable("no connection to NATS", where=subject)
        self.client.write(frame)

    async def ask(self, subject: str, body: bytes = b"", *, head: bytes = b"", timeout: float = 5.0) -> Raw:
        """One request, one answer, as bytes.

        Raises:
            BusUnavailable: no connection, or lost while waiting.
            BusTimeout: no answer in ``timeout`` seconds.
            BusPermissionDenied: the identity may not publish there.
            PayloadTooLarge: headers and body together are too large.
        """
        if not self.connected:
            try:
                async with asyncio.timeout(timeout):
                    await self.wait_connected()
            except TimeoutError:
                raise BusUnavailable(f"no connection to NATS for {timeout:g} s", where=subject) from None
        with self._calls.open(subject) as call:
            self.client.write(self.frame(subject, head, body, call.inbox))
            return await call.next(timeout)

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

    async def flush(self, timeout: float = 5.0) -> None:
        """Waits until the server has seen everything that was written.

        Raises:
            BusUnavailable: the connection was lost.
        """
        if not self.connected:
            raise BusUnavailable("no connection to NATS", where=self.name)
        try:
            await self.client.flush(timeout=timeout)  # type: ignore[arg-type]  # seconds; a fraction works
        except (nats_errors.Error, OSError) as error:
            raise BusUnavailable("the connection to NATS was lost while flushing", where=self.name) from error

    async def breathe(self) -> None:
        """Waits while more than 4 MiB are written but not sent, so that a stream of replies cannot fill the memory.

        Raises:
            BusUnavailable: the connection was lost.
        """
        while self.client.buffered > _BREATHE_BYTES:
            await self.flush()

    def watching(self, subject: str, kind: Kind) -> Call:
        """A call that fails when the server refuses to let us publish or subscribe to ``subject``; use as a context manager."""
        return self._calls.open(subject, kind=kind)

    async def confirm(self, call: Call) -> None:
        """Waits until the server has seen what was written, and raises if it refused the call's subject.

        Raises:
            BusPermissionDenied: it did.
            BusUnavailable: the connection was lost.
        """
        await self.flush()
        call.check()


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
