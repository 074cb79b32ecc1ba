"""`tollbook webhook`: receivers of an organization, what they get, and what became of it."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from services.cli.account import instant_of
from services.cli.asking import Actor, me
from services.cli.asynchronous import asynchronous
from services.cli.output import Format, Output, console, instant, plain, show_facts, show_json, show_rows, visible
from services.cli.reading import room
from services.kernel.errors import InvalidInput, Unavailable
from services.runtime.settings import load

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from services.webhooks.api import Attempt, NewSecret

app = typer.Typer(no_args_is_help=True, help="Webhooks: receivers of events by signed HTTP requests.")

TEST_S_MAX = 30.0  # a call takes 17 s at most, and the room looks four times a second
STATES = ("waiting", "delivered", "given_up")

EndpointId = Annotated[str, typer.Argument(metavar="ENDPOINT", help="its id, as `webhook list` shows it")]
ENDPOINTS = {
    "endpoint_id": "endpoint", "organization_id": "organization", "url": "url", "state": "state", "waiting": "waiting",
    "next_at": "next", "failing_since": "fails since", "disabled_reason": "why",
}  # fmt: skip
DELIVERIES = {
    "event_id": "event", "type": "type", "account_id": "account", "state": "state", "attempts": "attempts",
    "status": "status", "error": "error", "last_at": "last", "next_at": "next",
}  # fmt: skip
ATTEMPTS = {
    "number": "attempt", "at": "at", "status": "status", "error": "error", "took_ms": "ms", "piece": "answer",
}  # fmt: skip
ACTIONS = {"at": "at", "actor": "who", "action": "did", "detail": "what"}


@app.command()
@asynchronous
async def create(
    organization: Annotated[str, typer.Argument(help="whose events")],
    url: Annotated[str, typer.Argument(metavar="URL", help="where they are posted to: https://…")],
    type_: Annotated[
        list[str] | None, typer.Option("--type", help="only this type, such as balance.suspended; may be repeated")
    ] = None,
    account: Annotated[list[str] | None, typer.Option(help="only of this account; may be repeated")] = None,
    description: Annotated[str, typer.Option(help="what it is for")] = "",
    actor: Actor = "",
    output: Output = Format.table,
) -> None:
    """Register a receiver; its secret is shown this once. It gets what happens from now on."""
    from services.webhooks import api

    async with room("webhooks") as engine:
        made = await api.create(
            engine, organization, url, actor or me(), api.allowed_by(load()), api.safe_of(load()),
            types=type_ or (), account_ids=account or (), description=description,
        )  # fmt: skip
    _tell(made, output)


@app.command("list")
@asynchronous
async def list_(
    organization: Annotated[str | None, typer.Option(help="only of this organization")] = None,
    output: Output = Format.table,
) -> None:
    """Every receiver: what waits for it, when it is tried next, and why one is disabled."""
    from services.webhooks import api

    async with room("webhooks") as engine:
        found = await api.endpoints(engine, organization)
    show_rows(found, ENDPOINTS, output, empty="no endpoint is registered", right=("waiting",))


@app.command()
@asynchronous
async def show(endpoint_id: EndpointId, output: Output = Format.table) -> None:
    """One receiver, and who did what to it. Secrets are not shown."""
    from services.webhooks import api

    async with room("webhooks") as engine:
        found, log = await api.endpoint(engine, endpoint_id), await api.actions(engine, endpoint_id)
    if output is Format.json:
        show_json({**plain(found), "log": log})
        return
    show_facts(plain(found), output)
    console.print()
    show_rows(log, ACTIONS, output)


@app.command("types")
def types_(output: Output = Format.table) -> None:
    """Every type of event that a receiver can ask for."""
    from services.webhooks import api

    if output is Format.json:
        show_json(api.types())
        return
    for each in api.types():
        console.print(each, markup=False)


@app.command()
@asynchronous
async def rotate(
    endpoint_id: EndpointId,
    overlap: Annotated[float, typer.Option(min=0, max=168, help="hours for which the old secret signs as well")] = 24.0,
    actor: Actor = "",
    output: Output = Format.table,
) -> None:
    """Make a new secret, shown this once. Until the overlap ends each request is signed by both."""
    from services.webhooks import api

    async with room("webhooks") as engine:
        made = await api.rotate(engine, endpoint_id, actor or me(), timedelta(hours=overlap), api.safe_of(load()))
    _tell(made, output)


@app.command()
def key() -> None:
    """Make a key that secrets can be encrypted by in the database: put it first in TOLLBOOK_WEBHOOKS_KEYS, before those there are."""
    from services.webhooks import api

    console.print(api.new_key(), markup=False)


@app.command()
@asynchronous
async def encrypt(output: Output = Format.table) -> None:
    """Encrypt every secret by the first of TOLLBOOK_WEBHOOKS_KEYS: after it, and a start of the room with that key, no other one
    is needed. Receivers notice nothing."""
    from services.webhooks import api

    async with room("webhooks") as engine:
        count = await api.put_away(engine, api.safe_of(load()))
    if output is Format.json:
        show_json({"endpoints": count})
        return
    console.print(f"the secrets of {count} endpoints are encrypted by the first key", markup=False)


@app.command()
@asynchronous
async def disable(
    endpoint_id: EndpointId,
    reason: Annotated[str, typer.Option(help="why, for who asks later")],
    actor: Actor = "",
    output: Output = Format.table,
) -> None:
    """Send nothing more to a receiver; what waits for it is given up."""
    from services.webhooks import api

    async with room("webhooks") as engine:
        given_up = await api.disable(engine, endpoint_id, actor or me(), reason)
    _say({"endpoint_id": endpoint_id, "state": "disabled", "given_up": given_up}, output,
         f"{endpoint_id} is disabled; {given_up} waiting deliver{'y was' if given_up == 1 else 'ies were'} given up")  # fmt: skip


@app.command()
@asynchronous
async def enable(endpoint_id: EndpointId, actor: Actor = "", output: Output = Format.table) -> None:
    """Send to a receiver again what happens from now on."""
    from services.webhooks import api

    async with room("webhooks") as engine:
        since = await api.enable(engine, endpoint_id, actor or me(), api.allowed_by(load()))
    _say({"endpoint_id": endpoint_id, "state": "enabled", "missed_since": since}, output,
         f"{endpoint_id} is enabled; for what it missed: "
         f"tollbook webhook resend {endpoint_id} --since {instant(since)}")  # fmt: skip


@app.command()
@asynchronous
async def delete(endpoint_id: EndpointId, actor: Actor = "", output: Output = Format.table) -> None:
    """Delete a receiver with the history of its deliveries."""
    from services.webhooks import api

    async with room("webhooks") as engine:
        await api.delete(engine, endpoint_id, actor or me())
    _say({"endpoint_id": endpoint_id, "state": "deleted"}, output, f"{endpoint_id} is deleted")


@app.command("test")
@asynchronous
async def try_(endpoint_id: EndpointId, actor: Actor = "", output: Output = Format.table) -> None:
    """Send a receiver a `webhook.test`, behind what waits, which is tried at once, and wait for what it answers; anything but 2xx
    is exit 1."""
    from services.webhooks import api

    async with room("webhooks") as engine:
        event_id = await api.send_test(engine, endpoint_id, actor or me())
        answer = await _answer(engine, endpoint_id, event_id)
    if output is Format.json:
        show_json({"event_id": event_id, **plain(answer)})
    else:
        said = f"status {answer.status}" if answer.error is None else answer.error
        console.print(f"{event_id}: {said}, {answer.took_ms} ms", markup=False)
        if answer.piece:
            console.print(visible(answer.piece), markup=False)
    if answer.status is None or not 200 <= answer.status < 300:
        raise typer.Exit(1)


async def _answer(engine: AsyncEngine, endpoint_id: str, event_id: str) -> Attempt:
    """The first attempt of an event, when it is made."""
    from services.webhooks import api

    give_up = time.monotonic() + TEST_S_MAX
    while not (made := await api.attempts(engine, endpoint_id, event_id)):
        if time.monotonic() > give_up:
            raise Unavailable(
                f"{event_id} is not sent yet: it waits behind others (see `tollbook webhook deliveries {endpoint_id}`), or "
                "the room webhooks does not run"
            )
        await asyncio.sleep(0.1)
    return made[0]


@app.command()
@asynchronous
async def deliveries(
    endpoint_id: EndpointId,
    state: Annotated[str | None, typer.Option(help=f"only {', '.join(STATES)}")] = None,
    event: Annotated[str | None, typer.Option(help="every attempt to deliver this event")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="how many, the newest first")] = 100,
    output: Output = Format.table,
) -> None:
    """What a receiver got or gets: how often it was tried, what it answered, when it is tried next."""
    from services.webhooks import api

    if state is not None and state not in STATES:
        raise InvalidInput(f"must be one of {', '.join(STATES)}", field="state")
    async with room("webhooks") as engine:
        if event is not None:
            made, sent = await api.attempts(engine, endpoint_id, event), await api.body(engine, event)
        else:
            found = await api.deliveries(engine, endpoint_id, state=state, limit=limit)
    if event is None:
        show_rows(found, DELIVERIES, output, empty="nothing was sent, and nothing waits", right=("attempts", "status"))
    elif output is Format.json:
        show_json({"event_id": event, "body": sent, "attempts": made})
    else:
        console.print(sent, markup=False)
        console.print()
        show_rows(made, ATTEMPTS, output, empty="it was not tried yet", right=("number", "status", "took_ms"))


@app.command()
@asynchronous
async def resend(
    endpoint_id: EndpointId,
    events: Annotated[list[str] | None, typer.Argument(metavar="[EVENT...]", help="events by id")] = None,
    since: Annotated[
        str | None, typer.Option(help="all from then on that it wants and has not taken, such as 2026-11-01T08:00:00Z")
    ] = None,
    actor: Actor = "",
    output: Output = Format.table,
) -> None:
    """Send events again, behind what waits, which is tried at once, with the ids they had; they are kept for thirty days."""
    from services.webhooks import api

    async with room("webhooks") as engine:
        count = await api.resend(
            engine, endpoint_id, actor or me(), event_ids=events or (), since=instant_of(since, "since")
        )
    _say(
        {"endpoint_id": endpoint_id, "queued": count}, output, f"{count} event{'' if count == 1 else 's'} queued again"
    )


def _tell(made: NewSecret, output: Format) -> None:
    if output is Format.json:
        show_json(made)
        return
    console.print(f"endpoint  {made.endpoint_id}", markup=False)
    console.print(f"secret    {made.secret}", markup=False)
    if made.old_secret_until is not None:
        console.print(f"the old secret signs as well until {instant(made.old_secret_until)}", markup=False)
    console.print("note: the secret is not shown again", markup=False)


def _say(answer: dict[str, object], output: Format, sentence: str) -> None:
    if output is Format.json:
        show_json(answer)
    else:
        console.print(sentence, markup=False, soft_wrap=True)
