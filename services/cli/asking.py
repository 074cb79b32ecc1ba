"""A command that changes something: send it, wait, say what became of it. Refused is exit 1."""

from __future__ import annotations

import getpass
import os
import uuid
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from pydantic_core import to_json
from sqlalchemy import select

from services.cli import wire
from services.cli.commands import TO_PAYERS, TO_WALLETS, build
from services.cli.output import Format, console, show_json
from services.cli.reading import room
from services.kernel.errors import Refused
from services.kernel.ids import content_digest
from services.runtime.database import transaction
from services.runtime.tables import runtime_tables

Actor = Annotated[
    str, typer.Option(envvar="TOLLBOOK_ACTOR", help="who asks, for the log; else the user of this terminal")
]
Role = Annotated[str, typer.Option(help="as whom: owner, billing_admin, operator or finance")]
CommandId = Annotated[str | None, typer.Option(help="an id of yours: the same id is carried out once")]


def me() -> str:
    """The name of the user of this terminal."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"


async def ask(output: Format, *, actor: str = "", **fields: Any) -> None:
    """Carry out one command and print its answer; a refusal ends the program with 1."""
    fields["actor"] = actor or me()
    build(fields)  # what is wrong in itself is said at once, whether a server runs or not
    answer = await _before(fields)
    if answer is None:
        await _refuse_unknown(fields)
        fields["command_id"] = fields.get("command_id") or str(uuid.uuid4())
        try:
            async with wire.opened() as opened:
                answer = await opened.carry_out(timeout_s=wire.ANSWER_S_MAX, **fields)
        except wire.NoAnswer as silent:
            raise await _why(fields) or silent from None
    if output is Format.json:
        show_json(answer)
    else:
        console.print(str(answer), markup=False)
        for warning in answer.warnings:
            console.print(f"note: {warning}", markup=False)
    if not answer.accepted:
        raise typer.Exit(1)


async def _why(fields: dict[str, Any]) -> Refused | None:
    """Why a command has no answer, where its room keeps it apart: it waits for its account, or stands in quarantine."""
    topic, key, command = build(fields)
    name = topic.name.partition(".")[0]
    columns = runtime_tables(name).parked.c
    statement = (
        select(columns.id, columns.reason, columns.message, columns.value)
        .where(columns.state.in_(["waiting", "quarantined", "replaying"]), columns.key == key.encode())
        .order_by(columns.id.desc())
    )
    async with room(name) as engine, transaction(engine) as connection:
        parked = (await connection.execute(statement)).all()
    identifier = f'"{command.command_id}"'.encode()
    for row in parked:
        if identifier not in (row.value or b""):
            continue
        see = f"see `tollbook quarantine list --room {name} --all`"
        if row.reason in ("unknown_group", "unknown_invoice") or (
            row.reason == "waiting" and fields["kind"] in TO_PAYERS
        ):
            return Refused(
                f"command {command.command_id}: {row.message}; record {row.id}; {see}", field="invoice", code="waiting"
            )
        if row.reason in ("waiting", "unknown_account"):
            return Refused(
                f"command {command.command_id} waits for the account {key}, which {name} has not heard of: it is carried out "
                f"when the account is created; if the id is wrong, discard record {row.id}; {see}",
                field="account_id",
                code="waiting",
            )
        return Refused(
            f"command {command.command_id} stands in quarantine as record {row.id} ({row.reason}): {row.message}; {see}",
            code="quarantined",
        )
    return None


async def _refuse_unknown(fields: dict[str, Any]) -> None:
    """A command to a wallet or a payer group that nobody knows would wait, and be carried out by whoever creates it later: a
    mistyped id. `NotFound` for one that is in neither of the two rooms; a new one may not have come to balance yet."""
    from services.balance import api, receivables_api
    from services.groups import api as groups

    kind = fields["kind"]
    if kind not in TO_WALLETS | TO_PAYERS:
        return
    async with room("balance") as engine:
        if kind in TO_WALLETS:
            known: Sequence[Any] = await api.balances(engine, [fields["account_id"]])
        else:
            known = await receivables_api.group_debts(engine, fields["group_id"])
    if known:
        return
    async with room("groups") as engine:
        await (
            groups.account(engine, fields["account_id"])
            if kind in TO_WALLETS
            else groups.group(engine, fields["group_id"])
        )


async def _before(fields: dict[str, Any]) -> wire.Answer | None:
    """What a wallet or payer group answered to this id before: it is told once, so a repeat would wait for nothing.

    `Refused` when the id was used for another command, which would not be carried out under it.
    """
    command_id = fields.get("command_id")
    if command_id is None or fields["kind"] not in TO_WALLETS | TO_PAYERS:
        return None
    from services.balance import api, receivables_api

    _, key, command = build(fields)
    async with room("balance") as engine:
        ask_for = receivables_api.command_done if fields["kind"] in TO_PAYERS else api.command_done
        done = await ask_for(engine, key, command_id)
    if done is None:
        return None
    if done.content != content_digest(to_json(command.data())):
        raise Refused(
            f"{command_id} was used for another command to {key}, so this one was not sent; give it an id of its own",
            field="command_id",
            code="idempotency_conflict",
        )
    said = "was carried out before" if done.accepted else "was refused before; send it under an id of its own"
    return wire.Answer(command_id, done.accepted, said, None if done.accepted else "refused_before", "command_id")
