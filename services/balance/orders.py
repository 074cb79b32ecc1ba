"""Payments on their way out: attempts that this transaction begins, their requests and timers."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime
from typing import NamedTuple, Protocol, cast
from uuid import UUID

from contracts.payments import CancelRequest, ChargeRequest, InquireRequest, MethodKind, RefundRequest
from contracts.topics import PAYMENTS_REQUESTS
from services.balance import recharge, store
from services.balance.wallets import Wallet
from services.kernel.ids import attempt_id
from services.kernel.money import format_nano
from services.runtime.work import Work

RESULT_TIMEOUT = "result_timeout"


class Method(NamedTuple):
    """What is charged. ``given`` says that it came with the payment: it is saved when that succeeds and none is saved."""

    processor: str
    kind: MethodKind
    token: str
    given: bool = False


def saved_method(wallet: Wallet) -> Method | None:
    """The one that is saved, if any."""
    if wallet.method_processor is None or wallet.method_token is None:
        return None
    return Method(wallet.method_processor, cast(MethodKind, wallet.method_kind), wallet.method_token)


class Asked(Protocol):
    """What a request repeats of an attempt that exists."""

    @property
    def attempt_id(self) -> UUID: ...
    @property
    def account_id(self) -> str: ...
    @property
    def processor(self) -> str: ...
    @property
    def amount_nano(self) -> int: ...
    @property
    def currency(self) -> str: ...


class Orders:
    """Collects new attempts and writes them by one statement; requests go out with the transaction."""

    def __init__(self) -> None:
        self._new: list[store.NewAttempt] = []
        self._timers: dict[str, dict[str, datetime]] = defaultdict(dict)

    def charge(self, work: Work, wallet: Wallet, kind: recharge.Kind, nano: int, method: Method) -> store.NewAttempt:
        """A new attempt of a locked wallet: its id is the idempotency key, for all retries and inquiries."""
        wallet.trigger_version += 1
        wallet.changed = True
        attempt = store.NewAttempt(
            attempt_id=attempt_id(wallet.account_id, wallet.trigger_version),
            account_id=wallet.account_id,
            trigger_version=wallet.trigger_version,
            processor=method.processor,
            method_kind=method.kind,
            amount_nano=nano,
            currency=wallet.currency,
            requested_at=work.now,
            kind=kind,
            token=method.token if method.given else None,
            method_version=wallet.method_version,
        )
        request = ChargeRequest.model_validate(
            _about(work, attempt)
            | {"method_kind": method.kind, "token": method.token, "origin": "manual" if kind == "group" else kind}
        )
        work.publish(PAYMENTS_REQUESTS, wallet.account_id, str(attempt.attempt_id), request.data())
        self._timers[RESULT_TIMEOUT][str(attempt.attempt_id)] = work.now + recharge.RESULT_TIMEOUT
        self._new.append(attempt)
        return attempt

    def of(self, account_id: str) -> list[store.NewAttempt]:
        """What was begun for an account."""
        return [attempt for attempt in self._new if attempt.account_id == account_id]

    async def write(self, work: Work) -> None:
        """Append all of it; to be called before the wallets are looked at once more."""
        if self._new:
            await store.append_attempts(work, self._new)
        for kind in sorted(self._timers):
            await work.set_timers(kind, self._timers[kind])
        self._new, self._timers = [], defaultdict(dict)


def inquire(work: Work, attempt: Asked, number: int) -> None:
    """Ask what became of an attempt; the number tells one inquiry from another."""
    request = InquireRequest.model_validate(_about(work, attempt) | {"kind": "inquire", "number": number})
    name = f"{attempt.attempt_id}:inquire:{number}"
    work.publish(PAYMENTS_REQUESTS, attempt.account_id, name, request.data())


def cancel(work: Work, attempt: Asked) -> None:
    """Ask that an attempt is given up."""
    request = CancelRequest.model_validate(_about(work, attempt) | {"kind": "cancel"})
    work.publish(PAYMENTS_REQUESTS, attempt.account_id, f"{attempt.attempt_id}:cancel", request.data())


def refund(work: Work, attempt: Asked, refund_id: UUID, nano: int) -> None:
    """Ask that a part of an attempt is given back."""
    fields = {"kind": "refund", "refund_id": refund_id, "amount": format_nano(nano)}
    request = RefundRequest.model_validate(_about(work, attempt) | fields)
    work.publish(PAYMENTS_REQUESTS, attempt.account_id, f"{attempt.attempt_id}:{refund_id}", request.data())


def _about(work: Work, attempt: Asked) -> dict[str, object]:
    return {
        "attempt_id": attempt.attempt_id,
        "account_id": attempt.account_id,
        "processor": attempt.processor,
        "amount": format_nano(attempt.amount_nano),
        "currency": attempt.currency,
        "requested_at": work.now,
    }
