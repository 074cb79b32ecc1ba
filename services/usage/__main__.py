"""`python -m services.usage`"""

from services.runtime.main import run
from services.usage.consumer import build

if __name__ == "__main__":
    run(build)
