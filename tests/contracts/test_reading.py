"""A consumer that reads only some fields of a charge judges them as the whole contract does."""

from __future__ import annotations

import json
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from contracts.topics import USAGE_CHARGES
from services.balance.handler import READ as BALANCE_READS
from services.balance.handler import fold
from services.invoices.accumulation import READ as INVOICES_READ
from services.invoices.accumulation import fold_charges
from services.runtime.records import Record
from tests.invoices.neighbours import charge

READS = {"balance": BALANCE_READS, "invoices": INVOICES_READ}
NARROW = {room: USAGE_CHARGES.reading(*fields) for room, fields in READS.items()}
PLACE = ("link", "seq", "epoch")
TIER = {"schedule": "list/1/legs", "form": "volume", "before": 0, "after": 60}

NEAR_MISSES = (
    "", "0", "1", "-1", "0.014", "-0.014", "1e3", "1_000", "１２", ".5", "1.", "0.0000000001", "NaN", "USD", "usd", "USDT",
    "payg", "trial", "free", "2026-10", "2026-13", "2026-10\n", "east", "east ", "ea\0st", "x" * 36, "x" * 65, "x" * 257,
)  # fmt: skip
values = st.one_of(
    st.sampled_from(NEAR_MISSES),
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.just([]),
    st.uuids().map(str),
    st.sampled_from([TIER, TIER | {"schedule": "list/1"}, TIER | {"before": -1}, TIER | {"more": 1}, {}]),
)
faults = {
    room: st.tuples(
        st.dictionaries(st.sampled_from((*fields, *PLACE)), values, max_size=2), st.none() | st.sampled_from(fields)
    )
    for room, fields in READS.items()
}


def message(data, **around):
    """An encoded record of `usage.charges`."""
    values = {"id": "1", "type": "usage.charge", "version": 1, "time": "2026-10-10T10:00:00Z"}
    values |= {"link": "usage:events/a/0", "seq": 1, "epoch": 0, "trace": None}
    return json.dumps(values | around | {"data": data}).encode()


def read(adapter, encoded, fields):
    """What is read of a record, or None if it is refused."""
    try:
        found = adapter.validate_json(encoded)
    except ValidationError:
        return None
    return [found[name] for name in PLACE], {name: found["data"].get(name) for name in fields}


@pytest.mark.parametrize("room", READS)
@given(data=st.data())
def test_fields_that_are_read_are_accepted_refused_and_understood_as_by_the_whole_contract(room, data):
    fields = READS[room]
    changes, missing = data.draw(faults[room])
    around = {name: value for name, value in changes.items() if name in PLACE}
    charged = charge("east", "0.0140") | {name: value for name, value in changes.items() if name not in PLACE}
    charged.pop(missing, None)
    encoded = message(charged, **around)
    assert read(NARROW[room], encoded, fields) == read(USAGE_CHARGES.adapter, encoded, fields)


@pytest.mark.parametrize("room", READS)
def test_what_is_not_read_does_not_matter(room):
    charged = charge("east", "0.0140", tier=TIER)
    encoded = message(charged)
    strange = {name: value if name in READS[room] else None for name, value in charged.items()} | {"new": 1}
    assert NARROW[room].validate_json(message(strange)) == NARROW[room].validate_json(encoded)
    assert set(NARROW[room].validate_json(encoded)["data"]) == set(READS[room])


def test_the_rooms_read_all_that_they_fold():
    charges = [
        charge("east", "0.0140", charge_id=str(uuid.UUID(int=1))),
        charge("east", "-0.0140", charge_id=str(uuid.UUID(int=2)), product="voice.inbound", cost_center_id="sales"),
        charge("west", "1", charge_id=str(uuid.UUID(int=3)), plan="payg"),
        charge("west", "1", charge_id=str(uuid.UUID(int=4)), plan="payg", unit_price=None, tier=TIER),
        charge("try", "2", group_id=None, bill_to=None, plan="trial"),
    ]

    def records(adapter):
        encoded = [message(each, seq=seq) for seq, each in enumerate(charges, 1)]
        return [
            Record("usage.charges", 0, at, 0, None, each, "lane", adapter.validate_json(each))
            for at, each in enumerate(encoded)
        ]

    whole, narrow = records(USAGE_CHARGES.adapter), records(NARROW["balance"])
    (accounts, links), (expected, expected_links) = fold(narrow), fold(whole)
    assert links == expected_links
    assert {name: (each.charges, each.revenue, each.posted) for name, each in accounts.items()} == {
        name: (each.charges, each.revenue, each.posted) for name, each in expected.items()
    }
    assert fold_charges(each.message["data"] for each in records(NARROW["invoices"])) == fold_charges(charges)
