"""`python -m services.webhooks`: runs the room."""

from services.runtime.main import run
from services.webhooks.consumer import build

run(build)
