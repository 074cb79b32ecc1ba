"""The groups room: commands in, timelines and answers out; cuts covered."""

from __future__ import annotations

from contracts.topics import CLOSING_CUTOFFS, GROUPS_COMMANDS, INVOICES_EVENTS
from services.groups.handler import answer_quarantined, carry_out_commands, cover_cutoffs, keep_owed
from services.runtime.room import Input, Room
from services.runtime.settings import Settings


def build(_: Settings | None = None) -> Room:
    """The room as the runtime runs it."""
    return Room(
        "groups",
        (
            Input("commands", (GROUPS_COMMANDS,), carry_out_commands, parked=answer_quarantined),
            Input("closing", (CLOSING_CUTOFFS,), cover_cutoffs),
            Input("invoices", (INVOICES_EVENTS,), keep_owed),
        ),
    )
