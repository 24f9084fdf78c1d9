"""Policies in files and in the bus' bucket ``ipe_policies``.

In KV a policy is ``{"version": 1, "policy": <the document>}`` under ``<kind>.<name>``; what is read there was written by anybody
who may write, so it is read as strictly as a file, and it must be what its key says.
"""

import difflib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ipe_events.errors import ConfigError, SchemaError
from ipe_events.events.codec import decode, encode
from ipe_events.events.explain import explain, quote
from ipe_events.policy.documents import Document, parse_documents, read_documents
from ipe_events.policy.model import API_VERSION, Policy, PolicyT, kinds
from ipe_events.subjects import escape

BUCKET = "ipe_policies"


class _Stored(BaseModel):
    """The value of a key."""

    model_config = ConfigDict(extra="forbid")

    policy: dict[str, Any]
    version: int = 1


def load_file(file: str | Path) -> list[Policy[Any]]:
    """The policies in a YAML file, in its order.

    Raises:
        ConfigError: names file, line, path, value, rule and near names; also when two documents have one kind and name.
    """
    return _policies(read_documents(file))


def load_text(text: str | bytes, source: str) -> list[Policy[Any]]:
    """The policies in YAML text; ``source`` names it in errors.

    Raises:
        ConfigError: as ``load_file``.
    """
    return _policies(parse_documents(text, source))


def kv_key(policy: Policy[Any]) -> str:
    """The key of a policy in the bucket."""
    return f"{policy.kind_name}.{escape(policy.name)}"


def encode_kv(policy: Policy[Any]) -> bytes:
    """The value of a policy in the bucket; the same policy gives the same bytes.

    Raises:
        SchemaError: it holds what JSON cannot say.
    """
    return encode(_Stored(policy=policy.model_dump(mode="json", by_alias=True)))


def decode_kv(key: str, value: bytes, model: type[PolicyT]) -> PolicyT:
    """The policy in a value of the bucket.

    Args:
        key: where it stands: ``<kind>.<name>``.
        value: what stands there.
        model: of the kind that the key names.

    Raises:
        SchemaError: it is malformed, from a future version, of another kind, or not what its key says.
    """
    where = f"{BUCKET}/{key}"
    document = decode(_Stored, value).policy
    if document.get("kind") != model.kind_name:
        raise SchemaError(f"kind is {quote(document.get('kind'))}, not {model.kind_name}", where=where)
    try:
        # as JSON, since a tuple or an enumeration is written as a list or text there
        policy = model.model_validate_json(json.dumps(document))
    except ValidationError as error:
        raise SchemaError(str(explain(error, document, model)), where=where) from error
    if kv_key(policy) != key:
        raise SchemaError(f"the value belongs under {kv_key(policy)!r}", where=where, fix="apply the policy again")
    return policy


def _policies(documents: list[Document]) -> list[Policy[Any]]:
    found: dict[str, Policy[Any]] = {}
    for document in documents:
        policy = document.read(_kind_of(document))
        key = kv_key(policy)
        if key in found:
            raise ConfigError(
                f"a second {policy.kind} {policy.name!r}", where=document.place(("metadata", "name")), fix="rename one"
            )
        found[key] = policy
    return list(found.values())


def _kind_of(document: Document) -> type[Policy[Any]]:
    """The model for a document's kind."""
    version, kind = document.data.get("apiVersion"), document.data.get("kind")
    if version != API_VERSION:
        raise ConfigError(f"apiVersion is {quote(version)}", where=document.place(("apiVersion",)), fix=f"write {API_VERSION}")
    known = kinds()
    if isinstance(kind, str) and kind in known:
        return known[kind]
    near = difflib.get_close_matches(str(kind), known, n=2)
    listed = ", ".join(sorted(known)) or "none: load the handlers that declare them"
    hint = f"did you mean {' or '.join(near)}?" if near else f"known kinds: {listed}"
    raise ConfigError(f"kind is {quote(kind)}", where=document.place(("kind",)), fix=hint)
