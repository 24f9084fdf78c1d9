"""One cluster's HTTP session: every request to its API server passes here.

The session is aiohttp's own, configured from what ``kubernetes_asyncio`` reads (``ipe_events.kube.config``). It has a connect
time-out, refreshes credentials that expire or were refused (once per request), swaps the connection when certificates rotate
without losing anybody's place, and raises nothing but ``KubeError``s. It retries nothing else: when to try again is the caller's
decision.

``request`` reads a whole answer within a size limit; ``stream`` hands out the answer as it comes, for lists and watches.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self

import aiohttp
import msgspec
from yarl import URL

from ipe_events.errors import ConfigError, KubeError, KubeTimeout
from ipe_events.kube.config import ClusterSource, Credentials, load_credentials
from ipe_events.kube.status import error_of, translate
from ipe_events.telemetry.log import get_logger

__all__ = ["ClusterSource", "KubeResponse", "KubeSession"]

CONNECT_SECONDS = 10.0
RETRY_CREDENTIALS_SECONDS = 10.0
READ_BUFFER = 1 << 20
"""Bytes that a stream may hold before the socket is paused (aiohttp pauses at twice this)."""
READ_SIZE = 512 << 10
"""Bytes taken from a socket at once. asyncio's 256 KiB mean twice as many turns of the loop: 5-10 % of the CPU."""
MAX_ANSWER = 64 << 20
"""Bytes of one answer that is read whole; lists are streamed instead."""
MAX_ERROR = 1 << 20

_log = get_logger(__name__)

_FAILURES = (aiohttp.ClientError, TimeoutError, OSError)


@dataclass(frozen=True, slots=True)
class KubeResponse:
    """A successful answer: HTTP status, headers (case-insensitive) and body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The decoded body.

        Raises:
            KubeError: it is not JSON.
        """
        try:
            return msgspec.json.decode(self.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise KubeError(f"the answer is not JSON: {error}", status=self.status) from error


class KubeSession:
    """A session with one API server; make it with ``open`` and ``close`` it (or use ``async with``).

    Attributes:
        source: where it came from.
        name: the operator's name for the cluster.
    """

    def __init__(self, source: ClusterSource, credentials: Credentials) -> None:
        self.source = source
        self.name = source.name
        self._credentials = credentials
        self._http = _http_session(credentials)
        self._refreshing = asyncio.Lock()
        self._renew_at = _deadline(credentials)

    @classmethod
    async def open(cls, source: ClusterSource) -> Self:
        """Read the source's credentials; connects on the first request.

        Raises:
            ConfigError: names file and problem.
        """
        return cls(source, await load_credentials(source))

    async def close(self) -> None:
        """End every connection."""
        await self._http.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    @property
    def server(self) -> str:
        """Base URL of the API server."""
        return self._credentials.server

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 30.0,
    ) -> KubeResponse:
        """Send one request and read the whole answer.

        Args:
            method: HTTP method.
            path: absolute and already quoted, as ``ApiResource.path`` builds it.
            params: query.
            body: sent as it is; ``Content-Type`` is ``application/json`` unless ``headers`` says otherwise.
            headers: further headers.
            timeout: seconds for everything together.

        Raises:
            KubeError: of the kind that the answer's Status means; ``KubeTimeout``: it may have happened.
        """
        try:
            async with asyncio.timeout(timeout):
                async with self.stream(path, params, method=method, body=body, headers=headers) as response:
                    data = await _read(response, MAX_ANSWER, self._where(method, path))
                    return KubeResponse(response.status, response.headers, data)
        except TimeoutError as error:
            if isinstance(error, KubeError):
                raise
            raise KubeTimeout(f"no answer within {timeout:g} s", where=self._where(method, path)) from error

    async def json(self, method: str, path: str, **arguments: Any) -> Any:
        """``request``, decoded."""
        return (await self.request(method, path, **arguments)).json()

    @asynccontextmanager
    async def stream(
        self,
        path: str,
        params: Mapping[str, str] | None = None,
        *,
        method: str = "GET",
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        idle: float | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer as it comes; errors inside the ``async with`` are translated too.

        Args:
            path: absolute and already quoted.
            params: query.
            method: HTTP method.
            body: sent as it is.
            headers: further headers.
            idle: seconds without a byte after which the connection counts as dead; None: never.

        Raises:
            KubeError: as for ``request``.
        """
        where = self._where(method, path)
        try:
            response = await self._authenticated(partial(self._send, method, path, params, body, headers, idle))
            async with response:
                if response.status >= 400:
                    raise error_of(response.status, await _read(response, MAX_ERROR, where), where, response.headers)
                _read_wide(response)
                yield response
        except KubeError:
            raise
        except _FAILURES as error:
            raise translate(error, where) from error

    async def _authenticated(self, send: Callable[[], Awaitable[aiohttp.ClientResponse]]) -> aiohttp.ClientResponse:
        """Send, and once more with fresh credentials when they were refused."""
        if self._renew_at is not None and asyncio.get_running_loop().time() >= self._renew_at:
            await self._refresh(self._credentials)
        response = await send()
        if response.status == 401:
            used = self._credentials
            if await self._refresh(used):
                response.release()
                response = await send()
        return response

    async def _send(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None,
        body: bytes | None,
        headers: Mapping[str, str] | None,
        idle: float | None,
    ) -> aiohttp.ClientResponse:
        credentials = self._credentials
        # identity: compressing costs the API server and us more than the wire between us
        sent = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if credentials.authorization:
            sent["Authorization"] = credentials.authorization
        if body is not None:
            sent["Content-Type"] = "application/json"
        sent.update(headers or {})
        url = URL(credentials.server + path, encoded=True)
        return await self._http.request(
            method,
            url.update_query(params) if params else url,
            data=body,
            headers=sent,
            proxy=credentials.proxy,
            server_hostname=credentials.server_name,
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=idle),
        )

    async def _refresh(self, used: Credentials) -> bool:
        """Read the credentials again; returns whether there are others than those ``used``. A bad new file keeps the old ones."""
        async with self._refreshing:
            if self._credentials is not used:
                return True
            try:
                fresh = await load_credentials(self.source)
            except ConfigError as error:
                _log.warning("credentials could not be read again; keeping the old ones", cluster=self.name, error=str(error))
                if self._renew_at is not None:
                    self._renew_at = asyncio.get_running_loop().time() + RETRY_CREDENTIALS_SECONDS
                return False
            self._renew_at = _deadline(fresh)
            changed = (fresh.fingerprint, fresh.authorization) != (used.fingerprint, used.authorization)
            if fresh.fingerprint != used.fingerprint:
                old, self._http = self._http, _http_session(fresh)
                await old.close()
            self._credentials = fresh
            return changed

    def _where(self, method: str, path: str) -> str:
        return f"{self.name}: {method} {path}"


def _http_session(credentials: Credentials) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(limit=0, ssl=credentials.tls if credentials.tls is not None else True)
    return aiohttp.ClientSession(connector=connector, read_bufsize=READ_BUFFER, cookie_jar=aiohttp.DummyCookieJar())


def _read_wide(response: aiohttp.ClientResponse) -> None:
    """Have asyncio take ``READ_SIZE`` from the socket at once, where its transport lets us say so (with TLS it does not)."""
    connection = response.connection  # None: everything has come with the headers
    transport: Any = connection.transport if connection is not None else None
    if hasattr(transport, "max_size"):
        transport.max_size = READ_SIZE


def _deadline(credentials: Credentials) -> float | None:
    return None if credentials.ttl is None else asyncio.get_running_loop().time() + credentials.ttl


async def _read(response: aiohttp.ClientResponse, limit: int, where: str) -> bytes:
    """The whole body.

    Raises:
        KubeError: it is larger than ``limit``.
    """
    parts, size = [], 0
    async for part in response.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > limit:
            raise KubeError(f"the answer is larger than {limit >> 20} MiB", status=response.status, where=where)
    return b"".join(parts)
