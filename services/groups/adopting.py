"""After a restore from a backup: what was told of objects is never told of others, and what stands of them is told again.

A state topic keeps the last record of each key. Where that is one that a restore undid, and nobody changes the object again, who
reads the topic from its start would find nothing that holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from contracts.topics import GROUPS_ACCOUNTS, GROUPS_ASSIGNMENTS, GROUPS_BILLING_GROUPS, GROUPS_PUBLISHERS
from services.groups import messages, store
from services.groups.loading import save
from services.groups.registry import Registry
from services.runtime.processor import Processor
from services.runtime.room import Room
from services.runtime.work import Surroundings, Work

LANE = "restore"


async def adopt_numbers(connection: AsyncConnection, undone: Sequence[Any]) -> None:
    """Accounts get numbers above those of undone ones (the data of `groups.accounts`)."""
    if undone:
        await store.raise_numbers(connection, max(each["account_no"] for each in undone))


async def tell_again(engine: AsyncEngine, surroundings: Surroundings, undone: Mapping[str, Sequence[Any]]) -> None:
    """Tell each object that exists as it stands, with the next version. ``undone`` has, by state topic, the data of what was told
    and does not hold. A second run does it once more, which changes nothing."""

    def ids(topic: str, name: str) -> set[str]:
        return {each[name] for each in undone.get(topic, ())}

    async def run(work: Work) -> None:
        await store.lock_registry(work)
        accounts = await store.accounts(work, ids(GROUPS_ACCOUNTS.name, "account_id"), ())
        named = ids(GROUPS_BILLING_GROUPS.name, "group_id")
        groups = await store.payer_groups(work, named, accounts)
        resources = await store.resources(work, ids(GROUPS_ASSIGNMENTS.name, "resource_id"), ())
        publishers = await store.publishers(work, ids(GROUPS_PUBLISHERS.name, "publisher_id"))
        registry = Registry(
            groups=groups, accounts=accounts, resources=resources, publishers=publishers,
            version_floor=work.version_floor,
        )  # fmt: skip
        registry.put(replace(each, version=each.version + 1) for each in accounts.values())
        registry.put(replace(groups[each], version=groups[each].version + 1) for each in named & groups.keys())
        registry.put(replace(each, version=each.version + 1) for each in resources.values())
        registry.put(each.model_copy(update={"version": each.version + 1}) for each in publishers.values())
        await save(work, registry, ())
        messages.tell(work, registry)

    await Processor(Room("groups", ()), engine, surroundings).transact(run, lane=LANE)
