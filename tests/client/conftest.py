"""Both clients, against one server: the tests here hold for either."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from clients import Driven, Fake, serving

from shoal.client import AsyncClient, Client


@pytest.fixture
def fake() -> Fake:
    return Fake()


@pytest.fixture
def address(fake: Fake) -> Iterator[str]:
    with serving(fake) as found:
        yield found


@pytest.fixture(params=["blocking", "asynchronous"])
def make_client(request: pytest.FixtureRequest) -> Any:
    """Makes a client of either kind, with the face of the blocking one."""
    if request.param == "blocking":
        return Client

    def make(*args: Any, **kwargs: Any) -> Driven:
        return Driven(lambda: AsyncClient(*args, **kwargs))

    return make


@pytest.fixture
def client(make_client: Any, address: str) -> Iterator[Any]:
    with make_client(address, timeout_s=10) as opened:
        yield opened
