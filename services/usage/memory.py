"""What a worker keeps between batches: registry, price books and cuts. It is never older than the database.

Every batch shares the one row `state` until its commit, and whoever changes the registry, the books, the cuts or the
generation holds it alone and raises a version. So a batch that sees the versions it has in memory knows that nothing has
changed and nothing will until it commits: the same as reading every timeline FOR SHARE, for one row instead of
thousands. What has changed is read again inside the batch's own transaction, where it is committed already.
Source: designs/closing, STAMP; designs/identity, point 3.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from datetime import UTC, date, datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from contracts.groups import AccountTimeline, CostCenter, Publisher, ResourceTimeline
from services.usage import store
from services.usage.books import PriceBooks
from services.usage.generations import ALWAYS, remembered_from
from services.usage.registry import Prices, Registry
from services.usage.stamping import Cut, Cuts

NO_VERSION = -1
NEVER = datetime.max.replace(tzinfo=UTC)


class Memory:
    """One worker's picture of what it needs for a batch, and the versions it was read at."""

    def __init__(self) -> None:
        self.registry = Registry()
        self.prices = Prices(PriceBooks(()), {}, {}, ())
        self.maximum_prices: dict[tuple[str, str], int] = {}  # (account, outbound profile or empty), nanos a minute
        self.cuts = Cuts()
        self.generation = 0
        self.rentals_from = NEVER  # since when Tollbook bills numbers
        self.oldest_generation = 0
        self.remembered_from = ALWAYS  # event times from which on nothing that was accepted is forgotten
        self.charge_days: set[date] = set()  # event days whose partition exists for certain
        self.sources_seen: set[store.Seen] = set()  # noted for certain
        self._reading_books = asyncio.Lock()
        self._registry_version = NO_VERSION
        self._books_version = NO_VERSION
        self._cuts_version = NO_VERSION

    async def share(self, connection: AsyncConnection) -> None:
        """Bring the picture up to date and keep it so until the end of the transaction."""
        await self.refresh(connection, await store.share_state(connection))

    async def refresh(self, connection: AsyncConnection, state: store.Found) -> None:
        """Read again what has changed; the transaction has changed nothing yet.

        Batches, the replay and a tick of one process refresh the same picture while the others wait for the database, and the
        tick may look without holding the state. So the picture only goes forward: what comes back late is let go.
        """
        if state.registry_version > self._registry_version:
            await self._read_registry(connection, state.registry_version)
        if state.books_version > self._books_version:
            await self._read_books(connection, state.books_version)
        if state.cuts_version > self._cuts_version:
            await self._read_cuts(connection, state.cuts_version)
        if state.generation > self.generation:
            await self._read_generations(connection, state.generation, state.generation_since)
        self.rentals_from = state.rentals_from

    @property
    def sealed_generations(self) -> tuple[int, ...]:
        """The generations that are kept beside the current one."""
        return tuple(range(self.oldest_generation, self.generation))

    async def _read_generations(self, connection: AsyncConnection, generation: int, since: datetime) -> None:
        oldest = (await store.existing_generations(connection))[0]
        if generation > self.generation:
            self.generation, self.oldest_generation = generation, oldest
            self.remembered_from = remembered_from(generation, since, oldest)

    async def _read_registry(self, connection: AsyncConnection, version: int) -> None:
        rows = await store.timelines_changed_since(connection, self._registry_version)
        zones = await store.zones_named_since(
            connection, self._registry_version
        )  # by timelines that nobody has any more, too
        if version <= self._registry_version:
            return
        self.registry.learn_zones(zones)
        documents: dict[str, list[str]] = defaultdict(list)
        for kind, document in rows:
            documents[kind].append(document)
        self.registry.learn(
            [AccountTimeline.model_validate_json(each) for each in documents["account"]],
            [ResourceTimeline.model_validate_json(each) for each in documents["resource"]],
            [Publisher.model_validate_json(each) for each in documents["publisher"]],
            [CostCenter.model_validate_json(each) for each in documents["cost_center"]],
        )
        self._registry_version = version

    async def _read_books(self, connection: AsyncConnection, version: int) -> None:
        async with self._reading_books:  # tasks that found the same change at once wait for the one that reads it
            if version <= self._books_version:
                return
            books = self.prices.books
            for each in await store.book_versions_since(connection, self._books_version):
                read = await store.book_version(connection, each)
                books = PriceBooks([read], known=books)  # one at a time is in memory as it is read
            order = await store.book_order(connection)
            self.maximum_prices = {
                (each.account_id, each.outbound_profile): each.price_nano
                for each in await store.maximum_prices(connection)
                if each.price_nano is not None
            }
            self.prices = Prices(
                books,
                {each.subject: each.book_id for each in order if each.scope == "account"},
                {each.subject: each.book_id for each in order if each.scope == "organization"},
                tuple(each.book_id for each in order if each.scope == "default"),
            )
            self.registry.forget_books()
            self._books_version = version

    async def _read_cuts(self, connection: AsyncConnection, version: int) -> None:
        cuts = await store.taken_cuts(connection)
        positions: dict[object, dict[tuple[str, int], int]] = defaultdict(dict)
        for row in await store.cut_positions(connection):
            positions[row.cutoff_id][row.topic, row.partition] = row.position
        held: dict[object, dict[str, bool]] = defaultdict(dict)
        for row in await store.held_groups(connection):
            held[row.cutoff_id][row.group_id] = row.passed_at is not None
        if version <= self._cuts_version:
            return
        self.cuts = Cuts(
            Cut(
                row.cutoff_id, row.number, row.boundary, positions[row.cutoff_id], row.passed_at is not None,
                held[row.cutoff_id],
            )
            for row in cuts
        )  # fmt: skip
        self._cuts_version = version
