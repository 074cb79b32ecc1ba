"""Writes what other languages read: one JSON Schema a message under `contracts/schemas/`, and `contracts/asyncapi.yaml`.

`python -m contracts.export` after a change of a model; a test fails while the committed files are stale, so a change of a
contract always shows in the diff.
"""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from contracts import openings
from contracts.topics import TOPICS, USAGE_EVENTS, Topic

HERE = Path(__file__).parent


def schema_of(topic: Topic) -> dict[str, Any]:
    """The JSON Schema of a topic's records, as they stand on the wire (with the envelope unless the topic is bare)."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": topic.type,
        "description": topic.summary,
    } | topic.adapter.json_schema()


def _opening_schema() -> dict[str, Any]:
    """The JSON Schema of the record with which an epoch begins; its description is the rule for consumers outside."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": openings.OPENING,
        "description": openings.__doc__,
    } | openings.ADAPTER.json_schema()


def asyncapi() -> dict[str, Any]:
    """The AsyncAPI 3.0 document of all topics: channels, their keys and messages."""
    channels: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    schemas: dict[str, Any] = {}
    opening = openings.ADAPTER.json_schema(ref_template=f"#/components/schemas/{openings.OPENING}_{{model}}")
    for name, definition in opening.pop("$defs").items():
        schemas[f"{openings.OPENING}_{name}"] = definition
    schemas[openings.OPENING] = {"description": openings.__doc__} | opening
    for topic in TOPICS:
        schema = topic.adapter.json_schema(ref_template=f"#/components/schemas/{_id(topic)}_{{model}}")
        for name, definition in schema.pop("$defs", {}).items():
            schemas[f"{_id(topic)}_{name}"] = definition
        schemas[_id(topic)] = schema
        address = topic.name + ("{member}" if topic.is_family else "")
        channels[_id(topic)] = {
            "address": address,
            "description": f"{topic.summary}. Key: {topic.key}.",
            "messages": {topic.type: _message(topic, topic.type, {"$ref": f"#/components/schemas/{_id(topic)}"})},
            "bindings": {"kafka": {"partitions": topic.partitions, "bindingVersion": "0.5.0"}},
        }
        if not topic.bare:
            channels[_id(topic)]["messages"][openings.OPENING] = _opening()
        if topic is USAGE_EVENTS:
            channels[_id(topic)]["messages"] = _both_modes(topic, schemas)
        if topic.is_family:
            channels[_id(topic)]["parameters"] = {"member": {"description": "the publisher or processor"}}
        operations[f"send_{_id(topic)}"] = {
            "action": "send",
            "channel": {"$ref": f"#/channels/{_id(topic)}"},
            "description": f"Written by {', '.join(topic.written_by)}; read by {', '.join(topic.read_by)}.",
        }
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "Tollbook", "version": "1.0.0", "description": "Every topic of the billing engine."},
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {"schemas": schemas},
    }


def _opening() -> dict[str, Any]:
    """With which an epoch begins, on each topic that carries the envelope."""
    payload = {"$ref": f"#/components/schemas/{openings.OPENING}"}
    return _message(None, openings.OPENING, payload) | {"title": "An epoch begins: the schema says the rule for it"}


def _message(
    topic: Topic | None, name: str, payload: dict[str, Any], content_type: str = "application/json"
) -> dict[str, Any]:
    key = topic.key if topic is not None else f"{openings.KEY_PREFIX} and the epoch"
    return {
        "name": name,
        "contentType": content_type,
        "payload": payload,
        "bindings": {"kafka": {"key": {"type": "string", "description": key}, "bindingVersion": "0.5.0"}},
    }


def _both_modes(topic: Topic, schemas: dict[str, Any]) -> dict[str, Any]:
    """CloudEvents in structured mode, and each type of event in binary mode: its attributes as headers, its data alone."""
    whole = {"$ref": f"#/components/schemas/{_id(topic)}"}
    messages = {
        topic.type: _message(topic, topic.type, whole, "application/cloudevents+json")
        | {"title": "Structured mode: the whole event is the value"}
    }
    for each in schemas[_id(topic)]["oneOf"]:
        event = deepcopy(schemas[each["$ref"].rsplit("/", 1)[1]])  # or the YAML would be full of anchors
        headers = {
            f"ce_{name}": _header(
                next(kind for kind in attribute.get("anyOf", [attribute]) if kind.get("type") != "null")
            )
            for name, attribute in event["properties"].items()
            if name not in ("data", "datacontenttype")
        }
        name = f"binary.{headers['ce_type']['const']}"
        messages[name] = _message(topic, name, event["properties"]["data"]) | {
            "title": "Binary mode: the data are the value; any other extension is a header ce_NAME too",
            "headers": {
                "type": "object",
                "properties": headers | {"content-type": {"const": "application/json"}},
                "required": [f"ce_{name}" for name in event["required"] if name != "data"],
            },
        }
    return messages


def _header(attribute: dict[str, Any]) -> dict[str, Any]:
    """An attribute as the text of a header."""
    return {"type": "string", "pattern": "^(0|[1-9][0-9]{0,9})$"} if attribute.get("type") == "integer" else attribute


def _id(topic: Topic) -> str:
    return topic.name.rstrip(".").replace(".", "_")


def documents() -> dict[Path, str]:
    """Every exported file with its text."""
    files = {
        HERE / "schemas" / f"{topic.name.rstrip('.')}.json": json.dumps(schema_of(topic), indent=2, ensure_ascii=False)
        + "\n"
        for topic in TOPICS
    }
    files[HERE / "schemas" / f"{openings.OPENING}.json"] = (
        json.dumps(_opening_schema(), indent=2, ensure_ascii=False) + "\n"
    )
    files[HERE / "asyncapi.yaml"] = yaml.safe_dump(asyncapi(), sort_keys=False, allow_unicode=True, width=120)
    return files


def main() -> None:
    """Write them all; remove schemas of topics that are gone."""
    written = documents()
    (HERE / "schemas").mkdir(exist_ok=True)
    for path in (HERE / "schemas").glob("*.json"):
        if path not in written:
            path.unlink()
    for path, text in written.items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
