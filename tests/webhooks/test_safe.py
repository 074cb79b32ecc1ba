"""Secrets at rest: encrypted by the installation's keys, which may be changed while receivers notice nothing."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import select

from services.kernel.errors import InvalidInput
from services.runtime.settings import Settings
from services.webhooks import api, tables
from services.webhooks.courier import Courier
from services.webhooks.safe import Safe, new_key, safe_of
from tests.support.receiver import LOOPBACK, Receiver
from tests.webhooks.post import Post

OLD, NEW = new_key(), new_key()


async def kept(post: Post) -> list[str]:
    (row,) = await post.town.rooms.query("webhooks", select(tables.endpoint))
    return [each for each in (row.secret, row.previous_secret) if each is not None]


async def delivered(post: Post, receiver: Receiver, safe: Safe, *secrets: str) -> None:
    """An event arrives, signed by these secrets."""
    post.courier = Courier(post.caller, chance=lambda: 0.0, safe=safe)
    post.happens()
    await post.deliver()
    for each in secrets:
        receiver.requests[-1].verified(each)
    assert len(receiver.requests[-1].headers["webhook-signature"].split()) == len(secrets)


async def test_secrets_are_encrypted_and_keys_changed_while_receivers_notice_nothing(
    post: Post, receiver: Receiver
) -> None:
    made = await api.create(post.engine, "lakeside", receiver.url, "ann", LOOPBACK)  # before there were keys
    with_old, both, with_new = Safe([OLD]), Safe([NEW, OLD]), Safe([NEW])
    newer = await api.rotate(post.engine, made.endpoint_id, "ann", timedelta(days=1), with_old)
    assert ["whsec_" in each for each in await kept(post)] == [False, True]
    await delivered(post, receiver, with_old, newer.secret, made.secret)
    assert await api.put_away(post.engine, with_old) == 1
    assert all("whsec_" not in each for each in await kept(post))
    await delivered(post, receiver, both, newer.secret, made.secret)
    await api.put_away(post.engine, both)
    await delivered(post, receiver, with_new, newer.secret, made.secret)
    with pytest.raises(InvalidInput, match="TOLLBOOK_WEBHOOKS_KEYS"):
        await api.put_away(post.engine, with_old)
    await delivered(post, receiver, with_new, newer.secret, made.secret)


async def test_a_room_without_the_key_does_not_start(post: Post, receiver: Receiver) -> None:
    await api.create(post.engine, "lakeside", receiver.url, "ann", LOOPBACK, Safe([OLD]))
    processor = post.town.rooms.processors["webhooks"]
    await Courier(post.caller, safe=Safe([NEW, OLD])).check(processor)
    for safe in (Safe(), Safe([NEW])):
        with pytest.raises(InvalidInput, match="TOLLBOOK_WEBHOOKS_KEYS"):
            await Courier(post.caller, safe=safe).check(processor)


def test_keys_come_from_the_settings_and_what_is_none_is_refused_without_being_repeated() -> None:
    assert safe_of(Settings(webhooks_keys=f"{NEW}, {OLD}")).take(Safe([OLD]).put("whsec_A")) == "whsec_A"
    with pytest.raises(InvalidInput, match="tollbook webhook key") as refused:
        safe_of(Settings(webhooks_keys="hunter2"))
    assert "hunter2" not in str(refused.value)
