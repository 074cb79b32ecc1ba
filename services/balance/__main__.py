"""`python -m services.balance`: runs the room."""

from services.balance.consumer import build
from services.runtime.main import run

run(build)
