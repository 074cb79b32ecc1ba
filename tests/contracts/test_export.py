"""The committed schemas are what the models say."""

from contracts.export import HERE, asyncapi, documents
from contracts.topics import TOPICS
from contracts.usage import USAGE_EVENT_TYPES, VOICE_LEG


def test_committed_schemas_and_asyncapi_are_not_stale():
    for path, text in documents().items():
        assert path.exists(), f"{path.name} is missing; run python -m contracts.export"
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is stale; run python -m contracts.export"


def test_no_schema_stands_for_a_topic_that_is_gone():
    assert set((HERE / "schemas").glob("*.json")) == {path for path in documents() if path.suffix == ".json"}


def test_every_reference_of_the_asyncapi_document_resolves():
    document = asyncapi()
    references: list[str] = []

    def walk(value):
        if isinstance(value, dict):
            references.extend(v for k, v in value.items() if k == "$ref" and isinstance(v, str))
            for each in value.values():
                walk(each)
        elif isinstance(value, list):
            for each in value:
                walk(each)

    walk(document)
    assert len(references) > len(TOPICS)
    for reference in references:
        place = document
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]


def test_every_enveloped_topic_carries_link_seq_and_epoch():
    for topic in TOPICS:
        if not topic.bare:
            required = topic.adapter.json_schema()["required"]
            assert {"id", "type", "version", "time", "link", "seq", "epoch", "trace", "data"} <= set(required), (
                topic.name
            )


def test_the_asyncapi_document_says_both_content_modes_of_usage_events():
    messages = asyncapi()["channels"]["usage_events"]["messages"]
    assert messages["usage.event"]["contentType"] == "application/cloudevents+json"
    assert set(messages) == {"usage.event", *(f"binary.{each}" for each in USAGE_EVENT_TYPES)}
    leg = messages[f"binary.{VOICE_LEG}"]
    assert leg["payload"] == {"$ref": "#/components/schemas/usage_events_VoiceLeg"}
    headers = leg["headers"]
    assert set(headers["required"]) == {"ce_specversion", "ce_id", "ce_source", "ce_type"}
    assert headers["properties"]["ce_type"]["const"] == VOICE_LEG
    assert set(headers["properties"]) == {
        *headers["required"],
        "ce_time",
        "ce_subject",
        "ce_dataschema",
        "ce_revision",
        "content-type",
    }
    assert {each.get("type", "string") for each in headers["properties"].values()} == {"string"}
