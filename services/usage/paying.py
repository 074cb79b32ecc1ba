"""Why a charge stands where it stands: who pays, on which invoice, in which cost center. One sentence each.

Pure. The charge says what was decided when it was made; the registry, why. Source: domain, sections 3 and 5.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from services.kernel.period import instant_text
from services.usage.registry import Account, Payer, center_at

Charge = Mapping[str, Any]
OWED_BY_PLAN = {
    "trial": "a trial account: debited from its wallet, on no invoice",
    "payg": "pay-as-you-go: debited from its wallet, shown on its group's invoice as paid from the balance",
    "invoiced": "invoiced: after what its wallet holds, owed on its group's invoice",
}


def who_pays(charge: Charge, account: Account | None, resource: Any | None) -> tuple[str, ...]:
    """The reasons, from the account to the cost center. ``resource`` is the timeline of the charge's outbound profile or
    number, if it has one."""
    reasons = [f"{charge['account_id']} was {OWED_BY_PLAN[charge['plan']]}"]
    if charge["group_id"] is not None:
        reasons += _group(charge, account.payer_at(charge["event_time"]) if account is not None else None)
    if account is not None and account.version != charge["assignment_version"]:
        reasons.append(
            f"it was decided by version {charge['assignment_version']} of the account's timeline; now there is"
            f" {account.version}"
        )
    return (*reasons, _cost_center(charge, resource.cost_centers if resource is not None else ()))


def _group(charge: Charge, payer: Payer | None) -> Iterable[str]:
    group_id, period, bill_to = charge["group_id"], charge["period"], charge["bill_to"]
    if payer is not None and payer.group_id == group_id:
        until = f" until {instant_text(payer.end)}" if payer.end is not None else ""
        yield f"its payer group from {instant_text(payer.start)}{until} is {group_id}"
        yield f"the event time lies in {period} in {payer.zone}, the group's zone"
    else:
        yield f"its payer group was {group_id} when the charge was made, and the event time lay in {period} there"
    if bill_to != period:
        yield f"the invoice of {period} was cut before the record was counted: it stands on that of {bill_to}"


def _cost_center(charge: Charge, centers: Iterable[Any]) -> str:
    center, profile = charge["cost_center_id"], charge["outbound_profile"]
    at: datetime = charge["event_time"]
    if center is None:
        return "no cost center: neither the event nor its number or outbound profile names one"
    if center_at(centers, at) != center:
        return f"cost center {center}: named by the event"
    return f"cost center {center}: that of {f'outbound profile {profile}' if profile else 'the number'} at event time"
