"""`python -m services.gateway`: runs the gateway."""

from services.gateway.server import run

run()
