"""Clients of services that are servers of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from clients import Fake, make_items, serving

from shoal.client import Addresses
from shoal.client.calls import SERVICES, Service
from shoal.errors import ServiceMissing, ShoalError
from shoal.v1 import clusterer_pb2, embedder_pb2, search_pb2

CALLS: dict[str, tuple[Service, Any, Callable[[Any], object]]] = {
    "info": ("embedder", embedder_pb2.GetInfoResponse(), lambda client: client.info()),
    "ingest": ("embedder", None, lambda client: list(client.ingest(make_items("a", "b")))),
    "streams": (
        "embedder",
        None,
        lambda client: list(client.ingest(make_items("a", "b"), streams=2)),
    ),
    "get_run": ("clusterer", clusterer_pb2.Run(state=3), lambda client: client.get_run("r")),
    "watch": ("clusterer", [clusterer_pb2.Run(state=3)], lambda client: list(client.watch("r"))),
    "runs": ("clusterer", clusterer_pb2.ListRunsResponse(), lambda client: list(client.runs())),
    "collection": ("search", search_pb2.Collection(), lambda client: client.collection()),
    "clusters": ("search", search_pb2.ListClustersResponse(), lambda client: client.clusters()),
}


@pytest.fixture
def fakes() -> dict[Service, Fake]:
    return {service: Fake() for service in SERVICES}


@pytest.fixture
def split(fakes: dict[Service, Fake]) -> Iterator[Addresses]:
    with ExitStack() as stack:
        yield Addresses(
            *(stack.enter_context(serving(fakes[service], service)) for service in SERVICES)
        )


@pytest.mark.parametrize("name", CALLS)
def test_each_call_goes_to_its_service(
    make_client: Any, fakes: dict[Service, Fake], split: Addresses, name: str
) -> None:
    """Both clients find it among three servers."""
    service, answer, call = CALLS[name]
    fakes[service].answers = [answer]
    with make_client(split, timeout_s=10) as client:
        call(client)
    for each, fake in fakes.items():
        assert bool(fake.requests or fake.received) == (each == service)


def test_one_client_reaches_all_services_in_turn(
    make_client: Any, fakes: dict[Service, Fake], split: Addresses
) -> None:
    """Each at its own address, again and again."""
    with make_client(split, timeout_s=10) as client:
        for _ in range(2):
            for name in ("info", "get_run", "collection"):
                service, answer, call = CALLS[name]
                fakes[service].answers = [answer]
                call(client)
    assert [len(fake.requests) for fake in fakes.values()] == [2, 2, 2]


@pytest.mark.parametrize("name", CALLS)
def test_call_for_a_service_without_an_address_names_it(
    make_client: Any, split: Addresses, name: str
) -> None:
    """With the option and the argument that would give its address."""
    service, _, call = CALLS[name]
    known = {each: split.of(each) for each in SERVICES if each != service}
    with make_client(Addresses(**known), timeout_s=10) as client:  # noqa: SIM117 - the call alone
        with pytest.raises(ServiceMissing, match="which has no address") as caught:
            call(client)
    assert f"--{service}-address" in caught.value.message
    assert f"Addresses({service}=...)" in caught.value.message
    assert caught.value.metadata == {"service": service}


@pytest.mark.parametrize("name", CALLS)
def test_call_that_the_server_does_not_offer_names_the_service(
    make_client: Any, split: Addresses, name: str
) -> None:
    """One address was given for all, and it is another service's."""
    service, _, call = CALLS[name]
    other = split.of("search" if service != "search" else "embedder")
    with make_client(other, timeout_s=10) as client:
        error = missing(client, call)
    assert f"the server at {other} is not the" in error.message
    assert f"--{service}-address" in error.message
    assert error.metadata == {"address": other, "service": service}


def missing(client: Any, call: Any) -> ServiceMissing:
    """The error of a call to a server that does not offer it.

    gRPC for asyncio forgets a stream's status if the server ends the stream while a message is on
    its way; then the call is made again.
    """
    for _ in range(10):
        try:
            call(client)
        except ServiceMissing as exc:
            return exc
        except ShoalError as exc:
            assert "Internal error from Core" in exc.message  # noqa: PT017 - not what is tested
    raise AssertionError("no answer names the service")
