"""The reference model against the worked examples of the domain page, the designs and the demo's cast.

The model judges everything else, so it is itself judged here by numbers that people worked out on the pages.
"""

from __future__ import annotations

import ast
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import model
from tests.support.chain import in_order
from tests.support.model import (
    NANO,
    Attempt,
    Charge,
    Ledger,
    RawRecord,
    RechargeModel,
    RestingAccount,
    check_recharge_invariants,
    judge,
    make_invoice,
    make_invoices,
    make_ledger,
    nano,
)
from tests.support.usage_factory import UsageFactory, as_records, example_prices

BOUNDARY = datetime(2026, 11, 1, tzinfo=UTC)
NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
OPENED = datetime(2026, 10, 1, tzinfo=UTC)
TOPIC = "usage.events.lakeside"


def at(hour: int, minute: int = 0, second: int = 0, *, day: int = 1, microsecond: int = 0) -> datetime:
    return datetime(2026, 10, day, hour, minute, second, microsecond, tzinfo=UTC)


def always(**fields: Any) -> list[dict[str, Any]]:
    return [{"from": OPENED, "to": None, **fields}]


def account(account_id: str, organization_id: str, plan: str, group_id: str | None) -> dict[str, Any]:
    groups = always(group_id=group_id) if group_id else []
    return {
        "account_id": account_id,
        "organization_id": organization_id,
        "plans": always(plan=plan),
        "groups": groups,
    }


FACTS: dict[str, Any] = {
    "publishers": [
        {"publisher_id": "lakeside", "organization_ids": ["lakeside"], "sources": ["pbx/1", "pbx/2"]},
        {"publisher_id": "carrier", "organization_ids": ["lakeside", "northwind"], "sources": ["switch"]},
    ],
    "accounts": [
        account("frontdesk", "lakeside", "payg", "g-frontdesk"),
        account("try", "lakeside", "trial", None),
        account("east", "northwind", "invoiced", "g-northwind"),
        account("west", "northwind", "invoiced", "g-northwind"),
    ],
    "billing_groups": [
        {"group_id": "g-frontdesk", "tax_rate": "0"},
        {"group_id": "g-northwind", "tax_rate": "0.20", "pricing_model": "wholesale"},
        {"group_id": "g-paris", "zone": "Europe/Paris"},
    ],
    "prices": example_prices(OPENED),
}


def event(event_id: str = "1", *, source: str = "pbx/1", ended_at: str = "2026-10-31T23:50:00Z", **data: Any) -> bytes:
    fields = {
        "account_id": "frontdesk",
        "direction": "outbound",
        "caller": None,
        "called": "+12485550100",
        "started_at": "2026-10-01T00:00:00Z",
        "ended_at": ended_at,
        "answered": True,
        "duration_s": 100,
        "billable_s": 95,
    }
    return json.dumps(
        {"specversion": "1.0", "id": event_id, "source": source, "type": model.VOICE_LEG, "data": fields | data}
    ).encode()


def record(
    value: bytes | None,
    offset: int = 0,
    *,
    partition: int = 0,
    topic: str = TOPIC,
    arrived: datetime = datetime(2026, 11, 2, tzinfo=UTC),
) -> RawRecord:
    return RawRecord(topic, partition, offset, int(arrived.timestamp() * 1000), b"key", value)


def published(charge: Charge) -> dict[str, Any]:
    """A charge as it stands on the wire."""
    body = {name: getattr(charge, name) for name in charge.__dataclass_fields__}
    amount_nano = body.pop("amount_nano")
    units, rest = divmod(abs(amount_nano), NANO)
    return body | {"amount": f"{'-' if amount_nano < 0 else ''}{units}.{rest:09d}"}


def charge_of(
    amount: str, *, account_id: str = "east", plan: str = "invoiced", number: int = 0, **fields: Any
) -> Charge:
    base = Charge(
        charge_id=model.charge_id_of(model.identity_of("p", account_id, f"{amount}-{number}")),
        account_id=account_id,
        organization_id="northwind",
        plan=plan,
        group_id="g-northwind",
        period="2026-10",
        bill_to="2026-10",
        cost_center_id=None,
        publisher="p",
        source=account_id,
        event_id=f"{amount}-{number}",
        event_time=BOUNDARY,
        product="voice.outbound",
        matched="1",
        quantity=60,
        duration_s=60,
        amount_nano=nano(amount),
        currency="USD",
    )
    return replace(base, **fields)


# ---- independence --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["model.py", "usage_factory.py"])
def test_model_and_factory_import_nothing_of_what_they_judge(file: str) -> None:
    tree = ast.parse((Path(model.__file__).parent / file).read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {name for name in imported if name.split(".")[0] in ("services", "contracts")}


# ---- identity ------------------------------------------------------------------------------------------------------


def test_identity_tells_source_and_id_apart() -> None:
    assert model.identity_of("p", "a", "bc") != model.identity_of("p", "ab", "c")


def test_charge_id_is_a_uuid_of_version_8_and_the_rfc_variant() -> None:
    charge_id = model.charge_id_of(bytes(16))
    assert charge_id[14] == "8"
    assert charge_id[19] in "89ab"


# ---- rating --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "minimum_s", "increment_s", "per_minute", "fee", "amount"),
    [
        (95, 60, 60, "0.0140", "0", "0.0280"),
        (95, 60, 6, "0.0120", "0.0010", "0.0202"),
        (3, 1, 1, "0.0085", "0", "0.000425"),
        (1, 1, 1, "0.0085", "0", "0.000141667"),
        (23, 60, 6, "0.0400", "0.0010", "0.0410"),
        (120, 60, 6, "0.0120", "0.0010", "0.0250"),
    ],
)
def test_rates_of_the_cast(
    seconds: int, minimum_s: int, increment_s: int, per_minute: str, fee: str, amount: str
) -> None:
    billed_s = model.billed_quantity(seconds, minimum_s, increment_s)
    assert model.charge_amount(billed_s, per_minute, fee) == nano(amount)


def leg(**data: Any) -> model.Use:
    return model.read_use(event(**data))


def price(prefix: str, per_minute: str, **fields: Any) -> dict[str, Any]:
    return {
        "product": "voice.outbound",
        "prefix": prefix,
        "price": per_minute,
        "minimum": 60,
        "increment": 60,
        "effective_from": "2026-10-01T00:00:00Z",
    } | fields


def matched(
    prices: Iterable[Mapping[str, Any]],
    called: str = "+447700900123",
    *,
    organization_id: str | None = "lakeside",
    pricing_model: str | None = "wholesale",
) -> str | None:
    row = model.PriceBooks(prices).find(leg(called=called), organization_id, pricing_model)
    return row["price"] if row else None


def test_longest_prefix_wins_inside_a_book() -> None:
    assert matched([price("44", "0.1"), price("447700", "0.3"), price("447", "0.2")]) == "0.3"


def test_first_book_with_a_match_wins_over_a_longer_prefix_of_a_later_book() -> None:
    books = [
        price("447700", "0.4"),
        price("44", "0.1", account_id="frontdesk"),
        price("4477", "0.2", pricing_model="wholesale"),
        price("447", "0.3", organization_id="lakeside"),
    ]
    assert matched(books) == "0.1"
    assert matched(books[:1] + books[2:]) == "0.2"
    assert matched(books[:1] + books[3:]) == "0.3"
    assert matched(books[:1] + books[2:], pricing_model=None) == "0.3"
    assert matched(books[:1] + books[2:], pricing_model=None, organization_id=None) == "0.4"
    assert matched([price("49", "0.1", account_id="frontdesk"), price("44", "0.5")]) == "0.5"
    assert matched([price("44", "0.1", book="list"), price("447", "0.2", book="inbound")]) == "0.1"


def test_a_version_is_a_complete_list_and_the_higher_of_two_from_the_same_instant_holds() -> None:
    first = [price("44", "0.1"), price("49", "0.2")]
    second = [price("49", "0.3", version=2)]
    assert matched(first + second, called="+4930123456") == "0.3"
    assert matched(first + second) is None


def test_price_is_the_latest_that_had_begun_when_the_call_ended() -> None:
    rows = [
        price("44", "0.1"),
        price("44", "0.2", effective_from="2026-10-31T23:50:00Z"),
        price("44", "0.3", effective_from="2026-10-31T23:50:00.000001Z"),
    ]
    assert matched(rows) == "0.2"
    assert matched(rows[2:]) is None


def test_toll_free_is_a_product_of_its_own_and_not_the_price_of_its_country() -> None:
    inbound = {**price("1", "0.0085"), "product": "voice.inbound"}
    toll_free = leg(direction="inbound", called="+18778874413")
    assert toll_free.product == "voice.toll_free"
    assert leg(direction="inbound", called="+12484329407").product == "voice.inbound"
    assert model.PriceBooks([inbound]).find(toll_free, None, None) is None


def test_cost_center_is_override_then_resource_then_ungrouped() -> None:
    facts = FACTS | {
        "cost_centers": {"lakeside": ["sales", "support"]},
        "resources": [
            {
                "resource_id": "profile-1",
                "kind": "outbound_profile",
                "account_id": "frontdesk",
                "cost_centers": [
                    {"from": OPENED, "to": BOUNDARY, "cost_center_id": "sales"},
                    {"from": BOUNDARY, "to": None, "cost_center_id": None},
                ],
            },
            {
                "resource_id": "n1",
                "kind": "number",
                "number": "+12485550199",
                "account_id": "frontdesk",
                "cost_centers": always(cost_center_id="support"),
            },
        ],
    }
    values = [
        event("1", outbound_profile="profile-1"),
        event("2", outbound_profile="profile-1", cost_center_id="support"),
        event("3", outbound_profile="profile-1", cost_center_id="of-somebody-else"),
        event("4", direction="inbound", called="+12485550199"),
        event("5"),
        event("6", outbound_profile="profile-1", ended_at="2026-11-01T00:00:00Z"),
    ]
    result = judge([(facts, [record(value, i) for i, value in enumerate(values)])])
    assert {c.event_id: c.cost_center_id for c in result.charges.values()} == {
        "1": "sales",
        "2": "support",
        "3": "sales",
        "4": "support",
        "5": None,
        "6": None,
    }


# ---- classes -------------------------------------------------------------------------------------------------------


def classes(*records: RawRecord, facts: Mapping[str, Any] = FACTS, **more: Any) -> list[set[str]]:
    result = judge([(facts, records)], **more)
    return [set(result.verdicts[item.position]) for item in records]


def test_answered_leg_is_rated_by_plan_and_group_at_event_time() -> None:
    result = judge([(FACTS, [record(event())])])
    (charge,) = result.charges.values()
    assert (charge.amount_nano, charge.quantity, charge.plan) == (nano("0.0280"), 120, "payg")
    assert (charge.group_id, charge.period, charge.bill_to) == ("g-frontdesk", "2026-10", "2026-10")
    assert result.check_classes({(TOPIC, 0, 0): "rated"}) == []


def test_trial_usage_has_no_group_and_counts_as_rated_ungrouped() -> None:
    result = judge([(FACTS, [record(event(account_id="try"))])])
    (charge,) = result.charges.values()
    assert (charge.group_id, charge.period, charge.bill_to) == (None, None, None)
    assert set(result.verdicts.values()) == {frozenset({"rated_ungrouped"})}
    assert make_invoices(result.charges.values(), FACTS) == {}
    assert make_ledger(result.charges.values(), goodwill=[("try", nano("5"))]).wallet("try") == nano("4.972")


def test_unanswered_leg_is_not_billable_before_any_price_is_looked_up() -> None:
    assert classes(record(event(answered=False, billable_s=0, called="+88210012345"))) == [{"not_billable"}]
    assert classes(record(event(billable_s=0, called="+88210012345"))) == [{"not_billable"}]


def test_unknown_account_is_quarantined_even_when_unanswered() -> None:
    assert classes(record(event(answered=False, billable_s=0, account_id="field"))) == [{"unknown_account"}]


def test_two_faults_of_one_event_may_both_be_named_and_nothing_else() -> None:
    old = event(account_id="field", ended_at="2026-09-01T00:00:00Z", started_at="2026-09-01T00:00:00Z")
    assert classes(record(old)) == [{"unknown_account", "too_old"}]


@pytest.mark.parametrize(
    ("late", "expected"),
    [
        (timedelta(days=35), "rated"),
        (timedelta(days=35, milliseconds=1), "too_old"),
        (-timedelta(minutes=10), "rated"),
        (-timedelta(minutes=10, milliseconds=1), "in_future"),
    ],
)
def test_event_time_is_accepted_from_35_days_before_to_10_minutes_after_the_broker(
    late: timedelta, expected: str
) -> None:
    ended_at = datetime(2026, 10, 31, 23, 50, tzinfo=UTC)
    assert classes(record(event(), arrived=ended_at + late)) == [{expected}]


def test_publisher_may_bill_only_its_organizations_from_its_sources() -> None:
    assert classes(record(event(source="pbx/3"))) == [{"not_permitted"}]
    assert classes(record(event(account_id="east"))) == [{"not_permitted"}]
    assert classes(record(event(), topic="usage.events.stranger")) == [{"not_permitted"}]
    assert classes(record(event(source="switch", account_id="east"), topic="usage.events.carrier")) == [{"rated"}]


def test_same_identity_with_same_content_is_counted_once_whichever_copy_comes_first() -> None:
    copies = [record(event()), record(event(), 1), record(event(), 0, partition=3)]
    result = judge([(FACTS, copies)])
    assert len(result.charges) == 1
    assert result.totals == Counter(rated=1, duplicate=2)
    first, second, third = (copy.position for copy in copies)
    for winner in (first, second, third):
        seen = dict.fromkeys((first, second, third), "duplicate") | {winner: "rated"}
        assert result.check_classes(seen) == []
    assert result.check_classes(dict.fromkeys((first, second, third), "rated"))
    assert result.check_classes(dict.fromkeys((first, second, third), "duplicate"))
    assert result.check_classes({first: "rated", second: "duplicate"})


def test_same_identity_with_other_content_or_other_event_time_is_a_conflict() -> None:
    assert classes(record(event()), record(event(billable_s=96), 1)) == [{"rated"}, {"conflict"}]
    assert classes(record(event(ended_at="2026-10-01T23:50:00Z")), record(event(), 1)) == [{"rated"}, {"conflict"}]


def test_same_id_of_another_source_is_another_fact() -> None:
    assert classes(record(event()), record(event(source="pbx/2"), 1)) == [{"rated"}, {"rated"}]


def test_conflict_across_partitions_leaves_open_which_came_first_but_not_that_exactly_one_did() -> None:
    result = judge([(FACTS, [record(event()), record(event(billable_s=59), partition=1)])])
    assert set(result.verdicts.values()) == {frozenset({"rated", "conflict"})}
    assert not result.charges
    ((first, second),) = result.contested.values()
    assert first is not None
    assert second is not None
    assert result.resolve([published(first)]) == ({first.charge_id: first}, [])
    assert result.resolve([published(second)]) == ({first.charge_id: second}, [])
    assert result.resolve([])[1]
    assert result.resolve([published(first), published(second)])[1]
    other = published(first) | {"quantity": 60}
    assert result.resolve([other])[1]


def test_conflict_that_comes_to_the_same_charge_either_way_leaves_the_charge_certain() -> None:
    result = judge([(FACTS, [record(event()), record(event(caller="+13135550100"), partition=1)])])
    assert len(result.charges) == 1
    assert set(result.verdicts.values()) == {frozenset({"rated", "conflict"})}


def test_conflict_ignores_the_trace_and_unknown_extensions_and_the_order_of_keys() -> None:
    traced = json.loads(event()) | {"traceparent": "00-1-2-01", "myextension": 5}
    reordered = json.dumps(dict(reversed(traced.items())), indent=2).encode()
    assert classes(record(event()), record(reordered, 1)) == [{"rated", "duplicate"}] * 2


def test_identical_copy_after_36_days_is_duplicate_or_too_old_and_never_charged() -> None:
    late = record(event(), 1, arrived=datetime(2026, 12, 20, tzinfo=UTC))
    result = judge([(FACTS, [record(event()), late])])
    assert result.verdicts[late.position] == {"duplicate", "too_old"}
    assert len(result.charges) == 1


def test_record_that_the_test_makes_the_database_refuse_is_quarantined_alone() -> None:
    refused = classes(
        record(event("bad")), record(event("good"), 1), store_refuses=lambda some_leg: some_leg.event_id == "bad"
    )
    assert refused == [{"refused_by_store"}, {"rated"}]


def test_observed_charges_are_compared_field_by_field() -> None:
    result = judge([(FACTS, [record(event())])])
    (charge,) = result.charges.values()
    good = published(charge)
    assert result.resolve([good]) == (result.charges, [])
    assert result.resolve([])[1]
    assert result.resolve([good, good])[1]
    for wrong in (
        {"amount": "0.0281"},
        {"bill_to": "2026-11"},
        {"account_id": "try"},
        {"revision": 1},
        {"quantity": 1},
    ):
        assert result.resolve([good | wrong])[1], wrong
    assert result.resolve([good, good | {"charge_id": model.charge_id_of(bytes(16))}])[1]


# ---- phases, replay ------------------------------------------------------------------------------------------------


def test_record_read_before_its_account_existed_is_rated_when_replayed() -> None:
    before = FACTS | {"accounts": [row for row in FACTS["accounts"] if row["account_id"] != "frontdesk"]}
    early, later = record(event("1")), record(event("2"), 1)
    phases = [(before, [early]), (FACTS, [later])]
    waiting = judge(phases)
    assert waiting.verdicts[early.position] == {"unknown_account"}
    assert waiting.verdicts[later.position] == {"rated"}
    replayed = judge(phases, replays={early.position: set()})
    assert replayed.totals == Counter(rated=2)
    after_the_pass = judge(phases, replays={early.position: {BOUNDARY}})
    assert [charge.bill_to for charge in after_the_pass.charges.values()] == ["2026-11", "2026-10"]


def test_quarantined_record_holds_its_group_until_it_is_decided() -> None:
    unpriced = record(event("1", called="+88210012345"))
    unknown = record(event("2", account_id="field"), 1)
    above_the_cut = record(event("3", called="+88210012345", source="switch", account_id="east"), 7, topic=TOPIC)
    records = [unpriced, unknown, above_the_cut]
    vector = {(TOPIC, 0): 2}
    held = judge([(FACTS, records)]).held_groups(BOUNDARY, vector, FACTS)
    assert held == (frozenset({"g-frontdesk"}), frozenset({"g-frontdesk"}))
    discarded = judge([(FACTS, records)], discards={unpriced.position})
    assert discarded.held_groups(BOUNDARY, vector, FACTS) == (frozenset(), frozenset())


def test_quarantined_revision_holds_the_group_of_what_it_would_take_back_wherever_that_was_read() -> None:
    def revision(number: int, **data: Any) -> bytes:
        return json.dumps(json.loads(event("1", source="switch", **data)) | {"revision": number}).encode()

    topic = f"{model.USAGE_TOPICS}carrier"
    parked = record(revision(1, account_id="east", called="+88210012345"), topic=topic)
    original = record(event("1", source="switch"), topic=topic, partition=1)
    both = frozenset({"g-frontdesk", "g-northwind"})
    judged = judge([(FACTS, [parked, original])])
    assert judged.held_groups(BOUNDARY, {(topic, 0): 1, (topic, 1): 1}, FACTS) == (both, both)
    assert judged.held_groups(BOUNDARY, {(topic, 0): 1}, FACTS) == (frozenset({"g-northwind"}), both)
    assert judged.held_groups(BOUNDARY, {(topic, 1): 1}, FACTS) == (frozenset(), frozenset())
    unknown = record(revision(2, account_id="field"), 1, topic=topic)
    judged = judge([(FACTS, [original, unknown])])
    assert judged.held_groups(BOUNDARY, {(topic, 0): 2, (topic, 1): 1}, FACTS) == (frozenset(), {"g-frontdesk"})


# ---- periods and cuts ----------------------------------------------------------------------------------------------


def test_records_at_or_after_the_cut_go_to_the_next_period() -> None:
    cuts = {BOUNDARY: {(TOPIC, 0): 100}}
    records = [
        record(event("before"), 99),
        record(event("at"), 100),
        record(event("new"), 101, partition=0),
        record(event("born after the cut"), 0, partition=1),
        record(event("next month", ended_at="2026-11-01T00:00:00Z"), 102),
    ]
    result = judge([(FACTS, records)], cuts=cuts)
    assert {c.event_id: (c.period, c.bill_to) for c in result.charges.values()} == {
        "before": ("2026-10", "2026-10"),
        "at": ("2026-10", "2026-11"),
        "new": ("2026-10", "2026-11"),
        "born after the cut": ("2026-10", "2026-11"),
        "next month": ("2026-11", "2026-11"),
    }


def test_late_event_skips_every_period_whose_cut_it_has_passed() -> None:
    december = datetime(2026, 12, 1, tzinfo=UTC)
    assert model.bill_to("2026-10", "UTC", {BOUNDARY, december}) == "2026-12"
    assert model.bill_to("2026-10", "UTC", {december}) == "2026-10"
    assert model.bill_to("2026-12", "UTC", {datetime(2027, 1, 1, tzinfo=UTC)}) == "2027-01"


def test_cut_counts_only_for_groups_of_whose_zone_it_is_a_boundary() -> None:
    paris_boundary = datetime(2026, 10, 31, 23, tzinfo=UTC)
    assert model.bill_to("2026-10", "Europe/Paris", {BOUNDARY}) == "2026-10"
    assert model.bill_to("2026-10", "Europe/Paris", {paris_boundary}) == "2026-11"
    assert model.month_of(paris_boundary, "Europe/Paris") == "2026-11"
    assert model.month_of(paris_boundary, "UTC") == "2026-10"


def test_copy_below_the_cut_is_the_one_that_counts_because_the_late_copy_waits() -> None:
    copies = [record(event(), 50), record(event(), 0, partition=1)]
    result = judge([(FACTS, copies)], cuts={BOUNDARY: {(TOPIC, 0): 51, (TOPIC, 1): 0}})
    assert [charge.bill_to for charge in result.charges.values()] == ["2026-10"]
    conflicting = [record(event(), 50), record(event(billable_s=1), 0, partition=1)]
    result = judge([(FACTS, conflicting)], cuts={BOUNDARY: {(TOPIC, 0): 51}})
    assert [set(result.verdicts[c.position]) for c in conflicting] == [{"rated"}, {"conflict"}]


# ---- invoices and ledger -------------------------------------------------------------------------------------------


def test_northwind_invoice_of_the_cast_rounds_lines_total_and_tax() -> None:
    charges = [
        charge_of("0.3630", account_id="east"),
        charge_of("0.1244", account_id="west"),
        charge_of("0.0820", account_id="offshore", number=1),
        charge_of("0.0260", account_id="offshore", number=2),
    ]
    invoice = make_invoice("g-northwind", "2026-10", charges, tax_rate="0.20")
    assert [line.amount_nano for line in invoice.lines] == [nano("0.36"), nano("0.11"), nano("0.12")]
    assert (invoice.exact_nano, invoice.rounding_nano) == (nano("0.5954"), nano("0.01"))
    assert (invoice.net_nano, invoice.tax_nano) == (nano("0.60"), nano("0.12"))
    assert (invoice.total_nano, invoice.due_nano, invoice.charges) == (nano("0.72"), nano("0.72"), 4)

    ledger = make_ledger(charges, closed=[invoice])
    assert ledger.receivable("g-northwind") == nano("0.72")
    assert [ledger.unbilled(account_id) for account_id in ("east", "west", "offshore")] == [0, 0, 0]
    assert (ledger.balances["rounding"], ledger.balances["tax"]) == (nano("0.0046"), nano("0.12"))
    assert sum(ledger.balances.values()) == 0


def test_prepaid_close_takes_rounding_and_tax_from_the_wallet() -> None:
    charge = charge_of("12.345678901", account_id="a", plan="payg")
    invoice = make_invoice("g", "2026-10", [charge], tax_rate="0.20")
    assert (invoice.net_nano, invoice.tax_nano, invoice.due_nano) == (nano("12.35"), nano("2.47"), 0)
    ledger = Ledger()
    ledger.close(invoice)
    assert ledger.wallet("a") == nano("-2.474321099")
    assert ledger.balances["rounding"] == nano("0.004321099")
    ledger.charge(charge)
    assert ledger.wallet("a") == nano("-14.82")


def test_postpaid_close_of_80_004() -> None:
    invoice = make_invoice("g-northwind", "2026-10", [charge_of("80.004")], tax_rate="0.20")
    ledger = Ledger()
    ledger.close(invoice)
    assert ledger.balances == {
        "unbilled:east": nano("80.004"),
        "receivable:g-northwind": nano("-96.00"),
        "rounding": nano("-0.004"),
        "tax": nano("16.00"),
    }


@pytest.mark.parametrize(
    ("opening", "wallet", "receivable"), [("100.004", "4.004", "0"), ("7.005", "0.005", "89"), ("-3", "-3", "96")]
)
def test_postpaid_close_is_paid_from_what_the_wallet_has_in_whole_cents(
    opening: str, wallet: str, receivable: str
) -> None:
    invoice = make_invoice("g-northwind", "2026-10", [charge_of("80.004")], tax_rate="0.20")
    ledger = make_ledger([charge_of("80.004")], openings=[("east", nano(opening))], closed=[invoice])
    assert (ledger.wallet("east"), ledger.receivable("g-northwind")) == (nano(wallet), nano(receivable))
    assert sum(ledger.balances.values()) == 0


@pytest.mark.parametrize(
    ("opening", "payments", "sums", "wallet"),
    [
        ("100.02", ["50.01"], ["0.028"], "150.000"),  # frontdesk
        ("10.01", [], ["0.014"], "10.000"),  # kiosk
        ("0.50", ["30.50"], ["0.994"], "30.010"),  # sales
        ("50.00", [], ["0.322"], "49.680"),  # main, before the charges of the next month
    ],
)
def test_wallets_of_the_cast(opening: str, payments: list[str], sums: list[str], wallet: str) -> None:
    charges = [charge_of(amount, account_id="a", plan="payg", number=i) for i, amount in enumerate(sums)]
    ledger = make_ledger(
        charges,
        openings=[("a", nano(opening))],
        payments=[("a", nano(payment)) for payment in payments],
        closed=[make_invoice("g", "2026-10", charges)],
    )
    assert ledger.wallet("a") == nano(wallet)


def test_support_of_the_cast_rounds_each_product_line_and_the_next_month_stays_open() -> None:
    inbound = charge_of("0.565958333", account_id="support", plan="payg", product="voice.inbound")
    toll_free = charge_of("0.3498", account_id="support", plan="payg", product="voice.toll_free")
    next_month = charge_of("1.360425001", account_id="support", plan="payg", bill_to="2026-11", period="2026-11")
    charges = [inbound, toll_free, next_month]
    invoices = make_invoices(charges, FACTS | {"billing_groups": [{"group_id": "g-northwind"}]})
    october = invoices["g-northwind", "2026-10"]
    assert [line.amount_nano for line in october.lines] == [nano("0.57"), nano("0.35")]
    assert (october.rounding_nano, october.total_nano) == (0, nano("0.92"))
    assert october.exact_nano - october.total_nano == nano("-0.004241667")
    ledger = make_ledger(charges, openings=[("support", nano("25.00"))], closed=[october])
    assert ledger.wallet("support") == nano("22.719574999")


def test_prior_period_charges_have_a_line_of_their_own() -> None:
    late = charge_of("0.0250", period="2026-10", bill_to="2026-11")
    charges = [
        late,
        charge_of("0.1974", period="2026-11", bill_to="2026-11"),
        charge_of("0.1230", account_id="offshore", period="2026-11", bill_to="2026-11"),
    ]
    estimate = make_invoices(charges, FACTS)["g-northwind", "2026-11"]
    assert {(line.account_id, line.period) for line in estimate.lines} == {
        ("east", "2026-10"),
        ("east", "2026-11"),
        ("offshore", "2026-11"),
    }
    assert estimate.exact_nano == nano("0.3454")


def test_half_is_rounded_to_the_even_cent() -> None:
    for amount, rounded in (("0.005", "0"), ("0.015", "0.02"), ("0.025", "0.02"), ("0.025000001", "0.03")):
        assert make_invoice("g", "2026-10", [charge_of(amount)]).net_nano == nano(rounded)


def test_xor_of_evidence_is_free_of_order() -> None:
    charges = [charge_of("0.1", number=number) for number in range(5)]
    xors = {make_invoice("g", "2026-10", some).xor for some in (charges, charges[::-1])}
    assert len(xors) == 1
    assert -(2**63) <= xors.pop() < 2**63


def test_prepaid_and_postpaid_on_one_invoice_are_outside_the_model() -> None:
    with pytest.raises(model.OutsideTheModel):
        make_invoice("g", "2026-10", [charge_of("1"), charge_of("2", plan="payg")])


def test_transaction_that_does_not_sum_to_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="does not sum to zero"):
        Ledger().post({"wallet:a": 1})


# ---- suspension ----------------------------------------------------------------------------------------------------


def test_suspension_examples_41_to_43() -> None:
    def suspended(funds: str, requested: str, minutes: int) -> bool:
        return model.must_be_suspended(nano(funds), (nano(requested), at(10)), at(10, minutes))

    assert not suspended("-5", "130", 2)
    assert suspended("-5", "130", 15)
    assert suspended("-200", "130", 1)
    assert not model.must_be_suspended(1, None, at(10), is_suspended=True)
    assert model.must_be_suspended(0, None, at(10))
    assert model.must_be_suspended(nano("-5"), (nano("130"), at(10)), at(10, 1), is_suspended=True)


# ---- auto-recharge -------------------------------------------------------------------------------------------------


def wish(threshold: str = "100", recharge: str = "50", mode: str = "up_to_sum") -> dict[str, Any]:
    return {"enabled": True, "mode": mode, "threshold": threshold, "recharge": recharge}


def wallet(available: str, preferences: Mapping[str, Any] | None = None, **fields: Any) -> RechargeModel:
    """An account at midnight of its first day that has just got this available credit."""
    start: dict[str, Any] = {"now": at(0), "created_at": at(0), "preferences": preferences or wish()} | fields
    made = RechargeModel(**start)
    made.change(made.now, nano(available))
    return made


def asked(account: RechargeModel) -> list[str]:
    return [f"{attempt.amount_nano / NANO:.2f}" for attempt in account.attempts if attempt.kind == "auto"]


@pytest.mark.parametrize(
    ("available", "preferences", "requests"),
    [
        ("100.01", wish(), []),
        ("100.00", wish(), ["50.00"]),
        ("20.00", wish(), ["130.00"]),
        ("-40.00", wish(), ["190.00"]),
        ("19.996", wish(), ["130.01"]),
        ("99.999999999", wish(), ["50.01"]),
        ("5", wish("5", "2"), ["10.00"]),
        ("-20", wish("5", "2"), ["27.00"]),
        ("20", wish("100", "200", "target"), ["180.00"]),
        ("100", wish("100", "105", "target"), ["10.00"]),
        ("99.992", wish("100", "50"), ["50.01"]),  # frontdesk
        ("9.996", wish("10", "20"), ["20.01"]),  # kiosk
        ("-0.494", wish("10", "20"), ["30.50"]),  # sales
    ],
)
def test_recharge_amounts_examples_1_to_10(available: str, preferences: dict[str, Any], requests: list[str]) -> None:
    assert asked(wallet(available, preferences)) == requests


def settle_all(account: RechargeModel, moment: datetime, most: int = 20) -> None:
    for _ in range(most):
        if (attempt := account.in_flight) is None:
            return
        account.settle(moment, attempt)


def test_example_11_fixed_repeats_until_above_the_threshold() -> None:
    account = wallet("-40", wish("10", "50", "fixed"))
    settle_all(account, at(0, 1))
    assert asked(account) == ["50.00"] * 2  # -40 -> 10 (reaches 10) -> 60
    account = wallet("-40", wish("100", "50", "fixed"))
    settle_all(account, at(0, 1))
    assert asked(account) == ["50.00"] * 3
    assert account.available_nano == nano("110")


def test_examples_12_and_13_hold_triggers_and_its_release_cancels_nothing() -> None:
    account = wallet("120")
    account.change(at(1), nano("-30"))
    assert asked(account) == ["60.00"]
    account.change(at(1, 1), nano("30"))
    settle_all(account, at(1, 2))
    assert account.available_nano == nano("180")
    assert asked(account) == ["60.00"]


@pytest.mark.parametrize(("usage", "after", "requests"), [("10", "140", 1), ("60", "90", 2)])
def test_examples_15_and_16_usage_while_a_recharge_is_in_flight(usage: str, after: str, requests: int) -> None:
    account = wallet("20")
    account.change(at(1), -nano(usage))
    assert asked(account) == ["130.00"]
    assert account.in_flight is not None
    account.settle(at(1, 1), account.in_flight)
    assert account.available_nano == nano(after)
    assert asked(account)[1:] == ["60.00"][: requests - 1]


def test_example_17_is_cut_to_the_limit_of_the_day() -> None:
    account = wallet("20", level_2=False)
    settle_all(account, at(0, 1))
    assert asked(account) == ["100.00"]
    assert account.available_nano == nano("120")


def test_example_18_manual_payment_counts_and_the_next_day_opens_by_itself() -> None:
    account = wallet("200", level_2=False)
    account.pay_by_hand(at(1), nano("60")).state = "settled"
    account.change(at(2), nano("-180"))
    settle_all(account, at(2, 1))
    assert asked(account) == ["40.00"]
    assert account.available_nano == nano("60")
    assert account.notices[-1][1:] == ("refused", "top_up_limit")
    account.advance(at(0, day=2))
    assert asked(account) == ["40.00", "90.00"]
    assert account.attempts[-1].requested_at == at(0, day=2)


@pytest.mark.parametrize(
    ("paid", "available", "preferences", "requests"),
    [
        ("90.01", "20", wish(), []),  # 19
        ("90.00", "20", wish(), ["10.00"]),  # 20
        ("92.00", "4", wish("5", "2"), []),  # 21
    ],
)
def test_examples_19_to_21_left_of_the_day_against_the_minimum(
    paid: str, available: str, preferences: dict[str, Any], requests: list[str]
) -> None:
    account = wallet("500", preferences, level_2=False)
    account.pay_by_hand(at(1), nano(paid)).state = "settled"
    account.change(at(2), nano(available) - nano("500"))
    assert asked(account) == requests
    assert [notice[1:] for notice in account.notices] == ([] if requests else [("refused", "top_up_limit")])


def test_examples_23_to_25_limit_of_a_day_by_utc_date_of_the_request() -> None:
    account = wallet("500", created_at=at(23, 59, 30), level_2=False)
    manual = account.pay_by_hand(at(23, 59, 45), nano("100"))
    assert account.left_today() == 0
    manual.state = "declined"
    assert account.left_today() == nano("100")
    manual.state = "unknown"
    assert account.left_today() == 0
    account.now = at(0, day=2)
    assert account.left_today() == nano("150")
    account.settle(at(0, 0, 5, day=2), manual)
    assert account.left_today() == nano("150")
    assert model.day_limit(at(0), date(2026, 10, 1)) == nano("100")


def hourly(*, declined_at_five: bool = False, last_settles: bool = True) -> RechargeModel:
    """Ten recharges asked for at 00:00, 01:00 … 09:00 of the first day."""
    account = wallet("100")
    for hour in range(10):
        if hour:
            account.change(at(hour), nano("100") - account.available_nano)
        attempt = account.in_flight
        assert attempt is not None
        assert attempt.requested_at == at(hour)
        if hour == 5 and declined_at_five:
            account.decline(at(hour), attempt)  # the retry after one hour is the one of 06:00
        elif hour < 9 or last_settles:
            account.settle(at(hour, 1), attempt)
    return account


def test_example_26_eleventh_is_capped_once_and_made_when_the_window_opens() -> None:
    account = hourly()
    account.change(at(10), nano("-60"))
    assert account.notices == [(at(10), "capped", None)]
    assert account.look_again == at(0, day=2)
    account.change(at(11), nano("-5"))
    assert len(account.notices) == 1
    account.advance(at(23, 59, 59, day=1, microsecond=999_999))
    assert len(account.attempts) == 10
    account.advance(at(0, day=2))
    assert account.attempts[-1].requested_at == at(0, day=2)
    assert len(account.attempts) == 11


def test_example_27_paid_by_hand_in_between_nothing_is_asked_for() -> None:
    account = hourly()
    account.change(at(10), nano("-60"))
    account.settle(at(12), account.pay_by_hand(at(12), nano("60")))
    account.advance(at(12, day=2))
    assert len(asked(account)) == 10


def test_example_28_declined_one_does_not_count() -> None:
    account = hourly(declined_at_five=True)
    account.change(at(10), nano("100") - account.available_nano)
    assert account.attempts[-1].requested_at == at(10)
    settle_all(account, at(10, 1))
    account.change(at(10, 30), nano("-60"))
    assert account.decide().outcome == "capped"
    assert account.look_again == at(0, day=2)


def test_example_29_unknown_one_is_in_flight_then_capped() -> None:
    account = hourly(last_settles=False)
    account.change(at(10), nano("-60"))
    ninth = account.in_flight
    assert ninth is not None
    assert ninth.state == "unknown"
    assert account.decide().outcome == "nothing"
    account.settle(at(10, 20), ninth)
    assert account.decide() == model.Decision("capped", until=at(0, day=2))


def test_example_30_window_is_open_at_its_last_microsecond_and_not_before() -> None:
    account = hourly()
    account.available_nano = nano("90")
    account.now = at(23, 59, 59, microsecond=999_999)
    assert account.decide().outcome == "capped"
    account.now = at(0, day=2)
    assert account.decide().outcome == "request"


def test_example_31_declines_back_off_1_h_then_2_h_then_pause() -> None:
    account = wallet("20", now=at(10))
    for hour in (10, 11, 13):
        account.advance(at(hour))
        assert account.in_flight is not None
        assert account.in_flight.requested_at == at(hour)
        account.decline(at(hour), account.in_flight)
    account.advance(at(23, day=9))
    assert len(account.attempts) == 3
    assert account.paused
    assert [kind for _, kind, _ in account.notices] == ["paused", "refused"]


def test_example_32_new_method_is_tried_at_once() -> None:
    account = wallet("20", now=at(10))
    account.decline(at(10), account.attempts[0])
    account.save_method(at(10, 20))
    assert account.attempts[-1].requested_at == at(10, 20)
    assert account.streak == 0


def test_examples_33_35_and_36_late_doubled_and_contradicting_results() -> None:
    account = wallet("20", now=at(10))
    attempt = account.attempts[0]
    account.advance(at(10, 15))
    assert attempt.state == "unknown"
    account.settle(at(10, 40), attempt)
    account.settle(at(10, 41), attempt)
    assert account.available_nano == nano("150")
    account = wallet("20", now=at(10))
    account.decline(at(10, 1), account.attempts[0])
    account.settle(at(10, 2), account.attempts[0])
    assert account.available_nano == nano("150")
    assert [kind for _, kind, _ in account.notices] == ["contradiction"]
    assert account.streak == 0


def test_example_34_abandoned_after_24_h_then_both_are_credited() -> None:
    account = wallet("20", now=at(10))
    account.advance(at(10, day=2))
    first, second = account.attempts
    assert (first.state, second.requested_at) == ("abandoned", at(10, day=2))
    account.settle(at(10, 1, day=2), second)
    account.settle(at(11, day=2), first)
    assert account.available_nano == nano("280")


def test_error_of_the_processor_counts_for_nothing_and_is_tried_again_after_15_minutes() -> None:
    account = wallet("20", now=at(10))
    account.fail(at(10), account.attempts[0])
    account.advance(at(10, 14, 59))
    assert len(account.attempts) == 1
    account.advance(at(10, 15))
    assert [attempt.state for attempt in account.attempts] == ["cancelled", "requested"]
    assert account.streak == 0


def test_burst_of_the_cast_makes_ten_of_ten_and_caps_the_eleventh() -> None:
    account = wallet("95.00", wish("200", "10", "fixed"))
    settle_all(account, at(0, 1))
    assert asked(account) == ["10.00"] * 10
    assert account.available_nano == nano("195")
    assert [kind for _, kind, _ in account.notices] == ["capped"]


def test_night_of_the_cast_is_cut_to_the_limit_of_its_first_day() -> None:
    account = wallet("9.848", wish("10", "150"), level_2=False)
    assert asked(account) == ["100.00"]
    settle_all(account, at(0, 1))
    assert account.available_nano == nano("109.848")


@pytest.mark.parametrize(
    "fields", [{"plan": "trial"}, {"plan": "invoiced"}, {"stopped": True}, {"shared_credit": True}]
)
def test_accounts_that_are_never_recharged(fields: dict[str, Any]) -> None:
    account = wallet("-10", **fields)
    assert account.decide() == model.Decision("nothing")
    assert account.notices == []


# ---- recharge invariants -------------------------------------------------------------------------------------------


NOON = at(12)


def resting(available: str = "500", **fields: Any) -> RestingAccount:
    start: dict[str, Any] = {"account_id": "a", "created_at": at(0), "preferences": wish(), "level_2": True} | fields
    return RestingAccount(available_nano=nano(available), **start)


def settled(name: str, amount: str, moment: datetime, state: str = "settled") -> Attempt:
    return Attempt(name, "a", nano(amount), moment, state, ended_at=None if state == "unknown" else moment)


def problems(attempts: list[Attempt], account: RestingAccount | None = None, now: datetime = NOON) -> list[str]:
    credited = [(a.attempt_id, a.amount_nano) for a in attempts if a.state == "settled"]
    return check_recharge_invariants(attempts, [account or resting()], credited, now)


def test_invariants_hold_for_ten_in_a_day_and_not_for_eleven() -> None:
    ten = [settled(str(hour), "50", at(hour)) for hour in range(10)]
    assert problems(ten) == []
    assert problems([*ten, settled("next day", "50", at(0, day=2))], now=at(1, day=2)) == []
    assert "11 counted" in " ".join(problems([*ten, settled("10", "50", at(10))]))
    assert problems([*ten, settled("10", "50", at(10), "declined")]) == []


def test_invariants_find_two_in_flight_at_once() -> None:
    first = settled("1", "50", at(1), "unknown")
    assert problems([first]) == []
    assert problems([first, settled("2", "50", at(2), "unknown")])
    overlapping = replace(settled("1", "50", at(1)), ended_at=at(3))
    assert problems([overlapping, settled("2", "50", at(2))])
    assert problems([overlapping, settled("2", "50", at(3))]) == []


def test_invariants_find_a_broken_day_limit_and_level_2_lifts_it() -> None:
    attempts = [settled("1", "60", at(1)), settled("2", "60", at(2))]
    assert "limit" in " ".join(problems(attempts, resting(level_2=False)))
    assert problems(attempts, resting(level_2=True)) == []
    assert problems(attempts, resting(level_2=True, level_2_since=at(1, 30))) == []
    assert problems(attempts, resting(level_2=True, level_2_since=at(3)))
    assert problems([replace(attempts[0], kind="manual"), attempts[1]], resting(level_2=False))
    assert problems([attempts[0], replace(attempts[1], state="declined")], resting(level_2=False)) == []


def test_invariants_find_amounts_that_cannot_be_paid() -> None:
    assert "minimum" in " ".join(problems([settled("1", "9.99", at(1))]))
    assert "whole minor units" in " ".join(problems([settled("1", "10.001", at(1))]))


def test_invariants_find_money_that_moved_twice_never_or_from_nowhere() -> None:
    attempt = settled("1", "50", at(1))
    for credited in ([], [("1", nano("50"))] * 2, [("1", nano("49"))], [("1", nano("50")), ("2", nano("50"))]):
        assert check_recharge_invariants([attempt], [resting()], credited, at(12)), credited
    declined = settled("1", "50", at(1), "declined")
    assert check_recharge_invariants([declined], [resting()], [("1", nano("50"))], at(12))
    assert problems([attempt, attempt])


def test_invariants_find_a_forgotten_trigger_and_accept_every_reason_to_wait() -> None:
    assert "forgotten" in " ".join(problems([], resting("100")))
    excused = [
        resting("100.01"),
        resting("100", paused=True),
        resting("100", method=False),
        resting("100", stopped=True),
        resting("100", plan="invoiced"),
        resting("100", preferences=None),
        resting("100", preferences=wish() | {"enabled": False}),
        resting("100", retry_at=at(13)),
    ]
    for account in excused:
        assert problems([], account) == [], account
    assert problems([], resting("100", retry_at=at(11)))
    assert problems([settled("1", "50", at(1), "unknown")], resting("100")) == []
    assert problems([settled(str(hour), "50", at(hour)) for hour in range(10)], resting("100")) == []
    assert problems([settled("1", "95", at(1))], resting("100", level_2=False)) == []


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(("use", "settle", "decline", "fail", "method", "wait")), st.integers(1, 400)),
        max_size=60,
    ),
    st.booleans(),
    st.sampled_from(("up_to_sum", "target", "fixed")),
)
def test_the_recharge_model_keeps_its_own_invariants(steps: list[tuple[str, int]], level_2: bool, mode: str) -> None:
    account = wallet("150", wish("100", "120", mode), level_2=level_2, account_id="a")
    credited: list[tuple[str, int]] = []
    for action, number in steps:
        moment = account.now + timedelta(minutes=number)
        flying = account.in_flight
        if action == "use":
            account.change(moment, -number * NANO // 3)
        elif action == "method":
            account.save_method(moment)
        elif action == "wait" or flying is None:
            account.advance(moment)
        elif action == "settle":
            account.settle(moment, flying)
            credited.append((flying.attempt_id, flying.amount_nano))
        elif action == "decline":
            account.decline(moment, flying)
        else:
            account.fail(moment, flying)
    at_rest = resting(
        "0",
        preferences=account.preferences,
        level_2=level_2,
        paused=account.paused,
        retry_at=account.retry_at,
    )
    at_rest = replace(at_rest, available_nano=account.available_nano)
    assert check_recharge_invariants(account.attempts, [at_rest], credited, account.now) == []


# ---- the factory ---------------------------------------------------------------------------------------------------


def factory(seed: int = 1, now: datetime = NOW) -> UsageFactory:
    return UsageFactory(seed, FACTS["accounts"], FACTS["publishers"], now, euro=True, refused_prefix="refuse-")


def facts_from(opened: datetime) -> dict[str, Any]:
    """The facts with every account open, and every price valid, since then."""
    moved = json.loads(json.dumps(FACTS, default=str).replace(str(OPENED), opened.isoformat()))
    assert isinstance(moved, dict)
    return moved


def refuses(some_leg: model.Use) -> bool:
    return some_leg.event_id.startswith("refuse-")


def test_same_seed_makes_the_same_inputs() -> None:
    assert factory(7).mix(300) == factory(7).mix(300)
    assert factory(7).mix(300) != factory(8).mix(300)


@pytest.mark.parametrize("kind", factory().bad_kinds)
def test_each_bad_kind_is_expected_as_the_model_judges_it(kind: str) -> None:
    made = factory()
    first, bad = made.valid(), made.bad(kind)
    inputs = [first, bad] if kind != "conflict" else made.inputs
    records = as_records(inputs, partitions=1, timestamp_ms=int(NOW.timestamp() * 1000))
    result = judge([(FACTS, records)], store_refuses=refuses)
    for item, made_record in zip(inputs, records, strict=True):
        assert result.verdicts[made_record.position] == item.expectation.allowed, item
    assert bad.expectation.allowed <= model.REASONS


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 60 * 86_400))
def test_a_whole_mix_is_expected_as_the_model_judges_it(seed: int, seconds: int) -> None:
    now = NOW + timedelta(seconds=seconds)
    facts = facts_from(now - timedelta(days=60))
    made = UsageFactory(seed, facts["accounts"], facts["publishers"], now, euro=True, refused_prefix="refuse-")
    made.mix(250, bad_share=0.3)
    records = as_records(made.inputs, partitions=3, timestamp_ms=int(now.timestamp() * 1000))
    result = judge([(facts, records)], store_refuses=refuses)
    for item, made_record in zip(made.inputs, records, strict=True):
        assert result.verdicts[made_record.position] == item.expectation.allowed, item
    assert not result.contested
    assert sum(result.totals.values()) == len(records)
    rated = result.totals["rated"] + result.totals["rated_ungrouped"]
    assert rated == len(result.charges)
    for charges in (dict(straight(result)), dict(step_by_step(result))):
        counted, told = through_counters(charges.values(), result.schedules)
        assert result.resolve(told) == (counted, [])


def through_counters(
    charges: Iterable[Charge], schedules: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, Charge], list[dict[str, Any]]]:
    """The charges with what tiers make of them in this order, the earlier invoice first, and how they stand on the wire."""
    stood: Counter[tuple[Any, ...]] = Counter()
    counted, told = {}, []
    for charge in sorted(charges, key=lambda each: each.bill_to or ""):
        each, tier = charge, {}
        if charge.schedule is not None:
            key = model.counter_of(charge)
            before, after = stood[key], stood[key] + charge.quantity
            costs = [model.tiers_total(schedules[charge.schedule], quantity) for quantity in (before, after)]
            each, stood[key] = replace(charge, amount_nano=costs[1] - costs[0]), after
            tier = {"tier": {"schedule": charge.schedule, "before": before, "after": after}}
        counted[each.charge_id] = each
        told.append(published(each) | tier)
    return counted, told


def test_charges_of_a_counter_cost_their_steps_from_zero_and_each_invoice_its_part() -> None:
    bands = [{"up_to": 1_000, "price": "0.010", "fee": "0"}, {"up_to": None, "price": "0.008", "fee": "0"}]
    schedules = {"list/1/s": {"id": "s", "form": "volume", "per": 1, "bands": bands}}
    uses = [charge_of("0", number=n, quantity=q, schedule="list/1/s") for n, q in enumerate((900, 200, 300))]
    taken_back = replace(uses[1], charge_id=model.charge_id_of(bytes(16)), quantity=-200)
    late = replace(uses[2], bill_to="2026-11")
    for charges in (uses, uses[::-1], [*uses, taken_back], [uses[0], uses[1], late]):
        counted, told = through_counters(charges, schedules)
        assert model.check_counters(zip(counted.values(), told, strict=True), schedules) == []
    counted, told = through_counters(uses, schedules)
    assert [each.amount_nano for each in counted.values()] == [nano("9"), -nano("0.2"), nano("2.4")]
    for changes in ({"amount": "0"}, {"tier": {"before": 0, "after": 200}}, {"tier": {"before": 900, "after": 1_101}}):
        wrong = [told[0], told[1] | changes, told[2]]
        assert model.check_counters(zip(uses, wrong, strict=True), schedules), changes
    assert model.check_counters(zip([replace(uses[0], bill_to="2026-11"), *uses[1:]], told, strict=True), schedules)


def straight(result: model.Judgement) -> Iterator[tuple[str, Charge]]:
    """As if the highest revision of each fact had come first."""
    yield from result.charges.items()
    for fact in result.facts.values():
        yield from ((charge.charge_id, charge) for charge in fact.charges[fact.highest][:1])


def step_by_step(result: model.Judgement) -> Iterator[tuple[str, Charge]]:
    """As if each revision had come by itself, in order: every charge but the last is taken back."""
    yield from straight(result)
    for fact in result.facts.values():
        for revision in fact.charges.keys() - {fact.highest}:
            for charge in fact.charges[revision][:1]:
                yield charge.charge_id, charge
                reversal = fact.reversals(charge)[-1]
                yield reversal.charge_id, reversal


def revised(*values: bytes) -> model.Judgement:
    arrived = datetime(2026, 10, 31, 23, 55, tzinfo=UTC)
    return judge([(FACTS, [record(value, offset, arrived=arrived) for offset, value in enumerate(values)])])


def voided(event_id: str = "1", revision: int = 1) -> bytes:
    return json.dumps(
        {
            "specversion": "1.0", "id": event_id, "source": "pbx/1", "type": model.VOID, "revision": revision,
            "data": {"account_id": "frontdesk", "reason": "never took place"},
        }
    ).encode()  # fmt: skip


def amended(revision: int, **data: Any) -> bytes:
    return json.dumps(json.loads(event(**data)) | {"revision": revision}).encode()


def test_the_highest_revision_holds_whatever_the_order() -> None:
    for values in ((event(), amended(1, billable_s=10)), (amended(1, billable_s=10), event())):
        result = revised(*values)
        (fact,) = result.facts.values()
        assert (fact.highest, {r: len(c) for r, c in fact.charges.items()}) == (1, {0: 1, 1: 1})
        original, amendment = fact.charges[0][0], fact.charges[1][0]
        (reversal,) = fact.reversals(original)
        assert (original.amount_nano, reversal.amount_nano, amendment.amount_nano) == (
            28_000_000,
            -28_000_000,
            14_000_000,
        )
        for right in ([amendment], [original, reversal, amendment]):
            assert result.resolve(map(published, right)) == ({each.charge_id: each for each in right}, [])
        for wrong in (
            [], [original], [original, reversal], [original, amendment], [reversal, amendment],
            [original, reversal, replace(amendment, amount_nano=28_000_000)],
            [original, replace(reversal, amount_nano=-27_000_000), amendment],
            [original, replace(reversal, bill_to="2026-11"), amendment],
            [original, reversal, amendment, replace(original, charge_id=model.charge_id_of(bytes(16)))],
        ):  # fmt: skip
            assert result.resolve(map(published, wrong))[1], wrong


def test_what_a_void_takes_back_costs_nothing_and_what_it_absorbs_is_voided() -> None:
    result = revised(event(), voided(), event(), voided())
    first, void, copy, again = (result.verdicts[TOPIC, 0, offset] for offset in range(4))
    assert first == copy == {"rated", "voided", "duplicate"}
    assert void == again == {"voided", "duplicate"}
    places = [(TOPIC, 0, offset) for offset in range(4)]
    for right in (("rated", "voided", "duplicate", "duplicate"), ("duplicate", "duplicate", "voided", "voided")):
        assert result.check_classes(dict(zip(places, right, strict=True))) == []
    for wrong in (("rated", "voided", "voided", "duplicate"), ("rated", "duplicate", "duplicate", "duplicate")):
        assert result.check_classes(dict(zip(places, wrong, strict=True)))
    assert result.resolve([]) == ({}, [])
    (fact,) = result.facts.values()
    assert result.resolve([published(fact.charges[0][0])])[1]


def test_a_mix_holds_every_kind_both_sides_of_the_boundary_and_every_class() -> None:
    made = factory()
    inputs = made.mix(1500, bad_share=0.2)
    kinds = Counter(item.expectation.kind for item in inputs)
    assert set(made.bad_kinds) <= kinds.keys()
    assert {
        "valid",
        "repeat_bytes",
        "repeat_order",
        "repeat_trace",
        "repeat_key",
        "revision",
        "repeat_revision",
    } <= kinds.keys()
    records = as_records(inputs, partitions=3, timestamp_ms=int(NOW.timestamp() * 1000))
    result = judge([(FACTS, records)], store_refuses=refuses)
    assert {charge.period for charge in result.charges.values()} == {"2026-10", "2026-11", None}
    assert {charge.matched for charge in result.charges.values()} >= {"1", "44", "447", "91", "1877"}
    assert set().union(*result.verdicts.values()) == model.REASONS | {
        "rated",
        "rated_ungrouped",
        "duplicate",
        "not_billable",
        "voided",
    }
    ledger = make_ledger(result.charges.values(), closed=make_invoices(result.charges.values(), FACTS).values())
    assert sum(ledger.balances.values()) == 0


def test_cut_through_a_mix_bills_every_charge_once() -> None:
    inputs = factory(5).mix(600)
    records = as_records(inputs, partitions=2, timestamp_ms=int(NOW.timestamp() * 1000))
    lanes = {(item.topic, item.partition) for item in records}
    cut = {lane: max(item.offset for item in records if (item.topic, item.partition) == lane) // 2 for lane in lanes}
    result = judge([(FACTS, records)], cuts={BOUNDARY: cut}, store_refuses=refuses)
    invoices = make_invoices(result.charges.values(), FACTS)
    grouped = [charge for charge in result.charges.values() if charge.group_id]
    assert sum(invoice.charges for invoice in invoices.values()) == len(grouped)
    assert sum(invoice.exact_nano for invoice in invoices.values()) == sum(charge.amount_nano for charge in grouped)
    late = [charge for charge in grouped if charge.bill_to != charge.period]
    assert late
    assert {(charge.period, charge.bill_to) for charge in late} == {("2026-10", "2026-11")}


@pytest.mark.parametrize(
    ("ended_as", "problems"),
    [(2, []), (4, ["account a: second was asked for while first flew"])],
)
def test_what_came_first_is_what_was_told_first_whenever_its_transaction_began(
    ended_as: int, problems: list[str]
) -> None:
    """The second recharge is dated before the end of the first one, whose wallet it waited for; or it did not wait."""
    first = model.Attempt("first", "a", nano("10"), NOW, "settled", ended_at=NOW + timedelta(seconds=2))
    second = model.Attempt(
        "second", "a", nano("10"), NOW + timedelta(seconds=1), "settled", ended_at=NOW + timedelta(seconds=3)
    )
    told = [
        (1, "first", "requested"),
        (ended_as, "first", "settled"),
        (3, "second", "requested"),
        (5, "second", "settled"),
    ]
    events = [{"version": version, "attempt_id": name, "kind": f"recharge_{kind}"} for version, name, kind in told]
    account = RestingAccount("a", NOW, nano("100"), None)
    found = model.check_recharge_invariants(
        in_order([first, second], events),
        [account],
        [("first", nano("10")), ("second", nano("10"))],
        NOW + timedelta(hours=1),
    )
    assert found == problems
