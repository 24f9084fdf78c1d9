"""What a patch request does to an object: RFC 7386 merge patch and RFC 6902 JSON patch.

The two other content types are refused, in words that say so: a strategic merge needs the schema of every built-in type, and a
server-side apply moreover its defaulting. A fake that got them nearly right would make tests pass that fail on a real cluster.
"""

from types import MappingProxyType
from typing import Any

import jsonpatch
import orjson

from ipe_events.testing.fake.status import StatusError, bad_request, unprocessable_patch, unsupported_media_type

JsonObject = dict[str, Any]

JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_MERGE = "application/strategic-merge-patch+json"
APPLY = ("application/apply-patch+yaml", "application/apply-patch+cbor")
MAX_OPERATIONS = 10_000
_WITH_VALUE = ("add", "replace", "test")


def merge(target: Any, patch: Any) -> Any:
    """RFC 7386; returns a new value and shares what did not change."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge(merged.get(key), value)
    return merged


def apply_patch(obj: JsonObject, content_type: str, body: bytes) -> JsonObject:
    """``obj`` after the patch; ``obj`` itself is not touched.

    Raises:
        StatusError: 400 for a body that is no patch, 415 for a type that is not served, 422 for one that does not apply.
    """
    if content_type == STRATEGIC_MERGE:
        raise _refused("strategic merge patch", f"send {MERGE_PATCH} or {JSON_PATCH}")
    if content_type in APPLY:
        raise _refused("server-side apply", "test server-side apply against a real API server")
    if content_type not in (JSON_PATCH, MERGE_PATCH):
        raise unsupported_media_type("415: Unsupported Media Type")
    try:
        patch = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise bad_request("invalid JSON patch" if content_type == MERGE_PATCH else f"error decoding patch: {error}") from error
    if content_type == MERGE_PATCH:
        if not isinstance(patch, dict):
            raise bad_request("error decoding patch: a merge patch is a JSON object")
        merged: JsonObject = merge(obj, patch)
        return merged
    return _json_patch(obj, patch)


class _Replace(jsonpatch.ReplaceOperation):
    """``replace`` as the API server does it: a missing key of a map is added."""

    def apply(self, obj: Any) -> Any:
        """Replace, or add to a map."""
        parent, part = self.pointer.to_last(obj)
        if isinstance(parent, dict) and part is not None and part not in parent:
            parent[part] = self.operation["value"]
            return obj
        return super().apply(obj)


class _Test(jsonpatch.TestOperation):
    """``test`` as the API server does it: a missing key of a map equals null, and the document as a whole equals nothing."""

    def apply(self, obj: Any) -> Any:
        """Compare, or raise."""
        parent, part = self.pointer.to_last(obj)
        if part is None:
            raise jsonpatch.JsonPatchTestFailed("the API server cannot test the whole document")
        if isinstance(parent, dict) and part not in parent and self.operation["value"] is None:
            return obj
        return super().apply(obj)


class _Patch(jsonpatch.JsonPatch):
    operations = MappingProxyType({**jsonpatch.JsonPatch.operations, "replace": _Replace, "test": _Test})


def _json_patch(obj: JsonObject, operations: Any) -> JsonObject:
    if not isinstance(operations, list) or not all(isinstance(operation, dict) for operation in operations):
        raise bad_request("error decoding patch: a JSON patch is a list of operations")
    for operation in operations:
        for name in ("op", "path", "from"):
            if not isinstance(operation.get(name, ""), str):
                raise bad_request(f"error decoding patch: field jsonPatchOp.{name} is of type string")
        if operation.get("op") in _WITH_VALUE:
            operation.setdefault("value", None)  # Go does not tell a value that is missing from null
    if len(operations) > MAX_OPERATIONS:
        message = f"The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {len(operations)}"
        raise StatusError(413, "RequestEntityTooLarge", message, details={})
    try:
        patched = _Patch(operations).apply(obj)
    except (jsonpatch.JsonPatchException, jsonpatch.JsonPointerException) as error:
        raise unprocessable_patch() from error
    if not isinstance(patched, dict):
        raise unprocessable_patch()
    return patched


def _refused(what: str, instead: str) -> StatusError:
    return unsupported_media_type(f"this simulated cluster does not support {what}: {instead}")
