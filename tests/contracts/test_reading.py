"""A consumer that reads only some fields of a charge understands them, and refuses them, as the whole contract does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, DecodeError, structs
from pydantic import ValidationError

from contracts.reading import PLACE
from contracts.topics import USAGE_CHARGES
from services.balance.handler import READING as READ_BY_BALANCE
from services.balance.handler import fold
from services.invoices.accumulation import READING as READ_BY_INVOICES
from services.invoices.accumulation import fold_charges
from services.runtime.links import LinkLost
from tests.invoices.neighbours import charge, message, records_of

READINGS = {"balance": READ_BY_BALANCE, "invoices": READ_BY_INVOICES}
FOLDS = {"balance": fold, "invoices": fold_charges}
READS = {
    "balance": (
        "account_id", "organization_id", "currency", "product", "group_id", "bill_to", "plan", "amount", "replaces",
    ),
    "invoices": (
        "charge_id", "account_id", "plan", "group_id", "bill_to", "period", "cost_center_id", "product", "quantity", "amount",
        "currency", "unit_price", "tier",
    ),
}  # fmt: skip
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


def understood(room, encoded):
    """What is read of a record and judged to be of its contract, or None."""
    try:
        found = READINGS[room].read(encoded)
        READINGS[room].judge(encoded)
    except (DecodeError, ValidationError):
        return None
    data = {name: None if value is UNSET else value for name, value in structs.asdict(found.data).items()}
    return [getattr(found, name) for name in PLACE], data


def by_the_contract(room, encoded):
    try:
        found = USAGE_CHARGES.adapter.validate_json(encoded)
    except ValidationError:
        return None
    return [found[name] for name in PLACE], {name: found["data"].get(name) for name in READS[room]}


@pytest.mark.parametrize("room", READS)
@given(data=st.data())
def test_fields_that_are_read_are_accepted_refused_and_understood_as_by_the_whole_contract(room, data):
    changes, missing = data.draw(faults[room])
    around = {name: value for name, value in changes.items() if name in PLACE}
    charged = charge("east", "0.0140") | {name: value for name, value in changes.items() if name not in PLACE}
    charged.pop(missing, None)
    encoded = message(charged, **around)
    assert understood(room, encoded) == by_the_contract(room, encoded)


@pytest.mark.parametrize("room", READS)
@given(data=st.data())
def test_a_room_folds_no_charge_that_its_contract_refuses(room, data):
    """Among charges that are alike but for what stands in few fields, whichever comes first."""
    changes = data.draw(st.dictionaries(st.sampled_from(READS[room]), values, max_size=2))
    changes.pop("charge_id", None)  # its length is judged when it is read
    charges = [charge("east", "0.0140"), charge("east", "0.0140") | changes, charge("east", "0.0170")]
    try:
        records = records_of(READINGS[room], data.draw(st.permutations(charges)))
    except DecodeError:
        records = None
    refused = by_the_contract(room, message(charges[1])) is None
    if records is None:
        assert refused
    elif refused and (room == "balance" or charges[1]["group_id"] is not None):
        with pytest.raises(LinkLost, match="unreadable"):
            FOLDS[room](records)


@pytest.mark.parametrize("room", READS)
def test_what_is_not_read_does_not_matter(room):
    charged = charge("east", "0.0140", tier=TIER)
    strange = {name: value if name in READS[room] else None for name, value in charged.items()} | {"new": 1}
    assert understood(room, message(strange)) == understood(room, message(charged)) is not None
    assert understood(room, message(charged))[1].keys() == set(READS[room])
