"""The API server's refusals: ``Status`` bodies as the real one words them.

Clients decide by ``reason``, ``code`` and ``details.causes`` (client-go by nothing else), people by the message; so both are the
real server's, checked against it by ``tests/contract``. ``StatusError`` travels as an exception inside the fake and leaves it
either as an HTTP answer or, for the in-process helpers, as itself.
"""

from typing import Any

from ipe_events.errors import KubeError
from ipe_events.testing.fake.kinds import Kind

JsonObject = dict[str, Any]


class StatusError(KubeError):
    """A refusal of the fake API server.

    Args:
        code: HTTP status.
        reason: ``NotFound``, ``Conflict`` …; empty where the real server leaves it out.
        message: the text for people.
        details: the ``details`` object; left out of the body when None.
        metadata: the ``metadata`` of the Status (a ``continue`` token lives there).
        headers: extra HTTP headers, such as ``Retry-After``.
    """

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        *,
        details: JsonObject | None = None,
        metadata: JsonObject | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message, status=code, reason=reason)
        self.code = code
        self.details = details
        self.metadata = metadata or {}
        self.headers = headers or {}

    def body(self) -> JsonObject:
        """The ``Status`` object that goes over the wire."""
        status: JsonObject = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": self.metadata,
            "status": "Failure",
            "message": self.message,
        }
        if self.reason:
            status["reason"] = self.reason
        if self.details is not None:
            status["details"] = self.details
        return status | {"code": self.code}


def _details(kind: Kind, name: str, **more: Any) -> JsonObject:
    details: JsonObject = {"name": name} if name else {}
    if kind.group:
        details["group"] = kind.group
    return details | {"kind": kind.resource} | more


def not_found(kind: Kind, name: str) -> StatusError:
    """404: no such object."""
    return StatusError(404, "NotFound", f'{kind.qualified} "{name}" not found', details=_details(kind, name))


def no_such_resource() -> StatusError:
    """404: the group version is served, the resource is not."""
    return StatusError(404, "NotFound", "the server could not find the requested resource", details={})


def already_exists(kind: Kind, name: str) -> StatusError:
    """409: the name is taken."""
    return StatusError(409, "AlreadyExists", f'{kind.qualified} "{name}" already exists', details=_details(kind, name))


def conflict(kind: Kind, name: str, why: str = "") -> StatusError:
    """409: a stale resourceVersion, or a precondition that does not hold (``why``)."""
    why = why or "the object has been modified; please apply your changes to the latest version and try again"
    message = f'Operation cannot be fulfilled on {kind.qualified} "{name}": {why}'
    return StatusError(409, "Conflict", message, details=_details(kind, name))


def must_name_version(kind: Kind, name: str) -> StatusError:
    """422: an update without resourceVersion of a kind that demands one."""
    message = "Invalid value: 0: must be specified for an update"
    field = "metadata.resourceVersion"
    causes = [{"reason": "FieldValueInvalid", "message": message, "field": field}]
    text = f'{kind.qualified} "{name}" is invalid: {field}: {message}'
    return StatusError(422, "Invalid", text, details=_details(kind, name, causes=causes))


def precondition_failed(kind: Kind, name: str, what: str, wanted: str, found: str) -> StatusError:
    """409: a precondition of a delete does not hold."""
    hint = "deleted and then recreated" if what == "UID" else "modified"
    why = f"the {what} in the precondition ({wanted}) does not match the {what} in record ({found}). "
    message = f'Operation cannot be fulfilled on {kind.qualified_kind} "{name}": {why}The object might have been {hint}'
    details = _details(kind, name) | {"kind": kind.kind}
    return StatusError(409, "Conflict", message, details=details)


def invalid(kind: Kind, name: str, *causes: tuple[str, str, str]) -> StatusError:
    """422: the object breaks rules; each cause is (field, reason, message)."""
    texts = [f"{field}: {message}" for field, _, message in causes]
    joined = texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
    message = f'{kind.qualified_kind} "{name}" is invalid: {joined}'
    listed = [{"reason": reason, "message": text, "field": field} for field, reason, text in causes]
    details: JsonObject = {"name": name} if name else {}
    if kind.group:
        details["group"] = kind.group
    return StatusError(422, "Invalid", message, details=details | {"kind": kind.kind, "causes": listed})


def bad_options(field: str, message: str, *, reason: str = "FieldValueForbidden", options: str = "ListOptions") -> StatusError:
    """422: options that contradict each other, or are unknown."""
    return StatusError(
        422,
        "Invalid",
        f'{options}.meta.k8s.io "" is invalid: {field}: {message}',
        details={
            "group": "meta.k8s.io",
            "kind": options,
            "causes": [{"reason": reason, "message": message, "field": field}],
        },
    )


def unprocessable_patch() -> StatusError:
    """422: a JSON Patch that cannot be applied, a failed ``test`` among them. The real server does not say which."""
    return StatusError(422, "Invalid", "the server rejected our request due to an error in our request", details={})


def bad_request(message: str) -> StatusError:
    """400."""
    return StatusError(400, "BadRequest", message)


def unreadable(kind: Kind, why: str, *, patched: bool = False) -> StatusError:
    """400: a body that does not fit the types of its kind; 422 when a patch made it so."""
    if patched:
        cause = {"reason": "FieldValueInvalid", "message": f"Invalid value: {why}", "field": "patch"}
        return StatusError(422, "Invalid", f' "" is invalid: patch: Invalid value: {why}', details={"causes": [cause]})
    return bad_request(f'{kind.kind} in version "{kind.version}" cannot be handled as a {kind.kind}: {why}')


def unsupported_media_type(message: str) -> StatusError:
    """415."""
    return StatusError(415, "UnsupportedMediaType", message, details={})


def method_not_allowed() -> StatusError:
    """405: the resource is served, this verb is not."""
    message = "the server does not allow this method on the requested resource"
    return StatusError(405, "MethodNotAllowed", message, details={})


def unauthorized() -> StatusError:
    """401."""
    return StatusError(401, "Unauthorized", "Unauthorized")


def forbidden(
    user: str, verb: str, group: str, resource: str, *, name: str = "", namespace: str = "", subresource: str = ""
) -> StatusError:
    """403 in the words of the RBAC authorizer."""
    qualified = f"{resource}.{group}" if group else resource
    subject = f'{qualified} "{name}"' if name else qualified
    what = f"{resource}/{subresource}" if subresource else resource
    scope = f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
    message = f'{subject} is forbidden: User "{user}" cannot {verb} resource "{what}" in API group "{group}" {scope}'
    details: JsonObject = {"name": name} if name else {}
    if group:
        details["group"] = group
    return StatusError(403, "Forbidden", message, details=details | {"kind": resource})


def forbidden_path(user: str, verb: str, path: str) -> StatusError:
    """403 on a path that is no resource, such as ``/metrics``."""
    return StatusError(403, "Forbidden", f'forbidden: User "{user}" cannot {verb} path "{path}"', details={})


def refused_by_admission(kind: Kind, name: str, why: str, causes: list[JsonObject] | None = None) -> StatusError:
    """403 from admission (quota, a namespace that is going away)."""
    details = _details(kind, name)
    if causes:
        details["causes"] = causes
    return StatusError(403, "Forbidden", f'{kind.qualified} "{name}" is forbidden: {why}', details=details)


def too_old(requested: int, oldest: int) -> StatusError:
    """410: history before ``oldest`` is compacted."""
    return StatusError(410, "Expired", f"too old resource version: {requested} ({oldest})")


def exact_too_old() -> StatusError:
    """410: an exact list at a compacted resourceVersion."""
    return StatusError(410, "Expired", "The resourceVersion for the provided list is too old.")


def continue_expired(inconsistent_token: str) -> StatusError:
    """410: a continue token whose snapshot is compacted; carries a token that goes on without consistency."""
    message = (
        "The provided continue parameter is too old to display a consistent list result. You can start a new list without "
        "the continue parameter, or use the continue token in this response to retrieve the remainder of the results. "
        "Continuing with the provided token results in an inconsistent list - objects that were created, modified, or "
        "deleted between the time the first chunk was returned and now may show up in the list."
    )
    return StatusError(410, "Expired", message, metadata={"continue": inconsistent_token})


def too_large(requested: int, current: int) -> StatusError:
    """504: a resourceVersion from the future."""
    return StatusError(
        504,
        "Timeout",
        f"Timeout: Too large resource version: {requested}, current: {current}",
        details={
            "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
            "retryAfterSeconds": 1,
        },
    )


def too_many_requests(retry_after: int) -> StatusError:
    """429 with ``Retry-After`` (seconds)."""
    return StatusError(
        429,
        "TooManyRequests",
        "too many requests, please try again later",
        details={"retryAfterSeconds": retry_after},
        headers={"Retry-After": str(retry_after)},
    )


def internal_error(why: str) -> StatusError:
    """500."""
    return StatusError(500, "InternalError", f"Internal error occurred: {why}", details={"causes": [{"message": why}]})
