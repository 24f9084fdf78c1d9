"""The contracts of the bus as files: JSON Schemas and one AsyncAPI document, generated from the models that the code uses.

``schemas/`` is what somebody reads who writes a handler in another language or checks a policy in an editor, so it must not drift
from the code: ``export`` writes it, ``check`` says what is stale, and a stale folder is a failing test. Everything is derived:
payloads from ``ipe_events.events``, channels from ``ipe_events.subjects.TOPICS``, descriptions from the docstrings. The schemas
of older versions stay where they are, and so do the golden examples (``golden/<type>.v<version>.json``), which are written once
by a person and must decode for ever; neither is generated again.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.alias_generators import to_camel
from pydantic.json_schema import GenerateJsonSchema

from ipe_events import events
from ipe_events.errors import UsageError
from ipe_events.events.base import Payload, Request
from ipe_events.events.cluster import ClusterEvent
from ipe_events.events.command import VERBS
from ipe_events.events.freeze import FreezeState
from ipe_events.events.ledger import LedgerRecord
from ipe_events.events.registry import AgentStatus, HandlerDeclaration, SnapshotTaken
from ipe_events.policy import kinds
from ipe_events.subjects import CHANGE, PARTITIONS, SNAPSHOT, TOPICS, Topic

DIALECT = "https://json-schema.org/draft/2020-12/schema"
GOLDEN = "golden"
CHANGE_VERBS = ("added", "modified", "deleted", "left")

STATE: Mapping[str, type[BaseModel]] = {
    "ipe_agents": AgentStatus,
    "ipe_freeze": FreezeState,
    "ipe_handlers": HandlerDeclaration,
    "ipe_ledger": LedgerRecord,
    "ipe_snapshots": SnapshotTaken,
}
"""KV bucket → the document that its values hold."""

_TOKENS: Mapping[str, str] = {
    "act": "What the operator did, e.g. `apply`, `freeze`, `replay`.",
    "caller": "Identity of who asks; a token, so that permissions decide.",
    "category": "Category of the audit record.",
    "cluster": "The operator's name of the cluster.",
    "group": "API group, `core` for the core group.",
    "handler": "The handler's name.",
    "namespace": "Namespace, `_` for cluster-scoped objects.",
    "partition": f"0 to {PARTITIONS - 1}: a hash of (cluster, namespace), or of (cluster, resource) for cluster-scoped objects.",
    "request": "Id of the request for a snapshot.",
    "resource": "Plural, lower-case name of the Kubernetes resource.",
    "scope": "Scope of the question; a token, so that permissions decide.",
    "service": "Name of the service.",
    "state": "What happened to the cluster, as seen by its agent.",
    "type": "Type of the payload.",
    "user": "The operator's identity on the bus.",
    "verb": "What was done or is asked for.",
}
"""What the tokens of subjects mean."""


# --- the files --------------------------------------------------------------------------------------------------------------


def export(directory: Path) -> list[str]:
    """Write what is stale below a directory; golden examples and schemas of older versions are left alone.

    Returns:
        Names of the files that were written, relative to the directory.

    Raises:
        UsageError: the directory cannot be written.
    """
    written = []
    for name, text in render().items():
        file = directory / name
        try:
            if not file.is_file() or file.read_text("utf-8") != text:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text, "utf-8")
                written.append(name)
        except OSError as error:
            raise UsageError(f"cannot write {file}: {error.strerror}", fix="choose a folder that you may write") from error
    return written


def check(directory: Path) -> list[str]:
    """What in a directory is not as this version would write it, one line each; empty when nothing is.

    Raises:
        UsageError: a file cannot be read.
    """
    wanted, problems = render(), []
    for name, text in wanted.items():
        file = directory / name
        try:
            if not file.is_file():
                problems.append(f"{name} is missing")
            elif file.read_text("utf-8") != text:
                problems.append(f"{name} is stale")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read {file}: {error}") from error
    problems += [f"{name} is left over" for name in _left_over(directory, wanted)]
    for name in golden_names():
        if not (directory / GOLDEN / f"{name}.json").is_file():
            problems.append(f"{GOLDEN}/{name}.json is missing: write one example of this version by hand")
    return problems


def render() -> dict[str, str]:
    """Every generated file: name relative to the directory → text; the same text for the same code."""
    from ipe_events.agent.config import AgentConfig

    files = {f"events/{versioned(model)}.json": schema(model) for model in payloads()}
    files["events/change.v1.json"] = _change_body()
    files["events/change.v1.headers.json"] = _change_headers()
    files["events/cloudevent.headers.json"] = _headers("Headers of every event with a JSON body: CloudEvents 1.0, binary mode.")
    files |= {f"state/{_stem(model)}.v1.json": schema(model, note=f"Bucket `{bucket}`.") for bucket, model in STATE.items()}
    files |= {f"policies/{kind.lower()}.json": schema(model) for kind, model in kinds().items() if _shipped(model)}
    files["config/agentconfig.json"] = schema(AgentConfig)
    texts = {name: _json({"$schema": DIALECT, "$id": _urn(name), **content}) for name, content in files.items()}
    texts["asyncapi.yaml"] = yaml.dump(asyncapi(), Dumper=_Plain, sort_keys=False, allow_unicode=True, width=120)
    return dict(sorted(texts.items()))


def payloads() -> list[type[Payload]]:
    """The payload models of this version, by type."""
    found = [getattr(events, name) for name in events.__all__]
    models = [item for item in found if isinstance(item, type) and issubclass(item, Payload)]
    return sorted(set(models) - {Payload, ClusterEvent, Request}, key=lambda model: model.type_name)


def golden_names() -> list[str]:
    """Which golden examples there must be: one per event and stored document of this version."""
    return sorted([*map(versioned, payloads()), *(f"{_stem(model)}.v1" for model in STATE.values()), "change.v1"])


def versioned(model: type[Payload]) -> str:
    """``gap.v1``: how files call a version of a payload."""
    return f"{model.type_name}.v{model.type_version}"


def _left_over(directory: Path, wanted: Mapping[str, str]) -> Iterator[str]:
    """Generated files that this version does not write and that are not an older version of one that it does."""
    stems = {re.sub(r"\.v\d+\b.*", "", name) for name in wanted}
    for folder in ("config", "events", "policies", "state"):
        for file in sorted((directory / folder).glob("*")):
            name = f"{folder}/{file.name}"
            older = re.fullmatch(r"(.*?)\.v\d+(\.headers)?\.json", name)
            if name not in wanted and not (older and older[1] in stems):
                yield name


def _shipped(model: type[BaseModel]) -> bool:
    """Whether a kind of policy belongs to this distribution rather than to a user's program."""
    return model.__module__.partition(".")[0] in ("ipe_events", "ipe_drift", "ipe_sleep", "ipe_quota", "ipe_audit")


def _stem(model: type[BaseModel]) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "-", model.__name__).lower()


def _urn(name: str) -> str:
    return f"urn:ipe-events:{name.removesuffix('.json')}"


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


class _Plain(yaml.SafeDumper):
    """YAML without anchors: a reader should not have to jump."""

    def ignore_aliases(self, _data: object) -> bool:
        return True


# --- JSON Schemas -----------------------------------------------------------------------------------------------------------


class _Generator(GenerateJsonSchema):
    """pydantic's generator without a title per field, which only repeats its name."""

    def field_title_should_be_set(self, _schema: Any) -> bool:
        return False


def schema(model: type[BaseModel], *, note: str = "") -> dict[str, Any]:
    """The JSON Schema of a model as readers apply it: requests strict at every depth, other payloads open at every depth.

    Args:
        model: a payload, stored document, policy or configuration.
        note: put after the description.
    """
    content = model.model_json_schema(schema_generator=_Generator)
    lenient = issubclass(model, Payload) or model in STATE.values()
    for part in (content, *content.get("$defs", {}).values()):
        if "properties" in part:
            if issubclass(model, Request):
                part["additionalProperties"] = False
            elif lenient:
                part.pop("additionalProperties", None)
        _describe(part, [part.get("description", "")])
    docs = [base.__doc__ or "" for base in reversed(model.__mro__) if issubclass(base, BaseModel) and base is not BaseModel]
    _describe(content, docs)
    if note:
        content["description"] = f"{content.get('description', '')} {note}".strip()
    return content


def _describe(part: dict[str, Any], docs: list[str]) -> None:
    """Move what docstrings say of attributes to the properties they describe."""
    fields: dict[str, str] = {}
    for doc in docs:
        fields |= _attributes(doc)
    for name, text in fields.items():
        prop = next(
            (part.get("properties", {}).get(key) for key in (name, to_camel(name)) if key in part.get("properties", {})), None
        )
        if prop is not None:
            prop["description"] = text
    for prop in part.get("properties", {}).values():
        for word in ("ge", "gt", "le", "lt"):  # pydantic leaves them where a bound stands on text or number; no keywords
            prop.pop(word, None)
    if "description" in part:
        part["description"] = " ".join(part["description"].partition("Attributes:")[0].split())


def _attributes(doc: str) -> dict[str, str]:
    """Name → text of a docstring's section ``Attributes:``."""
    section = doc.partition("Attributes:")[2].split("\n\n")[0]
    found: dict[str, str] = {}
    name, indent = "", None
    for line in section.splitlines():
        if not line.strip():
            continue
        depth = len(line) - len(line.lstrip())
        indent = depth if indent is None else indent
        head = re.match(r"(\w+): (.*)", line.strip())
        if depth == indent and head:
            name = head[1]
            found[name] = head[2]
        elif name:
            found[name] += " " + line.strip()
    return {key: text.replace("``", "`") for key, text in found.items()}


def _headers(description: str, *, kind: str = "dev.ipe.<topic>.<type>.v<version>", pattern: str = "") -> dict[str, Any]:
    """The schema of an event's headers; values are text, percent-encoded where not printable ASCII."""

    def text(doc: str, **more: Any) -> dict[str, Any]:
        return {"type": "string", **more, "description": doc}

    return {
        "type": "object",
        "description": description,
        "required": ["ce-specversion", "ce-id", "ce-source", "ce-type", "Nats-Msg-Id"],
        "properties": {
            "ce-specversion": {"const": "1.0"},
            "ce-id": text("The same event has the same id for ever.", minLength=1),
            "ce-source": text("`/clusters/<cluster>` or `/handlers/<handler>`.", minLength=1),
            "ce-type": text(f"`{kind}`.", pattern=pattern or r"^dev\.ipe\.[a-z0-9-]+\.[a-z0-9-]+\.v[1-9][0-9]*$"),
            "ce-time": text("RFC 3339.", format="date-time"),
            "ce-subject": text("What it is about."),
            "ce-cause": text("Id of the event that led to this one."),
            "ce-hops": text("Length of the chain of commands.", pattern="^[0-9]+$"),
            "traceparent": text("W3C trace context.", pattern="^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$"),
            "Nats-Msg-Id": text("Equals `ce-id`; the stream drops doubles by it.", minLength=1),
        },
    }


def _change_headers() -> dict[str, Any]:
    content = _headers(
        "Headers of a change. Cluster, group, resource and namespace are tokens of the subject.",
        kind="dev.ipe.k8s.<verb>.v1",
        pattern=rf"^dev\.ipe\.k8s\.({'|'.join(CHANGE_VERBS)})\.v1$",
    )
    identity = {
        "type": "string",
        "pattern": rf"^[^/]+/(0|[1-9][0-9]*)/[^/]*/[^/]+/[^/]+/[^/]+/({'|'.join(CHANGE_VERBS)})$",
        "description": "`<cluster-uid>/<epoch>/<group>/<resource>/<uid>/<resourceVersion>/<verb>`.",
    }
    content["properties"] |= {
        "ce-id": identity,
        "ce-kind": {"type": "string", "description": "Kind of the object, e.g. `Deployment`."},
        "ce-name": {"type": "string", "description": "Name of the object."},
        "ce-sequence": {"type": "string", "pattern": "^[0-9]+$", "description": "Number of the change per cluster and resource."},
        "ce-synthetic": {"const": "true", "description": "Found by a relist rather than by the watch; absent otherwise."},
    }
    return content


def _change_body() -> dict[str, Any]:
    return {
        "title": "Change",
        "description": "Body of a change: the object's JSON as the API server sent it, after redaction.",
        "type": "object",
        "required": ["apiVersion", "kind", "metadata"],
        "properties": {
            "apiVersion": {"type": "string", "minLength": 1, "description": "Group and version, e.g. `apps/v1`."},
            "kind": {"type": "string", "minLength": 1, "description": "E.g. `Deployment`."},
            "metadata": {
                "type": "object",
                "required": ["name"],
                "properties": {
                    "name": {"type": "string"},
                    "namespace": {"type": "string"},
                    "uid": {"type": "string"},
                    "resourceVersion": {"type": "string"},
                },
            },
        },
    }


# --- AsyncAPI ---------------------------------------------------------------------------------------------------------------


def asyncapi() -> dict[str, Any]:
    """The AsyncAPI 3 document of the bus; payload schemas are the files beside it."""
    from importlib.metadata import version

    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "IPE Events",
            "version": version("ipe-events"),
            "description": "What travels on the bus: CloudEvents 1.0 over NATS JetStream, in binary mode.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": {topic.name: _channel(topic) for topic in TOPICS},
        "operations": {
            f"{action}-{topic.name}": {
                "action": action,
                "channel": {"$ref": f"#/channels/{topic.name}"},
                "messages": [{"$ref": f"#/channels/{topic.name}/messages/{name}"} for name in _messages_of(topic)],
            }
            for topic in TOPICS
            for action in ("send", "receive")
            if _messages_of(topic)
        },
        "components": {"messages": _messages()},
    }


def _channel(topic: Topic) -> dict[str, Any]:
    channel: dict[str, Any] = {"address": topic.pattern, "title": topic.name, "description": topic.doc}
    if topic.stream:
        channel["x-stream"] = topic.stream
    channel["parameters"] = {field: _parameter(topic, field) for field in topic.fields}
    if messages := _messages_of(topic):
        channel["messages"] = {name: {"$ref": f"#/components/messages/{name}"} for name in messages}
    return channel


def _parameter(topic: Topic, field: str) -> dict[str, Any]:
    values: tuple[str, ...] = ()
    if field == "verb" and topic is CHANGE:
        values = CHANGE_VERBS
    elif field == "verb" and topic.stream:
        values = VERBS
    elif field == "state":
        values = tuple(model.type_name for model in payloads() if issubclass(model, ClusterEvent))
    return {**({"enum": list(values)} if values else {}), "description": _TOKENS[field]}


def _messages_of(topic: Topic) -> list[str]:
    if topic in (CHANGE, SNAPSHOT):
        return ["change"]
    return [model.type_name for model in payloads() if model.topic is topic]


def _messages() -> dict[str, Any]:
    messages = {
        "change": _message("change", "An object of a cluster as it was at this version.", "change.v1", "change.v1.headers")
    }
    for model in payloads():
        summary = " ".join((model.__doc__ or "").partition("\n\n")[0].split())
        messages[model.type_name] = _message(model.type_name, summary, versioned(model), "cloudevent.headers")
    return dict(sorted(messages.items()))


def _message(name: str, summary: str, payload: str, headers: str) -> dict[str, Any]:
    def part(file: str) -> dict[str, Any]:
        return {"schemaFormat": "application/schema+json;version=draft-2020-12", "schema": {"$ref": f"events/{file}.json"}}

    return {
        "name": name,
        "contentType": "application/json",
        "summary": summary.replace("``", "`"),
        "headers": part(headers),
        "payload": part(payload),
    }
