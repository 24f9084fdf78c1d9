"""One root for everything that can go wrong, so that a caller can catch, print and retry by one rule.

An error names *where* it happened, *what* was found there and the *fix*: the command line prints exactly that line. A class
says whether a retry helps (``retryable``); foreign exceptions (``nats``, ``aiohttp``, ``kubernetes_asyncio``, ``OSError``) are
translated into these classes where they enter, in ``ipe_events.bus`` and ``ipe_events.kube``, and nowhere else. Where Python has
a builtin for the same thing, the class mixes it in: ``except TimeoutError`` keeps working.
"""

from typing import ClassVar


class IpeError(Exception):
    """Root of all errors of this package.

    Args:
        message: what happened, with the offending value, as one line without a full stop.
        where: the place (file and line, subject, cluster and object); empty when the message says it.
        fix: what the reader can do about it; empty when nobody can.
    """

    retryable: ClassVar[bool] = False
    """Whether the same call may succeed later without anybody changing anything."""

    def __init__(self, message: str, *, where: str = "", fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.fix = fix

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text} (fix: {self.fix})" if self.fix else text


# --- what a person wrote -------------------------------------------------------------------------------------------------


class UsageError(IpeError, ValueError):
    """An argument, flag or call is wrong; exit code 2 on the command line."""


class ConfigError(IpeError, ValueError):
    """A file or environment variable holds something unusable; names file, key and value."""


class SubjectError(IpeError, ValueError):
    """A subject or a token of one is malformed."""


class SchemaError(IpeError, ValueError):
    """A payload does not fit its schema (unknown field, wrong type, version from the future)."""


class DeclarationError(IpeError, TypeError):
    """A handler's declaration is wrong; raised at import, naming function and parameter."""


# --- the bus -------------------------------------------------------------------------------------------------------------


class BusError(IpeError):
    """NATS or JetStream refused something; a retry does not help."""


class BusUnavailable(BusError, ConnectionError):
    """No connection to NATS, or it was lost while waiting."""

    retryable = True


class BusTimeout(BusError, TimeoutError):
    """NATS or the service behind a subject did not answer in time."""

    retryable = True


class BusPermissionDenied(BusError, PermissionError):
    """The identity may not publish or subscribe there; names subject and identity."""


class PayloadTooLarge(BusError, ValueError):
    """A message exceeds the server's ``max_payload``; it was not sent."""


class BusConflict(BusError):
    """Somebody else wrote first: a key exists already, or its revision is not the expected one."""


class BusNotFound(BusError, LookupError):
    """No such stream, consumer, bucket, key or object."""


class TopologyError(BusError):
    """Streams, buckets or consumers are not as they should be."""


class ServiceError(BusError):
    """A NATS service answered with an error; ``code`` is its status.

    Args:
        message: the service's own description.
        code: HTTP-like status, e.g. 400, 403, 404, 500, 503.
    """

    def __init__(self, message: str, *, code: int, where: str = "", fix: str = "") -> None:
        super().__init__(message, where=where, fix=fix)
        self.code = code


# --- Kubernetes ----------------------------------------------------------------------------------------------------------


class KubeError(IpeError):
    """The Kubernetes API refused or failed; ``status`` is the HTTP status (0: none), ``reason`` the API's own.

    ``message`` can quote what a user wrote: it is redacted before it is published.
    """

    def __init__(self, message: str, *, status: int = 0, reason: str = "", where: str = "", fix: str = "") -> None:
        super().__init__(message, where=where, fix=fix)
        self.status = status
        self.reason = reason


class KubeUnavailable(KubeError, ConnectionError):
    """The API server cannot be reached, reset the connection, or answers 5xx."""

    retryable = True


class KubeTimeout(KubeError, TimeoutError):
    """The API server did not answer in time: what was asked may have happened."""

    retryable = True


class KubeThrottled(KubeError):
    """429: come back after ``retry_after`` seconds."""

    retryable = True

    def __init__(self, message: str, *, retry_after: float = 1.0, status: int = 429, reason: str = "", where: str = "") -> None:
        super().__init__(message, status=status, reason=reason, where=where)
        self.retry_after = retry_after


class KubeGone(KubeError):
    """410: the resourceVersion or continue token has expired."""


class KubeUnauthorized(KubeError, PermissionError):
    """401: the credentials are not (or no longer) accepted; they may be refreshed meanwhile."""

    retryable = True


class KubeForbidden(KubeError, PermissionError):
    """403: the identity lacks a right."""


class KubeNotFound(KubeError, LookupError):
    """404: no such object or resource."""


class KubeConflict(KubeError):
    """409: the object changed, or exists already."""


class KubeInvalid(KubeError, ValueError):
    """400, 415 or 422: the API server does not accept this body, or a JSON Patch ``test`` failed."""
