"""Which processors there are. A new one is a file that implements `port.Processor`, a line here, and a line in the contract."""

from __future__ import annotations

from services.payments import stripe
from services.payments.port import Processor
from services.payments.settlement import Sandbox
from services.payments.stripe_door import Door
from services.runtime.settings import Settings

LIVE = ("sk_live_", "rk_live_")  # keys of Stripe that move real money: nobody may pay with the sandbox's beside them


def processors(settings: Settings) -> dict[str, Processor]:
    """The adapters by the names that `contracts.payments.PROCESSORS` knows; one that is not set up is left out."""
    found: dict[str, Processor] = {}
    key = settings.stripe_key.get_secret_value() if settings.stripe_key is not None else None
    if settings.sandbox and not (key or "").startswith(LIVE):
        found["sandbox"] = Sandbox()
    if key is not None:
        found[stripe.NAME] = stripe.Stripe(key, api=settings.stripe_api, door=_door(settings))
    return found


def _door(settings: Settings) -> Door | None:
    """Where webhooks come in; without one, what Stripe does not answer at once is found by inquiries."""
    secret = settings.stripe_webhook_secret
    if secret is None:
        return None
    return Door(settings.stripe_webhook_host, settings.stripe_webhook_port, secret.get_secret_value())
