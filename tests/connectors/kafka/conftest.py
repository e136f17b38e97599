"""Fixtures of the Kafka connector's tests."""

from collections.abc import AsyncIterator

import pytest

from streamactors.testing import KafkaBroker


@pytest.fixture
async def own() -> AsyncIterator[KafkaBroker]:
    async with KafkaBroker(own=True) as broker:
        yield broker
