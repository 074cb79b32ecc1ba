"""The rooms of `copier` have topics of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import copier


@pytest.fixture(autouse=True)
def topics_of_the_copier() -> Iterator[None]:
    """No other test sees them, whatever ran before it."""
    with copier.declared():
        yield
