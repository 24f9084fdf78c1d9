"""What a request asks for, read from method, path and query: the API server's RequestInfo."""

from dataclasses import dataclass, field

import orjson
from aiohttp import web

from ipe_events.testing.fake import status
from ipe_events.testing.fake.kinds import Kind
from ipe_events.testing.fake.listing import ListOptions
from ipe_events.testing.fake.operations import WriteOptions
from ipe_events.testing.fake.selectors import Predicate, both, field_selector, label_selector
from ipe_events.testing.fake.watch import WatchOptions

_WRITE_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_MAX_MANAGER = 128


@dataclass(frozen=True, slots=True)
class RequestInfo:
    """One request. ``verb`` is ``discovery`` and ``resource`` empty for everything that names no resource."""

    path: str
    verb: str = "discovery"
    group: str = ""
    version: str = ""
    namespace: str = ""
    resource: str = ""
    name: str = ""
    subresource: str = ""
    token: str = ""
    continue_: str = field(default="", repr=False)

    @property
    def key(self) -> tuple[str, str]:
        """The object's key in the store."""
        namespace = "" if self.resource == "namespaces" and not self.group else self.namespace
        return namespace, self.name


def parse(request: web.Request) -> RequestInfo:
    """Read method, path and query.

    Raises:
        StatusError: 405, a method that the API does not know.
    """
    parts = [part for part in request.path.split("/") if part]
    token = request.headers.get("Authorization", "").partition(" ")[2].strip()
    if len(parts) < 3 or (parts[0] == "apis" and len(parts) < 4) or parts[0] not in ("api", "apis"):
        return RequestInfo(request.path, token=token)
    group, version, rest = ("", parts[1], parts[2:]) if parts[0] == "api" else (parts[1], parts[2], parts[3:])
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 1:
        namespace = rest[1]
        if len(rest) > 2 and rest[2] not in ("status", "finalize"):
            rest = rest[2:]
    resource, name, subresource = (*rest, "", "")[:3]
    if len(rest) > 3:
        raise status.no_such_resource()
    query = request.query
    return RequestInfo(
        request.path, _verb(request.method, name, watch=_flag(query.get("watch"))), group, version, namespace, resource,
        name, subresource, token, query.get("continue", ""),
    )  # fmt: skip


def _verb(method: str, name: str, *, watch: bool) -> str:
    if method in ("GET", "HEAD"):
        return "watch" if watch else ("get" if name else "list")
    if method == "DELETE" and not name:
        return "deletecollection"
    if method not in _WRITE_VERBS:
        raise status.method_not_allowed()
    return _WRITE_VERBS[method]


def _flag(text: str | None) -> bool:
    return text is not None and text not in ("0", "false", "False")


def _number(request: web.Request, name: str) -> int:
    text = request.query.get(name, "")
    if not text:
        return 0
    if not text.isdecimal():
        raise status.bad_request(f'strconv.ParseInt: parsing "{text}": invalid syntax')
    return int(text)


def _selector(request: web.Request, kind: Kind) -> Predicate | None:
    labels = label_selector(request.query.get("labelSelector", ""))
    return both(labels, field_selector(request.query.get("fieldSelector", ""), kind))


def list_options(request: web.Request, info: RequestInfo, kind: Kind) -> ListOptions:
    """The options of a list.

    Raises:
        StatusError: 400.
    """
    query = request.query
    return ListOptions(
        namespace=info.namespace if kind.namespaced else "",
        selects=_selector(request, kind),
        limit=_number(request, "limit"),
        continue_=info.continue_,
        rv=query.get("resourceVersion", ""),
        match=query.get("resourceVersionMatch", ""),
    )


def watch_options(request: web.Request, info: RequestInfo, kind: Kind, *, partial: bool) -> WatchOptions:
    """The options of a watch.

    Raises:
        StatusError: 400.
    """
    query = request.query
    send_initial = query.get("sendInitialEvents")
    return WatchOptions(
        namespace=info.namespace if kind.namespaced else "",
        selects=_selector(request, kind),
        rv=query.get("resourceVersion", ""),
        match=query.get("resourceVersionMatch", ""),
        bookmarks=_flag(query.get("allowWatchBookmarks")),
        send_initial=None if send_initial is None else _flag(send_initial),
        timeout=float(_number(request, "timeoutSeconds") or 1800),
        partial=partial,
    )


def write_options(request: web.Request) -> WriteOptions:
    """Field manager (``fieldManager``, or the User-Agent's first segment) and dry-run.

    Raises:
        StatusError: 422.
    """
    manager = request.query.get("fieldManager") or request.headers.get("User-Agent", "").split("/", 1)[0] or "unknown"
    kind = {"POST": "CreateOptions", "PUT": "UpdateOptions"}.get(request.method, "PatchOptions")
    return WriteOptions(manager=manager[:_MAX_MANAGER], dry_run=dry_run(request.query.getall("dryRun", []), kind))


def dry_run(values: list[str], options: str) -> bool:
    """Whether ``dryRun`` asks for one; ``options`` names the kind of the options in the refusal.

    Raises:
        StatusError: 422, a value other than ``All``.
    """
    if any(value != "All" for value in values):
        message = f'Unsupported value: {orjson.dumps(values).decode()}: supported values: "All"'
        raise status.bad_options("dryRun", message, reason="FieldValueNotSupported", options=options)
    return bool(values)


def wants_partial(accept: str) -> bool:
    """Whether ``Accept`` asks for metadata only.

    Raises:
        StatusError: 406, a form that is not served.
    """
    first = accept.split(",")[0].replace(" ", "")
    if "as=PartialObjectMetadata" in first and "g=meta.k8s.io" in first:
        return True
    if accept and not any(served in accept for served in ("json", "*/*", "application/*")):
        message = "406: Not Acceptable\n\nAvailable representations: application/json"
        raise status.StatusError(406, "NotAcceptable", message, details={})
    return False
