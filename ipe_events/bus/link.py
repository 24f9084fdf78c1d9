"""One connection kept open for ever, and the border where errors of ``nats`` become ours.

``Link`` wraps our nats-py ``Client`` (``ipe_events.bus.client``). NATS tells of a permission violation asynchronously, on the
connection and not to the caller, who would see a time-out; ``Link`` remembers which call published or subscribed to which subject
(``ipe_events.bus.calls``) and fails exactly those. A lost connection fails every waiting call at once. Reconnecting never ends;
its delays grow to eight seconds and carry jitter, so that a fleet does not come back in one wave.
"""

import asyncio
import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Self

from nats import errors as nats_errors
from nats.aio.client import Server

from ipe_events.bus.calls import Call, Calls, Kind, Raw
from ipe_events.bus.client import Client
from ipe_events.bus.frames import encode_headers, publish_frame
from ipe_events.bus.settings import BusSettings
from ipe_events.errors import BusError, BusPermissionDenied, BusUnavailable, IpeError, PayloadTooLarge
from ipe_events.tasks import keeping_cancellation
from ipe_events.telemetry.log import get_logger

log = get_logger(__name__)

_PING_SECONDS = 10
_MAX_DELAY_SECONDS = 8.0
_BREATHE_BYTES = 4 << 20


class Link:
    """A connection; ``Bus`` is one that is used, and says what can be done with it.

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

    async def close(self) -> None:
        """Sends what is buffered, ends subscriptions and closes; does nothing the second time."""
        if self._closing:
            return
        self._closing = True
        if self.client.is_connected:
            with suppress(nats_errors.Error, OSError), keeping_cancellation():  # the connection goes away in any case
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

    # --- bytes in and out ----------------------------------------------------------------------------------------------------

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

    async def flush(self, timeout: float = 5.0) -> None:
        """Waits until the server has seen everything that was written.

        Raises:
            BusUnavailable: the connection was lost.
        """
        if not self.connected:
            raise BusUnavailable("no connection to NATS", where=self.name)
        try:
            with keeping_cancellation():
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
