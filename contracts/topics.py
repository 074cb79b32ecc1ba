"""Every topic, once: its name, key, order, retention and the model of its records. Only this file spells a topic name.

A topic whose records come from outside is `bare` (the data itself); all others carry the envelope.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from pydantic import TypeAdapter

from contracts import balance, closing, groups, invoices, payments, receivables, usage
from contracts.envelope import Envelope
from contracts.reading import Reading

DAY_MS = 86_400_000
RECORD_BYTES_MAX = 8 * 1024 * 1024  # between rooms: the closing postings of a group of 40,000 accounts, however long
BARE_RECORD_BYTES_MAX = 1024 * 1024  # what a broker takes where nothing is said
AROUND_BYTES_MAX = 64 * 1024  # the envelope, and what Kafka puts around a record


@dataclass(frozen=True, eq=False)
class Topic:
    """``name`` ends with ``.`` for a family of topics (one per publisher or processor)."""

    name: str
    type: str
    model: Any
    key: str
    summary: str
    written_by: tuple[str, ...]
    read_by: tuple[str, ...]
    version: int = 1
    bare: bool = False
    partitions: int = 6
    cleanup: Literal["delete", "compact"] = "delete"
    retention_days: int = 14
    adapter: TypeAdapter[Any] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        shape: Any = self.model if self.bare else Envelope[self.model]  # type: ignore[name-defined]
        object.__setattr__(self, "adapter", TypeAdapter(shape))

    @lru_cache  # noqa: B019 - as many as there are inputs
    def reading(self, *fields: str) -> Reading:
        """How a consumer reads that needs only these fields of the data."""
        return Reading(self.model, fields)

    @property
    def is_family(self) -> bool:
        return self.name.endswith(".")

    def holds(self, name: str) -> bool:
        """Whether this declaration stands behind a topic name."""
        return name == self.name if not self.is_family else name.startswith(self.name) and name != self.name

    def of(self, member: str) -> str:
        """The topic of one publisher or processor.

        >>> USAGE_EVENTS.of("lakeside")
        'usage.events.lakeside'
        """
        return f"{self.name}{member}"

    def member(self, topic: str) -> str:
        """The publisher or processor of a topic of this family: the topic authenticates it."""
        return topic.removeprefix(self.name)

    @property
    def record_bytes_max(self) -> int:
        """The largest record that the broker takes, with all that stands around its data."""
        return BARE_RECORD_BYTES_MAX if self.bare else RECORD_BYTES_MAX

    @property
    def configs(self) -> dict[str, str]:
        """Broker settings of the topic; a state topic keeps the last record of every key for ever.

        The broker sets the time of every record: a publisher must not judge its own lateness, and a process whose clock is
        wrong, or whose one clock was moved, would be refused or keep its records for too long.
        """
        configs: dict[str, str] = {"cleanup.policy": self.cleanup, "message.timestamp.type": "LogAppendTime"}
        if self.cleanup == "delete":
            configs |= {"retention.ms": str(self.retention_days * DAY_MS), "retention.bytes": "-1"}
        else:
            configs["min.compaction.lag.ms"] = str(14 * DAY_MS)
        if not self.bare:
            configs["max.message.bytes"] = str(self.record_bytes_max)
        return configs


USAGE_EVENTS = Topic(
    "usage.events.", "usage.event", usage.UsageEvent, "account id",
    "One fact from a telephony service; the topic authenticates the publisher",
    ("upstreams", "usage"), ("usage",), bare=True, retention_days=45,
)  # fmt: skip
USAGE_REJECTIONS = Topic(
    "usage.rejections.", "usage.rejection", usage.Rejection, "source",
    "Every quarantine, replay and discard, told to the publisher", ("usage",), ("upstreams",),
)  # fmt: skip
USAGE_CHARGES = Topic(
    "usage.charges", "usage.charge", usage.Charge, "account id", "One record a charge; public",
    ("usage",), ("balance", "invoices", "downstream"),
)  # fmt: skip
GROUPS_COMMANDS = Topic(
    "groups.commands", "groups.command", groups.GroupsCommand, "organization id",
    "Commands to the registry", ("gateway", "programs"), ("groups",), bare=True,
)  # fmt: skip
GROUPS_EVENTS = Topic(
    "groups.events", "groups.event", groups.CommandAnswer, "organization id", "Answers to commands",
    ("groups",), ("gateway", "programs"),
)  # fmt: skip
GROUPS_ACCOUNTS = Topic(
    "groups.accounts", "groups.account", groups.AccountTimeline, "account id", "The whole timeline of an account",
    ("groups",), ("usage", "balance", "invoices", "webhooks"), cleanup="compact",
)  # fmt: skip
GROUPS_ASSIGNMENTS = Topic(
    "groups.assignments", "groups.assignment", groups.ResourceTimeline, "resource id",
    "The whole timeline of a number or outbound profile", ("groups",), ("usage",), cleanup="compact",
)  # fmt: skip
GROUPS_COST_CENTERS = Topic(
    "groups.cost_centers", "groups.cost_center", groups.CostCenter, "cost center id",
    "Every cost center of an organization", ("groups",), ("usage",), cleanup="compact",
)  # fmt: skip
GROUPS_PUBLISHERS = Topic(
    "groups.publishers", "groups.publisher", groups.Publisher, "publisher id",
    "Organizations and sources a publisher may bill", ("groups",), ("usage",), cleanup="compact",
)  # fmt: skip
GROUPS_BILLING_GROUPS = Topic(
    "groups.billing_groups", "groups.billing_group", groups.BillingGroup, "group id",
    "Payer groups with all that an invoice needs", ("groups",), ("invoices",), cleanup="compact",
)  # fmt: skip
PAYMENTS_REQUESTS = Topic(
    "payments.requests", "payments.request", payments.PaymentRequest, "account id",
    "Charge a token once, inquire, cancel or refund, by attempt id",
    ("balance",), ("payments",),
)  # fmt: skip
PAYMENTS_RESULTS = Topic(
    "payments.results.", "payments.result", payments.PaymentResult, "attempt id",
    "What a processor says of an attempt", ("processors", "payments"), ("balance",), bare=True,
)  # fmt: skip
BALANCE_COMMANDS = Topic(
    "balance.commands", "balance.command", balance.BalanceCommand, "account id", "Commands to wallets",
    ("gateway", "programs"), ("balance",), bare=True,
)  # fmt: skip
BALANCE_POSTINGS = Topic(
    "balance.postings", "balance.posting", balance.Posting, "group id, else account id",
    "Totals of a batch per (account, group, bill_to)", ("balance",), ("invoices",),
)  # fmt: skip
BALANCE_EVENTS = Topic(
    "balance.events", "balance.event", balance.BalanceEvent, "account id",
    "Recharges, suspensions, restorations", ("balance",), ("upstreams", "webhooks"),
)  # fmt: skip
BALANCE_GROUP_COMMANDS = Topic(
    "balance.group_commands", "balance.group_command", receivables.GroupCommand, "group id",
    "Commands of finance about what payer groups owe", ("gateway", "programs"), ("balance",), bare=True,
)  # fmt: skip
BALANCE_GROUP_EVENTS = Topic(
    "balance.group_events", "balance.group_event", receivables.GroupEvent, "group id",
    "What payer groups owe: payments, overdue invoices, write-offs", ("balance",),
    ("invoices", "programs", "webhooks"),
)  # fmt: skip
CLOSING_CUTOFFS = Topic(
    "closing.cutoffs", "closing.cutoff", closing.Cutoff, "cut-off id", "A cut is to be taken",
    ("invoices",), ("groups", "usage"), partitions=1,
)  # fmt: skip
CLOSING_PROGRESS = Topic(
    "closing.progress", "closing.covered", closing.Covered, "cut-off id", "A room covers a cut",
    ("groups", "usage", "balance"), ("usage", "balance", "invoices"), partitions=1,
)  # fmt: skip
INVOICES_EVENTS = Topic(
    # The type is older than the second kind of record: what a record says is its `kind`.
    "invoices.events", "invoices.closed", invoices.InvoiceEvent, "group id", "A closed invoice, and each state after it",
    ("invoices",), ("downstream", "balance", "groups", "webhooks"),
)  # fmt: skip

TOPICS: tuple[Topic, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Topic))


@lru_cache(maxsize=4096)
def topic_of(name: str) -> Topic:
    """The declaration behind a topic name.

    >>> topic_of("usage.events.lakeside") is USAGE_EVENTS
    True
    """
    for topic in TOPICS:
        if topic.holds(name):
            return topic
    raise LookupError(f"no topic is called {name}")
