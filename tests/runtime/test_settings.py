"""Settings come from the environment, else from the embedded servers, and a mistake is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import make_url

from services.kernel.errors import InvalidInput, Unavailable
from services.runtime import settings
from tests.support.servers import EmbeddedServers


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    monkeypatch.setenv("TOLLBOOK_DATA", str(tmp_path))
    monkeypatch.setenv("TOLLBOOK_KAFKA", "broker:9092")
    monkeypatch.setenv("TOLLBOOK_POSTGRES", "postgresql://db.example:6432/billing")
    monkeypatch.setenv("TOLLBOOK_OWNER_PASSWORD", "own:er@")
    monkeypatch.setenv("TOLLBOOK_ROOM_PASSWORD", "ro/om")
    monkeypatch.setenv("TOLLBOOK_VALKEY", "redis://cache:6379/1")
    return monkeypatch


def test_outside_servers_are_taken_from_the_variables(outside: pytest.MonkeyPatch) -> None:
    found = settings.load()
    assert (found.kafka_bootstrap, found.valkey_url) == ("broker:9092", "redis://cache:6379/1")
    room = make_url(found.room_database_url("usage"))
    assert (room.drivername, room.username, room.password) == ("postgresql+asyncpg", "tollbook_usage", "ro/om")
    assert (room.host, room.port, room.database) == ("db.example", 6432, "billing")
    owner = make_url(found.owner_database_url())
    assert (owner.username, owner.password) == ("tollbook_owner", "own:er@")


def test_the_database_is_called_tollbook_when_none_is_named(outside: pytest.MonkeyPatch) -> None:
    outside.setenv("TOLLBOOK_POSTGRES", "postgresql://db.example:6432")
    assert make_url(settings.load().room_database_url("usage")).database == "tollbook"


def test_passwords_do_not_show_when_settings_are_printed(outside: pytest.MonkeyPatch) -> None:
    assert "ro/om" not in repr(settings.load())
    assert "own:er@" not in str(settings.load())


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("TOLLBOOK_TICK_MS", "soon", "integer"),
        ("TOLLBOOK_TICK_MS", "0", "greater than or equal to 10"),
        ("TOLLBOOK_LOG_LEVEL", "LOUD", "'DEBUG'"),
        ("TOLLBOOK_POSTGRES", "mysql://db/x", "postgresql://host:5432/tollbook"),
        ("TOLLBOOK_POSTGRES", "nonsense", "postgresql://host:5432/tollbook"),
        ("TOLLBOOK_POSTGRES", "postgresql://me:secret@db/x", "TOLLBOOK_ROOM_PASSWORD"),
        ("TOLLBOOK_TOPIC_PREFIX", "a b", "pattern"),
    ],
)
def test_a_wrong_variable_is_named_with_what_it_may_hold(
    outside: pytest.MonkeyPatch, variable: str, value: str, says: str
) -> None:
    outside.setenv(variable, value)
    with pytest.raises(InvalidInput, match=says) as caught:
        settings.load()
    assert caught.value.field == variable
    assert "secret" not in str(caught.value)


def test_a_missing_password_of_an_outside_server_is_named(outside: pytest.MonkeyPatch) -> None:
    outside.delenv("TOLLBOOK_ROOM_PASSWORD")
    with pytest.raises(InvalidInput, match="TOLLBOOK_ROOM_PASSWORD"):
        settings.load().room_database_url("usage")


def test_an_unknown_room_is_named(outside: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInput, match="no room 'wallets'"):
        settings.load().room_database_url("wallets")


def test_without_variables_and_servers_the_error_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TOLLBOOK_DATA", str(tmp_path))
    found = settings.load()
    asked: list[tuple[Callable[[], str], str]] = [
        (lambda: found.kafka_bootstrap, "TOLLBOOK_KAFKA"),
        (lambda: found.valkey_url, "TOLLBOOK_VALKEY"),
        (lambda: found.room_database_url("usage"), "TOLLBOOK_POSTGRES"),
    ]
    for ask, variable in asked:
        with pytest.raises(Unavailable, match="tollbook up") as caught:
            ask()
        assert caught.value.field == variable


async def test_embedded_servers_fill_what_is_not_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    servers = EmbeddedServers(tmp_path)
    try:
        address = await servers.valkey()
        monkeypatch.setenv("TOLLBOOK_DATA", str(tmp_path))
        assert settings.load().valkey_url == address
    finally:
        await servers.close()
