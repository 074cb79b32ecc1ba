"""`python -m services.payments`: runs the room."""

from services.payments.consumer import build
from services.runtime.main import run

run(build)
