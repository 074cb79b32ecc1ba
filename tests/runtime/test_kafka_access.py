"""A Kafka that asks who comes: TLS, passwords and certificates on a real broker with an authorizer."""

from __future__ import annotations

import pytest
from aiokafka import AIOKafkaProducer
from sqlalchemy import select

from services.cli.wire import Wire
from services.kernel.errors import InvalidInput, Refused, Unavailable
from services.runtime.broker import Offsets, read_log
from services.runtime.kafka_access import client_options
from services.runtime.settings import load
from services.runtime.worker import Worker
from tests.support import copier
from tests.support.guarded_kafka import CERTIFIED, PASSWORD, STRANGER, USER, guarded_kafka
from tests.support.processes import until


@pytest.fixture(scope="module")
async def guarded(tmp_path_factory):
    async with guarded_kafka(tmp_path_factory.mktemp("guarded-kafka")) as kafka:
        yield kafka


@pytest.fixture
def given(monkeypatch):
    """Sets variables; None takes one away. Gives the settings."""

    def give(variables):
        for name, value in variables.items():
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, str(value))
        return load()

    return give


@pytest.fixture(params=["SCRAM-SHA-512", "PLAIN", "certificate"])
def let_in(request, guarded):
    """The principal, and the variables, by each way in."""
    if request.param == "certificate":
        return CERTIFIED, {
            "TOLLBOOK_KAFKA": guarded.certificate,
            "TOLLBOOK_KAFKA_TLS": "1",
            "TOLLBOOK_KAFKA_CA": guarded.ca,
            "TOLLBOOK_KAFKA_CERTIFICATE": guarded.ours,
        }
    return USER, guarded.settings | {"TOLLBOOK_KAFKA_SASL": request.param}


async def test_a_room_works_with_what_the_documentation_says_that_it_may(
    guarded, let_in, given, database, topic_prefix, monkeypatch
):
    """Topics are made and looked at, a record is read, what follows is sent by the relay: every client there is."""
    principal, variables = let_in
    await guarded.allow(principal, topic_prefix)
    settings = given(database.environment(TOLLBOOK_TOPIC_PREFIX=topic_prefix) | variables)
    async with database.connected() as owner:
        await owner.execute(
            'create table payments.copied (topic text, partition int, "offset" bigint, value text);'
            " grant insert, select on payments.copied to tollbook_payments"
        )
    monkeypatch.setattr("services.runtime.worker.TOPICS", (copier.SOURCE, copier.COPIES))
    with copier.declared():
        worker = Worker(copier.copier(), settings)
        try:
            await worker.start()
            async with AIOKafkaProducer(**client_options(settings)) as producer:
                await producer.send_and_wait(topic_prefix + copier.SOURCE.name, b"hello", partition=0)

            async def copied():
                async with worker.engine.connect() as connection:
                    return (await connection.execute(select(copier.COPIED.c.value))).scalars().all() == ["hello"]

            await until(copied, "the record is handled")

            places = []

            async def sent():
                ends = await worker.offsets.ends(copier.COPIES)
                places[:] = [place for place, end in ends.items() if end > 0]
                return bool(places)

            await until(sent, "what follows is sent")
            ((topic, partition),) = places
            records = [each async for each in read_log(settings, topic, partition, 0, 1)]
            assert b"hello" in records[0].value
        finally:
            await worker.stop()


async def test_people_command_through_it(guarded, given, topic_prefix):
    await guarded.allow(USER, topic_prefix)
    async with Wire(given({"TOLLBOOK_TOPIC_PREFIX": topic_prefix} | guarded.settings)) as wire:
        assert wire.settings.kafka_user == USER


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"TOLLBOOK_KAFKA_PASSWORD": "wrong"}, "AuthenticationFailed"),
        ({"TOLLBOOK_KAFKA_SASL": "SCRAM-SHA-256"}, "UnsupportedSaslMechanism"),
        ({"TOLLBOOK_KAFKA_CA": None}, "CERTIFICATE_VERIFY_FAILED"),
        ({"TOLLBOOK_KAFKA_CA": "other"}, "CERTIFICATE_VERIFY_FAILED"),
    ],
)
async def test_who_is_not_let_in_is_told_why(guarded, given, change, cause):
    if change.get("TOLLBOOK_KAFKA_CA") == "other":
        change = {"TOLLBOOK_KAFKA_CA": guarded.other_ca}
    offsets = Offsets(given(guarded.settings | change))
    with pytest.raises(Unavailable) as raised:
        await offsets.start()
    await offsets.stop()
    message = raised.value.message
    assert cause in message
    assert f"at {guarded.password} by TLS as {USER}" in message
    assert "check TOLLBOOK_KAFKA" in message
    assert PASSWORD not in message
    assert "wrong" not in message


async def test_who_shows_no_certificate_is_not_let_in(guarded, given):
    ways = {"TOLLBOOK_KAFKA": guarded.certificate, "TOLLBOOK_KAFKA_TLS": "1", "TOLLBOOK_KAFKA_CA": guarded.ca}
    offsets = Offsets(given(ways))
    with pytest.raises(Unavailable, match="check TOLLBOOK_KAFKA"):
        await offsets.start()
    await offsets.stop()


async def test_who_has_no_rights_is_told_which_topic(guarded, given, database, topic_prefix):
    settings = given(
        database.environment(TOLLBOOK_TOPIC_PREFIX=topic_prefix) | guarded.settings | {"TOLLBOOK_KAFKA_USER": STRANGER}
    )
    with copier.declared():
        worker = Worker(copier.copier(), settings)
        try:
            with pytest.raises((Unavailable, Refused), match=topic_prefix):
                await worker.start()
        finally:
            await worker.stop()


@pytest.mark.parametrize(
    ("variables", "field", "says"),
    [
        ({"SASL": "PLAIN"}, "USER", "is not set; a login by PLAIN needs it"),
        ({"SASL": "PLAIN", "USER": "a"}, "PASSWORD", "is not set; a login by PLAIN needs it"),
        ({"USER": "a", "PASSWORD": "b"}, "SASL", "set it to one of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512"),
        ({"CA": "ca.pem"}, "TLS", "is not set, and TOLLBOOK_KAFKA_CA is; set it to 1"),
        ({"TLS": "1", "CA": "missing.pem"}, "CA", "there is no file missing.pem"),
        ({"TLS": "1", "CA": "empty.pem"}, "CA", "holds no certificates in PEM"),
        ({"TLS": "1", "CERTIFICATE": "empty.pem"}, "CERTIFICATE", "are no pair in PEM without a password"),
        ({"TLS": "1", "KEY": "empty.pem"}, "CERTIFICATE", "is not set, and its key is"),
    ],
)
def test_variables_that_do_not_fit_are_named(given, tmp_path, monkeypatch, variables, field, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.pem").write_text("")
    settings = given({"TOLLBOOK_KAFKA": "127.0.0.1:1"} | {f"TOLLBOOK_KAFKA_{name}": v for name, v in variables.items()})
    with pytest.raises(InvalidInput) as raised:
        client_options(settings)
    assert raised.value.field == f"TOLLBOOK_KAFKA_{field}"
    assert says in raised.value.message


def test_another_way_of_logging_in_is_refused_by_name(given):
    with pytest.raises(InvalidInput) as raised:
        given({"TOLLBOOK_KAFKA_SASL": "GSSAPI"})
    assert raised.value.field == "TOLLBOOK_KAFKA_SASL"


def test_a_password_is_never_shown(given):
    assert PASSWORD not in repr(given({"TOLLBOOK_KAFKA_PASSWORD": PASSWORD}))
