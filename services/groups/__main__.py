"""`python -m services.groups`: runs the room until it is told to stop."""

from services.groups.consumer import build
from services.runtime.main import run

if __name__ == "__main__":
    run(build)
