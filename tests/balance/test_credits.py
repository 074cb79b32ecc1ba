"""Promotional credit: the order of spending, what a reversal gives back, and that no split of the charges changes it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.balance.credits import Credit, Part, Use, digest_of_code, fund, needs_second_person, new_code
from services.kernel.money import NANO

MAY = datetime(2026, 5, 1, tzinfo=UTC)
DAY = timedelta(days=1)
DESK = Credit(UUID(int=1), "desk", None, "USD", 100, 0, MAY, None, None, MAY)
SHARED = replace(DESK, credit_id=UUID(int=2), account_id=None, group_id="g")
CALL = Use("c", "desk", "g", "2026-05", False, MAY + DAY, 30, None)


def paid(uses: list[Use], credits: list[Credit], before: dict[str, list[Part]] | None = None) -> list[tuple[int, int]]:
    """(credit, nanos) of each part; the credits given are not changed."""
    return [(part.credit_id.int, part.nano) for part in fund(uses, [replace(each) for each in credits], before).parts]


def test_restricted_comes_before_shared_then_the_earliest_expiry_then_creation_then_id() -> None:
    soon = replace(DESK, credit_id=UUID(int=9), expires_at=MAY + 9 * DAY, created_at=MAY + DAY)
    later = replace(DESK, credit_id=UUID(int=8), expires_at=MAY + 10 * DAY)
    older = replace(DESK, credit_id=UUID(int=7), created_at=MAY - DAY)
    twin = replace(DESK, credit_id=UUID(int=6))
    shared_soonest = replace(SHARED, expires_at=MAY + 2 * DAY)
    chosen = [shared_soonest, DESK, twin, older, later, soon]
    assert paid([CALL._replace(nano=1_000)], chosen) == [(9, 100), (8, 100), (7, 100), (1, 100), (6, 100), (2, 100)]


@pytest.mark.parametrize(
    ("credit", "pays"),
    [
        (DESK, True),
        (SHARED, True),
        (replace(DESK, account_id="sales"), False),
        (replace(SHARED, group_id="other"), False),
        (replace(DESK, valid_from=CALL.at), True),
        (replace(DESK, valid_from=CALL.at + timedelta(microseconds=1)), False),
        (replace(DESK, expires_at=CALL.at + timedelta(microseconds=1)), True),
        (replace(DESK, expires_at=CALL.at), False),
        (replace(DESK, remaining_nano=0), False),
    ],
)
def test_a_credit_pays_for_its_account_or_group_at_an_event_time_in_its_validity(credit: Credit, pays: bool) -> None:
    assert bool(paid([CALL], [credit])) == pays


def test_a_trial_without_a_group_has_nothing_shared() -> None:
    assert paid([CALL._replace(group_id=None)], [SHARED]) == []


def test_a_reversal_gives_back_the_wallets_part_first_and_then_the_credits_from_the_last_one() -> None:
    credits = [replace(DESK, remaining_nano=20), replace(SHARED, remaining_nano=5)]
    first = fund([CALL], credits)
    assert [(part.credit_id.int, part.nano) for part in first.parts] == [(1, 20), (2, 5)]
    back = CALL._replace(charge_id="r", nano=-30, reverses="c")
    second = fund([back], credits, {"c": first.parts})
    assert [(part.credit_id.int, part.nano) for part in second.parts] == [(2, -5), (1, -20)]
    assert second.accounts["desk"].wallet_nano == -25  # of 30: the wallet keeps the 5 that it paid itself
    assert [credit.remaining_nano for credit in credits] == [20, 5]
    small = fund([back._replace(nano=-10)], credits, {"c": first.parts})
    assert [(part.credit_id.int, part.nano) for part in small.parts] == [(2, -5)]  # 5 of the 10 are the wallet's own
    tiny = fund([back._replace(nano=-4)], credits, {"c": first.parts})
    assert tiny.parts == []


def test_what_goes_back_to_an_expired_credit_is_breakage() -> None:
    expired = replace(DESK, remaining_nano=0, expired_at=MAY + 2 * DAY)
    funding = fund(
        [CALL._replace(charge_id="r", nano=-30, reverses="c")], [expired], {"c": [Part("c", 0, DESK.credit_id, 30, 30)]}
    )
    assert (expired.remaining_nano, expired.breakage_nano) == (0, 30)
    assert funding.accounts["desk"].wallet_nano == -30


def test_what_stands_in_the_place_of_a_charge_is_paid_by_what_its_reversal_gave_back_to_an_expired_credit() -> None:
    expired = replace(DESK, remaining_nano=0, breakage_nano=7, expired_at=MAY + 2 * DAY)
    uses = [
        CALL._replace(charge_id="r", nano=-30, reverses="c"),
        CALL._replace(charge_id="n", nano=24, replaces="c"),
    ]
    before = {"c": [Part("c", 0, DESK.credit_id, 20, 30)]}  # 10 were the wallet's own
    at_once = fund(uses, [credit := replace(expired)], before)
    assert [part.nano for part in at_once.parts] == [-20, 20]
    assert (credit.remaining_nano, credit.breakage_nano, at_once.accounts["desk"].wallet_nano) == (0, 7, 0)
    cheaper = fund([uses[0], uses[1]._replace(nano=3)], [credit := replace(expired)], before)
    assert [part.nano for part in cheaper.parts] == [-20, 3]
    assert (credit.breakage_nano, cheaper.accounts["desk"].wallet_nano) == (24, -17)
    other = fund([uses[0], uses[1]._replace(replaces="d")], [replace(expired)], before)
    assert [part.nano for part in other.parts] == [-20]


def test_what_a_group_shared_until_it_expired_pays_for_no_charge_that_was_moved_to_another_group() -> None:
    expired = replace(SHARED, remaining_nano=0, breakage_nano=7, expired_at=MAY + 2 * DAY)
    theirs = replace(SHARED, credit_id=UUID(int=3), group_id="h", remaining_nano=5)
    reversal = CALL._replace(charge_id="r", nano=-30, reverses="c")
    moved = CALL._replace(charge_id="n", replaces="c", group_id="h")
    before = {"c": [Part("c", 0, SHARED.credit_id, 20, 30)]}
    assert paid([reversal, moved], [expired, theirs], before) == [(2, -20), (3, 5)]
    assert paid([reversal, moved._replace(group_id="g")], [expired, theirs], before) == [(2, -20), (2, 20)]


def test_a_reversal_of_what_no_credit_paid_is_the_wallets() -> None:
    assert paid([CALL._replace(charge_id="r", nano=-30, reverses="c")], [DESK]) == []
    assert paid([CALL._replace(charge_id="t", nano=-30)], [DESK]) == []


CREDITS = st.lists(
    st.builds(
        Credit,
        st.uuids(),
        st.sampled_from(["desk", "sales", None]),
        st.sampled_from(["g", "h"]),
        st.just("USD"),
        st.integers(0, 60),
        st.just(0),
        st.sampled_from([MAY, MAY + 2 * DAY]),
        st.sampled_from([None, MAY + 3 * DAY, MAY + 9 * DAY]),
        st.none(),
        st.just(MAY),
    ),
    max_size=5,
    unique_by=lambda credit: credit.credit_id,
)
USES = st.lists(
    st.tuples(
        st.sampled_from(["desk", "sales"]), st.sampled_from(["g", "h", None]), st.integers(0, 8), st.integers(0, 40),
        st.booleans(),
    ),
    max_size=12,
)  # fmt: skip


def uses_of(made: list[tuple[str, str | None, int, int, bool]]) -> list[Use]:
    """Charges, some of them taken back later."""
    uses: list[Use] = []
    for number, (account_id, group_id, day, nano, taken_back) in enumerate(made):
        use = Use(f"c{number}", account_id, group_id, None, day % 2 == 0, MAY + day * DAY, nano, None)
        uses.append(use)
        if taken_back and number % 2:
            earlier = uses[number // 2]
            if earlier.nano > 0 and not any(each.reverses == earlier.charge_id for each in uses):
                given_back = -earlier.nano if day % 3 else -(earlier.nano // 2)
                uses.append(earlier._replace(charge_id=f"r{number}", nano=given_back, reverses=earlier.charge_id))
                if day % 4:
                    uses.append(earlier._replace(charge_id=f"n{number}", nano=nano, replaces=earlier.charge_id))
    return uses


@given(credits=CREDITS, made=USES, cuts=st.sets(st.integers(0, 20)))
def test_any_split_into_batches_gives_the_same_and_nothing_is_lost(
    credits: list[Credit], made: list[tuple[str, str | None, int, int, bool]], cuts: set[int]
) -> None:
    uses = uses_of(made)
    whole = [replace(credit) for credit in credits]
    at_once = fund(uses, whole)
    parts: list[Part] = []
    split = [replace(credit) for credit in credits]
    edges = [0, *sorted(cut for cut in cuts if cut < len(uses)), len(uses)]
    for start, end in pairwise(edges):
        before: dict[str, list[Part]] = {}
        for part in parts:
            before.setdefault(part.charge_id, []).append(part)
        parts += fund(uses[start:end], split, before).parts
    assert parts == at_once.parts
    assert split == whole
    for granted, credit in zip(credits, whole, strict=True):
        spent = sum(part.nano for part in parts if part.credit_id == credit.credit_id)
        assert granted.remaining_nano == spent + credit.remaining_nano + credit.breakage_nano
        assert credit.remaining_nano >= 0
    for use in uses:
        own = [part.nano for part in parts if part.charge_id == use.charge_id]
        assert abs(sum(own)) <= abs(use.nano)
        assert all(nano * use.nano > 0 for nano in own)
    assert sum(funded.wallet_nano + funded.unbilled_nano for funded in at_once.accounts.values()) == sum(
        part.nano for part in parts
    )


def test_codes_are_long_and_never_the_same_and_read_as_people_write_them() -> None:
    codes = {new_code() for _ in range(1_000)}
    assert len(codes) == 1_000
    code = codes.pop()
    assert len(code.replace("-", "")) == 20
    assert digest_of_code(code.lower().replace("-", " ").replace("0", "o").replace("1", "l")) == digest_of_code(code)
    assert digest_of_code(code[:-1]) != digest_of_code(code)


def test_more_than_a_thousand_needs_a_second_person() -> None:
    assert [needs_second_person(nano) for nano in (1_000 * NANO, 1_000 * NANO + 1)] == [False, True]
    assert needs_second_person(10 * NANO, 101)


# ---- what calls hold -----------------------------------------------------------------------------------------------


def test_a_charge_uses_of_a_credit_what_others_do_not_hold_and_takes_what_its_own_account_does() -> None:
    held = replace(SHARED, held_nano=90, held_by={"desk": 20, "sales": 70})
    assert [(part.credit_id.int, part.nano) for part in fund([CALL], [held]).parts] == [(2, 30)]  # 10 free, 20 its own
    assert (held.remaining_nano, held.held_nano, held.held_by) == (70, 70, {"desk": 0, "sales": 70})
    assert held.displaced == {"desk": 20}
    assert fund([CALL], [held]).parts == []


@given(
    st.integers(0, 60),
    st.lists(st.integers(0, 30), min_size=3, max_size=3),
    st.lists(st.tuples(st.sampled_from(["desk", "sales", "kiosk"]), st.integers(1, 40)), max_size=8),
)
def test_whatever_is_charged_no_more_is_held_than_left_and_nothing_that_others_hold_is_taken(
    free: int, holds: list[int], charges: list[tuple[str, int]]
) -> None:
    before = dict(zip(["desk", "sales", "kiosk"], holds, strict=True))
    credit = replace(SHARED, remaining_nano=free + sum(holds), held_nano=sum(holds), held_by=dict(before), displaced={})
    for number, (account_id, nano) in enumerate(charges):
        others = {name: held for name, held in credit.held_by.items() if name != account_id}
        could = credit.remaining_nano - sum(others.values())
        use = CALL._replace(charge_id=str(number), account_id=account_id, nano=nano)
        assert sum(part.nano for part in fund([use], [credit]).parts) == min(nano, could)
        assert {name: credit.held_by[name] for name in others} == others
        assert sum(credit.held_by.values()) == credit.held_nano <= credit.remaining_nano
    assert {name: credit.held_by[name] + credit.displaced.get(name, 0) for name in before} == before
