"""Which processors there are. A new one is a file that implements `port.Processor`, a line here, and a line in the contract."""

from __future__ import annotations

from services.payments.port import Processor
from services.payments.settlement import Sandbox
from services.runtime.settings import Settings


def processors(settings: Settings) -> dict[str, Processor]:
    """The adapters by the names that `contracts.payments.PROCESSORS` knows; one that is not set up is left out."""
    return {"sandbox": Sandbox()}
