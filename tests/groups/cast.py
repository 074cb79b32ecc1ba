"""The registry of the demo's cast as commands: Lakeside (strict, prepaid) and Northwind (strict, one shared group)."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from itertools import count
from typing import Any

LAKESIDE = ("frontdesk", "night", "kiosk", "sales", "burst", "support", "main", "try")
NORTHWIND = ("east", "west", "offshore")
LEVEL_2 = ("frontdesk", "burst")


def cast(opened_at: datetime) -> list[list[dict[str, Any]]]:
    """Every command up to the import, in stages; account `field` is registered later.

    Commands keep their order within an organization only, so a stage is written when the one before it is answered.
    """
    opened = opened_at.strftime("%Y-%m-%dT%H:%M:%SZ")
    number = count(1)
    return [
        [{"command_id": f"cast-{next(number)}", "actor": "Erin", **command} for command in stage]
        for stage in ([_seller()], _organizations(), _rest(opened))
    ]


LAKESIDE_KEY, NORTHWIND_KEY = {"organization_id": "lakeside"}, {"organization_id": "northwind"}


def _seller() -> dict[str, Any]:
    return LAKESIDE_KEY | {
        "kind": "create_billing_entity",
        "role": "operator",
        "billing_entity_id": "tollbook",
        "name": "Tollbook Inc.",
        "address": "1 Main Street, Detroit",
        "number_prefix": "TB-",
    }


def _organizations() -> Iterator[dict[str, Any]]:
    yield LAKESIDE_KEY | {"kind": "create_organization", "name": "Lakeside Hotel"}
    yield NORTHWIND_KEY | {"kind": "create_organization", "name": "Northwind Traders"}


def _rest(opened: str) -> Iterator[dict[str, Any]]:
    yield LAKESIDE_KEY | {
        "kind": "create_publisher",
        "role": "operator",
        "publisher_id": "lakeside",
        "organization_ids": ["lakeside", "northwind"],
        "sources": ["pbx.lakeside.example"],
    }
    for account in LAKESIDE:
        plan = "trial" if account == "try" else "payg"
        yield LAKESIDE_KEY | {
            "kind": "create_account",
            "account_id": account,
            "name": account,
            "plan": plan,
            "opened_at": opened,
        }
    for account in LEVEL_2:
        yield LAKESIDE_KEY | {"kind": "grant_level_2", "role": "operator", "account_id": account}
    yield NORTHWIND_KEY | {
        "kind": "create_group",
        "group_id": "northwind-group",
        "name": "Northwind",
        "billing_information": {"company": "Northwind Traders", "emails": ["bills@northwind.example"]},
        "tax_rate": "0.20",
        "pricing_model": "wholesale",
        "primary": True,
    }
    yield NORTHWIND_KEY | {
        "kind": "approve_sharing",
        "role": "operator",
        "group_id": "northwind-group",
        "yearly_spend": "120000",
        "threshold": "100000",
        "credit_check_passed": True,
    }
    for account in NORTHWIND:
        yield NORTHWIND_KEY | {
            "kind": "create_account",
            "account_id": account,
            "name": account,
            "plan": "invoiced",
            "role": "operator",
            "credit_limit": "100",
            "opened_at": opened,
        }
