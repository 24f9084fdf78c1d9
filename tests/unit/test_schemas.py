"""The contracts as files: complete, current, consistent, and true of the examples that must decode for ever."""

import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml

from ipe_events import schemas
from ipe_events.bus.frames import encode_headers
from ipe_events.errors import UsageError
from ipe_events.events import Command
from ipe_events.events.base import Request
from ipe_events.events.change import Change
from ipe_events.events.codec import decode, encode
from ipe_events.subjects import TOPICS

FOLDER = Path(__file__).parents[2] / "schemas"
MODELS: dict[str, Any] = {
    **{schemas.versioned(model): model for model in schemas.payloads()},
    **{f"{schemas._stem(model)}.v1": model for model in schemas.STATE.values()},
}
GENERATED = {name: text for name, text in schemas.render().items() if name.endswith(".json")}


def golden(name: str) -> Any:
    return json.loads((FOLDER / "golden" / f"{name}.json").read_text("utf-8"))


def checker(name: str) -> Any:
    return jsonschema_rs.Draft202012Validator(json.loads(GENERATED[name]), validate_formats=True)


def schema_file(name: str) -> str:
    return next(file for file in (f"events/{name}.json", f"state/{name}.json") if file in GENERATED)


# --- the folder -------------------------------------------------------------------------------------------------------------


def test_the_exported_files_are_current():
    assert schemas.check(FOLDER) == [], "run `ipe schema export`"


def test_the_same_code_writes_the_same_text():
    assert schemas.render() == schemas.render()


def test_export_writes_what_check_misses_and_nothing_twice(tmp_path: Path):
    missing = schemas.check(tmp_path)
    assert "asyncapi.yaml is missing" in missing
    assert sorted(schemas.export(tmp_path)) == sorted(schemas.render())
    assert schemas.export(tmp_path) == []
    assert all("golden" in line for line in schemas.check(tmp_path))


def test_check_names_what_is_stale_or_left_over_and_keeps_older_versions(tmp_path: Path):
    schemas.export(tmp_path)
    (tmp_path / "events/gap.v1.json").write_text("{}")
    (tmp_path / "events/gone.v1.json").write_text("{}")
    (tmp_path / "events/gap.v0.json").write_text("{}")
    problems = [line for line in schemas.check(tmp_path) if "golden" not in line]
    assert problems == ["events/gap.v1.json is stale", "events/gone.v1.json is left over"]
    assert schemas.export(tmp_path) == ["events/gap.v1.json"]


def test_a_folder_that_cannot_be_written_is_an_error_of_ours(tmp_path: Path):
    (tmp_path / "events").write_text("a file")
    with pytest.raises(UsageError, match="cannot write"):
        schemas.export(tmp_path)


# --- JSON Schemas -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(GENERATED))
def test_every_schema_is_a_schema(name: str):
    content = json.loads(GENERATED[name])
    assert jsonschema_rs.meta.is_valid(content)
    assert content["$schema"] == schemas.DIALECT
    assert content["$id"] == f"urn:ipe-events:{name.removesuffix('.json')}"
    assert content["description"]
    assert "Attributes:" not in GENERATED[name]


def test_ids_of_schemas_are_unique():
    ids = [json.loads(text)["$id"] for text in GENERATED.values()]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_field_of_a_payload_is_described(name: str):
    content = json.loads(GENERATED[schema_file(name)])
    silent = [field for field, prop in content["properties"].items() if not prop.get("description")]
    undocumented = {"outcome.v1": ["handler", "cluster", "verb", "cause"]}.get(name, [])
    assert silent == undocumented


def test_requests_are_closed_at_every_depth_and_events_open():
    command = json.loads(GENERATED["events/command.v1.json"])
    parts = [command, *command["$defs"].values()]
    assert all(part["additionalProperties"] is False for part in parts if "properties" in part)
    finding = json.loads(GENERATED["events/finding.v1.json"])
    assert all("additionalProperties" not in part for part in [finding, *finding["$defs"].values()] if "properties" in part)


# --- golden examples --------------------------------------------------------------------------------------------------------


def test_every_event_and_stored_document_has_a_golden_example():
    files = {file.stem for file in (FOLDER / "golden").glob("*.json")}
    assert set(schemas.golden_names()) <= files


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_golden_example_decodes_round_trips_and_fits_its_schema(name: str):
    example, model = golden(name), MODELS[name]
    payload = decode(model, json.dumps(example).encode())
    written = encode(payload)
    assert json.loads(written) == example
    assert decode(model, written) == payload
    checker(schema_file(name)).validate(example)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_schema_and_the_code_agree_on_unknown_fields(name: str):
    extended = {**golden(name), "field_of_the_future": 1}
    strict = issubclass(MODELS[name], Request)
    assert checker(schema_file(name)).is_valid(extended) is not strict


def test_the_schema_of_commands_refuses_what_an_agent_refuses():
    example = golden("command.v1")
    for path in (("target",), ("precondition",), ("action",), ("action", "operations", 0)):
        changed = json.loads(json.dumps(example))
        part = changed
        for step in path:
            part = part[step]
        part["unknown"] = 1
        assert not checker("events/command.v1.json").is_valid(changed)
        with pytest.raises(ValueError, match="unknown"):
            decode(Command, json.dumps(changed).encode())


def test_the_golden_change_is_read_from_its_headers_and_body():
    example = golden("change.v1")
    checker("events/change.v1.headers.json").validate(example["headers"])
    checker("events/cloudevent.headers.json").validate(example["headers"])
    checker("events/change.v1.json").validate(example["body"])
    change = Change(example["subject"], encode_headers(example["headers"]), json.dumps(example["body"]).encode())
    assert (change.cluster, change.group, change.resource, change.namespace) == ("prod-eu", "apps", "deployments", "shop")
    assert (change.verb, change.epoch, change.resource_version, change.sequence) == ("modified", 2, "184467", 41)
    assert (change.kind, change.name, change.synthetic) == ("Deployment", "cart", False)
    assert change.id == example["headers"]["Nats-Msg-Id"]
    assert change.uid == example["body"]["metadata"]["uid"]
    assert change.object == example["body"]


# --- AsyncAPI ---------------------------------------------------------------------------------------------------------------


def document() -> Any:
    return yaml.safe_load(schemas.render()["asyncapi.yaml"])


def references(part: Any) -> list[str]:
    if isinstance(part, dict):
        own = [part["$ref"]] if "$ref" in part else []
        return own + [found for value in part.values() for found in references(value)]
    return [found for value in part for found in references(value)] if isinstance(part, list) else []


def test_asyncapi_has_a_channel_per_topic_with_its_address_and_parameters():
    channels = document()["channels"]
    assert {name: channel["address"] for name, channel in channels.items()} == {topic.name: topic.pattern for topic in TOPICS}
    for topic in TOPICS:
        assert tuple(channels[topic.name]["parameters"]) == topic.fields
        assert all(parameter["description"] for parameter in channels[topic.name]["parameters"].values())


def test_every_reference_of_asyncapi_resolves():
    whole = document()
    found = references(whole)
    assert found
    for reference in found:
        if reference.startswith("#/"):
            part = whole
            for step in reference[2:].split("/"):
                part = part[step]
        else:
            assert reference in GENERATED


def test_operations_of_asyncapi_use_messages_of_their_channel():
    whole = document()
    assert whole["asyncapi"] == "3.0.0"
    for operation in whole["operations"].values():
        channel = operation["channel"]["$ref"]
        assert operation["action"] in ("send", "receive")
        assert operation["messages"]
        assert all(message["$ref"].startswith(f"{channel}/messages/") for message in operation["messages"])


def test_every_payload_is_a_message_of_the_channel_of_its_topic():
    whole = document()
    for model in schemas.payloads():
        assert model.type_name in whole["channels"][model.topic.name]["messages"]
        message = whole["components"]["messages"][model.type_name]
        assert message["payload"]["schema"]["$ref"] == f"events/{schemas.versioned(model)}.json"
