"""A desk that asks the registry and reads its answers, without Kafka."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from itertools import count
from typing import Any

from sqlalchemy import func, select, text

from contracts.closing import Covered
from contracts.topics import CLOSING_CUTOFFS, CLOSING_PROGRESS, GROUPS_COMMANDS, GROUPS_EVENTS, topic_of
from services.groups.consumer import build
from services.kernel.ids import cutoff_id
from services.kernel.period import instant_text, next_period, period_of
from tests.support.rooms import Log, Rooms

BILLING = {"company": "Lakeside Hotel"}
APPROVED = {"role": "operator", "yearly_spend": "120000", "threshold": "100000", "credit_check_passed": True}


class Desk:
    """Writes commands in the order given and finds the answer of each by its id."""

    def __init__(self, rooms: Rooms) -> None:
        self.rooms = rooms
        self.log: Log = rooms.log
        self._ids = count(1)
        self._cuts = count(1)

    def write(self, kind: str, organization: str = "lakeside", **fields: Any) -> str:
        """Put a command on the topic without running the room; returns its id."""
        command = {"kind": kind, "actor": "Erin", "organization_id": organization, **fields}
        command_id: str = command.setdefault("command_id", f"c{next(self._ids)}")
        self.log.write(GROUPS_COMMANDS.name, key=organization, value=command)
        return command_id

    def answers(self, command_id: str) -> list[Any]:
        """Every answer to a command."""
        return [said for said in self.log.data(GROUPS_EVENTS.name) if said["command_id"] == command_id]

    async def ask(self, kind: str, organization: str = "lakeside", **fields: Any) -> Any:
        """Carry a command out now; returns its last answer."""
        command_id = self.write(kind, organization, **fields)
        await self.rooms.pump()
        return self.answers(command_id)[-1]

    async def done(self, kind: str, organization: str = "lakeside", **fields: Any) -> Any:
        """The same for a command that must be accepted."""
        said = await self.ask(kind, organization, **fields)
        assert said["accepted"], said
        return said

    async def refused(self, kind: str, organization: str = "lakeside", **fields: Any) -> tuple[str, str | None]:
        """The same for one that must be refused: (reason, field). Nothing may be published but the answer."""
        before = {key: len(records) for key, records in self.log.records.items()}
        said = await self.ask(kind, organization, **fields)
        assert not said["accepted"], said
        assert said["message"]
        assert said["objects"] == {}
        for (topic, partition), records in self.log.records.items():
            if topic not in (GROUPS_COMMANDS.name, GROUPS_EVENTS.name):
                assert len(records) == before.get((topic, partition), 0), topic
        return said["reason"], said["field"]

    async def seller(self) -> None:
        """The platform's billing entity."""
        await self.done(
            "create_billing_entity", role="operator", billing_entity_id="seller", name="Seller Inc.", address="here"
        )

    async def found(self, organization: str = "lakeside", **fields: Any) -> None:
        """An organization."""
        await self.done("create_organization", organization, name=organization.title(), **fields)

    async def group(self, group_id: str, organization: str = "lakeside", **fields: Any) -> Any:
        """A payer group."""
        return await self.done(
            "create_group", organization, group_id=group_id, name=group_id, billing_information=BILLING, **fields
        )

    async def account(self, account_id: str, plan: str = "payg", organization: str = "lakeside", **fields: Any) -> Any:
        """An account; an invoiced one by the operator."""
        if plan == "invoiced":
            fields = {"role": "operator"} | fields
        return await self.done(
            "create_account", organization, account_id=account_id, name=account_id, plan=plan, **fields
        )

    def state(self, topic: str, identifier: str) -> Any:
        """The newest published timeline of an object."""
        found = [
            topic_of(topic).adapter.validate_json(record.value or b"") and record.json["data"]
            for (name, _), records in self.log.records.items()
            for record in records
            if name == topic and (record.key or b"").decode() == identifier
        ]
        assert [each["version"] for each in found] == sorted({each["version"] for each in found})
        return found[-1]

    async def now(self) -> datetime:
        """The one clock."""
        found: datetime = (await self.rooms.query("groups", select(func.runtime.clock_now())))[0][0]
        return found

    async def forward(self, by: timedelta) -> None:
        """Move the one clock."""
        await self.rooms.query("groups", text("select runtime.clock_move(:by)"), {"by": by})

    async def coming(self, months: int = 1) -> Any:
        """The period so many months ahead, in UTC."""
        period = period_of(await self.now())
        for _ in range(months):
            period = next_period(period)
        return period

    async def cut(self, boundary: datetime, *, again: bool = False) -> list[Covered]:
        """Announce a cut; returns what groups said of it."""
        identifier = cutoff_id(boundary)
        seq = next(self._cuts)
        envelope = {
            "id": str(identifier),
            "type": CLOSING_CUTOFFS.type,
            "version": 1,
            "time": instant_text(boundary),
            "link": "invoices:tick.close",
            "seq": seq,
            "epoch": 0,
            "trace": None,
            "data": {"cutoff_id": str(identifier), "boundary": instant_text(boundary)},
        }
        self.log.write(CLOSING_CUTOFFS.name, key=str(identifier), value=envelope, partition=0)
        await self.rooms.pump()
        return self.covered(boundary)

    def covered(self, boundary: datetime) -> list[Covered]:
        """What groups said of a cut."""
        said = [Covered.model_validate_json(json.dumps(each)) for each in self.log.data(CLOSING_PROGRESS.name)]
        return [each for each in said if each.cutoff_id == cutoff_id(boundary)]


def open_desk(database: Any) -> Rooms:
    """The groups room over an empty log."""
    return Rooms(Log(), database, [build()])
