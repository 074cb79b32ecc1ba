"""What a set of results means: by examples, and in any order against the formula of the design."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.balance import effects, ledger
from services.balance.effects import Said
from services.kernel.errors import InvalidInput

ATTEMPT = UUID(int=1)
NANO = 130
PARTS = ("a", "b")

results = st.one_of(
    st.builds(Said, st.sampled_from(["settled", "declined", "error", "cancelled", "never_seen"]), st.just(NANO)),
    st.builds(Said, st.just("refunded"), st.sampled_from([30, 40]), st.sampled_from(PARTS)),
    st.builds(
        Said,
        st.sampled_from(["disputed", "dispute_won", "dispute_lost"]),
        st.sampled_from([50]),
        st.sampled_from(PARTS),
    ),
)


def formula(said: set[Said]) -> int:
    """E = 0 if not settled, else settled - refunds - disputes that are open or lost."""
    if not any(each.what == "settled" for each in said):
        return 0
    gone = sum(each.nano for each in said if each.what == "refunded")
    for part in PARTS:
        of_it = {each.what for each in said if each.part == part and each.what != "refunded"}
        if "dispute_lost" in of_it or of_it == {"disputed"}:
            gone += 50
    return NANO - gone


def moved(said: set[Said]) -> dict[str, int]:
    """By ledger account, everything that a set of results posts."""
    made = effects.movements(ATTEMPT, "desk", "p", said)
    return ledger.amounts(entry for each in made.values() for entry in each.entries)


def taken(order: list[Said]) -> set[Said]:
    """What of a sequence of results is taken into the set; the rest is quarantined."""
    said: set[Said] = set()
    for each in order:
        try:
            effects.check(each, NANO, said)
        except InvalidInput:
            continue
        said.add(each)
    return said


@given(st.lists(results, max_size=10), st.randoms())
def test_the_effect_is_the_formula_of_the_set_in_any_order(order, random):
    said = taken(order)
    assert moved(said).get("wallet", 0) == formula(said)
    other = list(said)
    random.shuffle(other)
    assert taken(other) == said
    assert moved(taken(other)) == moved(said)


@given(st.lists(results, max_size=10))
def test_every_result_only_adds_transactions_and_all_of_them_have_a_name_of_their_own(order):
    said: set[Said] = set()
    before: dict[str, effects.Movement] = {}
    for each in order:
        if each not in taken([*said, each]):
            continue
        said.add(each)
        after = effects.movements(ATTEMPT, "desk", "p", said)
        assert before.items() <= after.items()
        assert len({(movement.kind, movement.ref) for movement in after.values()}) == len(after)
        before = after


@given(st.lists(results, max_size=10))
def test_what_a_processor_owes_is_what_settled_without_what_it_gave_back_or_lost(order):
    said = taken(order)
    sums = moved(said)
    assert sum(sums.values()) == 0
    assert sums.get("disputes:p", 0) >= 0
    assert sums.get("clearing:p", 0) == -(sums.get("wallet", 0) + sums.get("disputes:p", 0))


@pytest.mark.parametrize(
    ("whats", "state", "contradiction"),
    [
        (["settled"], "settled", False),
        (["declined", "settled"], "settled", True),
        (["never_seen", "settled"], "settled", True),
        (["error", "declined"], "declined", False),
        (["cancelled"], "cancelled", False),
        (["never_seen"], "cancelled", False),
        ([], None, False),
    ],
)
def test_the_state_of_a_set(whats, state, contradiction):
    said = {Said(what, NANO) for what in whats}
    assert (effects.state_of(said), effects.contradicts(said)) == (state, contradiction)


def test_a_dispute_told_as_won_and_as_lost_is_lost_and_a_contradiction():
    said = {Said("settled", NANO), Said("dispute_won", 50, "a"), Said("dispute_lost", 50, "a")}
    assert effects.contradicts(said)
    assert moved(said)["wallet"] == NANO - 50
