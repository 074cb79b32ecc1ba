"""`python -m services.invoices`: runs the room."""

from services.invoices.consumer import build
from services.runtime.main import run

run(build)
