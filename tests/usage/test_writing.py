"""What is published is written by a structure; the contract is the judge of its names and their order."""

from __future__ import annotations

from contracts.usage import Charge
from services.usage.writing import Told


def test_a_charge_has_the_names_of_the_contract_in_its_order() -> None:
    seldom = {"window", "tier", "kind", "surcharge"}
    of_contract = [name for name in Charge.__annotations__ if name not in seldom | {"replaces"}]  # no event has that
    told = Told.__struct_fields__
    assert (list(told[: len(of_contract)]), set(told[len(of_contract) :])) == (of_contract, seldom)
