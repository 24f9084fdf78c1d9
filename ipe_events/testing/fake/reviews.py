"""Reviews of oneself: ``SelfSubjectAccessReview`` (may I?) and ``SelfSubjectReview`` (who am I?)."""

from typing import Any

from ipe_events.testing.fake import shapes, status
from ipe_events.testing.fake.auth import Access, User
from ipe_events.testing.fake.kinds import Kind

JsonObject = dict[str, Any]


def answer(kind: Kind, body: Any, user: User) -> JsonObject:
    """The review with its status filled in; nothing is stored.

    Raises:
        StatusError: 400 or 422.
    """
    if not isinstance(body, dict):
        raise status.bad_request(f"the object provided is unrecognized (must be of type {kind.kind})")
    shapes.fit(kind, body)
    head: JsonObject = {"kind": kind.kind, "apiVersion": kind.group_version, "metadata": {}}
    if kind.kind == "SelfSubjectReview":
        info: JsonObject = {"username": user.name, "groups": list(user.groups)}
        return head | {"status": {"userInfo": info | ({"uid": user.uid} if user.uid else {})}}
    spec = body.get("spec", {})
    wanted = spec.get("resourceAttributes")
    if not isinstance(wanted, dict):
        why = "Invalid value: null: exactly one of nonResourceAttributes or resourceAttributes must be specified"
        raise status.invalid(kind, "", ("spec", "FieldValueInvalid", why))
    access = Access(**{field: str(wanted.get(field, "")) for field in Access.__slots__})
    allowed = user.may(access)
    return head | {"spec": spec, "status": {"allowed": True, "reason": "allowed by rule"} if allowed else {"allowed": False}}
