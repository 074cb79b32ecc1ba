"""What the registry, invoices and publishers would send to usage, written into a `Log` by hand."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from contracts.closing import Covered, Cutoff, Mark
from contracts.groups import (
    AccountTimeline,
    CostCenter,
    CostCenterInterval,
    GroupInterval,
    OwnerInterval,
    PlanInterval,
    Publisher,
    ResourceTimeline,
)
from contracts.topics import (
    CLOSING_CUTOFFS,
    CLOSING_PROGRESS,
    GROUPS_ACCOUNTS,
    GROUPS_ASSIGNMENTS,
    GROUPS_COST_CENTERS,
    GROUPS_PUBLISHERS,
    Topic,
)
from services.kernel.ids import cutoff_id
from services.kernel.period import instant_text
from services.runtime.outbox import partition_of
from tests.support.rooms import Log

PUBLISHER = "lakeside"
SOURCE = "pbx/detroit"
TOPIC = f"usage.events.{PUBLISHER}"
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
NOTHING: Mapping[str, str] = {}


class Sender:
    """Writes enveloped records with dense seqs, and usage events, into a log."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self._seqs: Counter[tuple[str, int]] = Counter()
        self._versions: Counter[str] = Counter()
        self._numbers = itertools.count(1)

    def send(self, topic: Topic, key: str, data: dict[str, Any]) -> None:
        partition = partition_of(key, self.log.partitions(topic.name))
        self._seqs[topic.name, partition] += 1
        envelope = {
            "id": f"m{next(self._numbers)}",
            "type": topic.type,
            "version": topic.version,
            "time": instant_text(datetime.now(UTC)),
            "link": f"{topic.written_by[0]}:test",
            "seq": self._seqs[topic.name, partition],
            "epoch": 0,
            "trace": None,
            "data": data,
        }
        self.log.write(topic.name, key=key, value=envelope, partition=partition)

    # ---- registry --------------------------------------------------------------------------------------------------

    def publisher(
        self,
        publisher_id: str = PUBLISHER,
        organizations: Sequence[str] = ("lakeside",),
        sources: Sequence[str] = (SOURCE,),
    ) -> None:
        self._versions[publisher_id] += 1
        publisher = Publisher(
            publisher_id=publisher_id,
            version=self._versions[publisher_id],
            organization_ids=tuple(organizations),
            sources=tuple(sources),
        )
        self.send(GROUPS_PUBLISHERS, publisher_id, publisher.data())

    def account(
        self,
        account_id: str,
        *,
        organization: str = "lakeside",
        group: str | None = None,
        plan: str = "payg",
        zone: str = "UTC",
        currency: str = "USD",
        pricing_model: str | None = None,
        opened_at: datetime = LONG_AGO,
        closed_at: datetime | None = None,
        version: int | None = None,
        groups: Sequence[tuple[datetime, datetime | None, str]] = (),
        plans: Sequence[tuple[datetime, datetime | None, str]] = (),
        zones: Mapping[str, str] = NOTHING,
        pricing_models: Mapping[str, str] = NOTHING,
    ) -> None:
        """An account, alone in a group called like it unless said otherwise; a trial has none. ``zones`` and ``pricing_models``
        are those of groups that have others."""
        self._versions[account_id] += 1
        payers = groups or ([] if plan == "trial" else [(opened_at, None, group or f"g-{account_id}")])
        timeline = AccountTimeline(
            account_id=account_id,
            account_no=len(self._versions),
            version=version or self._versions[account_id],
            organization_id=organization,
            name=account_id,
            currency=currency,
            opened_at=opened_at,
            created_at=opened_at,
            level_2=False,
            credit_limit="0",
            closed_at=closed_at,
            plans=tuple(
                PlanInterval(start=start, end=end, plan=name)  # type: ignore[arg-type]
                for start, end, name in plans or [(opened_at, None, plan)]
            ),
            groups=tuple(
                GroupInterval(
                    start=start,
                    end=end,
                    group_id=name,
                    zone=zones.get(name, zone),
                    currency=currency,
                    pricing_model=pricing_models.get(name, pricing_model),
                )
                for start, end, name in payers
            ),
        )
        self.send(GROUPS_ACCOUNTS, account_id, timeline.data())

    def resource(
        self,
        resource_id: str,
        account_id: str,
        cost_center: str | None,
        *,
        number: str | None = None,
        owners: Sequence[tuple[datetime, datetime | None, str]] = (),
        cost_centers: Sequence[tuple[datetime, datetime | None, str | None]] = (),
        organization: str = "lakeside",
    ) -> None:
        """A number, or without one an outbound profile; the account's since long ago, unless said otherwise."""
        self._versions[resource_id] += 1
        timeline = ResourceTimeline(
            resource_id=resource_id,
            version=self._versions[resource_id],
            kind="outbound_profile" if number is None else "number",
            number=number,
            account_id=account_id,
            organization_id=organization,
            owners=tuple(OwnerInterval(start=start, end=end, account_id=name) for start, end, name in owners),
            cost_centers=tuple(
                CostCenterInterval(start=start, end=end, cost_center_id=name)
                for start, end, name in cost_centers or [(LONG_AGO, None, cost_center)]
            ),
        )
        self.send(GROUPS_ASSIGNMENTS, resource_id, timeline.data())

    def cost_center(self, cost_center_id: str, organization: str = "lakeside") -> None:
        center = CostCenter(cost_center_id=cost_center_id, version=1, organization_id=organization, name=cost_center_id)
        self.send(GROUPS_COST_CENTERS, cost_center_id, center.data())

    # ---- closing ---------------------------------------------------------------------------------------------------

    def cutoff(self, boundary: datetime) -> None:
        """Invoices asks for a cut, and groups covers it with all that was sent so far."""
        name = cutoff_id(boundary)
        self.send(CLOSING_CUTOFFS, str(name), Cutoff(cutoff_id=name, boundary=boundary).data())

    def groups_covered(self, boundary: datetime, *, more: int = 0) -> None:
        """`more` is how many records of each link are still on their way."""
        name = cutoff_id(boundary)
        marks = tuple(
            Mark(link="groups:test", topic=topic, partition=partition, last_seq=seq + more)
            for (topic, partition), seq in sorted(self._seqs.items())
            if topic.startswith("groups.")
        )
        covered = Covered(cutoff_id=name, boundary=boundary, room="groups", marks=marks)
        self.send(CLOSING_PROGRESS, str(name), covered.data())

    # ---- usage -----------------------------------------------------------------------------------------------------

    def leg(
        self,
        event: Mapping[str, Any],
        *,
        publisher: str = PUBLISHER,
        partition: int | None = 0,
        at: datetime | None = None,
    ) -> int:
        """Publish an event; returns its offset."""
        return self.log.write(
            f"usage.events.{publisher}", key=event["data"].get("account_id") or "", value=dict(event),
            partition=partition, at=at,
        )[2]  # fmt: skip


def leg(event_id: str, ended_at: datetime, account_id: str = "sales", **changes: Any) -> dict[str, Any]:
    """A valid event: an answered outbound call of 95 seconds. `changes` go into the data, `source=` around it."""
    source = changes.pop("source", SOURCE)
    data: dict[str, Any] = {
        "account_id": account_id,
        "direction": "outbound",
        "caller": "+13135550100",
        "called": "+12485550101",
        "ended_at": instant_text(ended_at),
        "answered": True,
        "duration_s": 100,
        "billable_s": 95,
    }
    data |= changes
    started_at = ended_at - timedelta(seconds=data["duration_s"] if isinstance(data["duration_s"], int) else 0)
    data.setdefault("started_at", instant_text(started_at))
    return {"specversion": "1.0", "id": event_id, "source": source, "type": "tollbook.usage.voice.leg.v1", "data": data}


def void(
    event_id: str, revision: int, *, account: str = "sales", source: str = SOURCE, reason: str = "never took place"
) -> dict[str, Any]:
    """A valid event that takes back what was told under this id."""
    return {
        "specversion": "1.0",
        "id": event_id,
        "source": source,
        "type": "tollbook.usage.voided.v1",
        "revision": revision,
        "data": {"account_id": account, "reason": reason},
    }
