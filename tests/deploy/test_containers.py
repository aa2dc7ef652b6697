"""Rules that every container of Shoal keeps, in Compose and in Kubernetes alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import click
import pytest

import shoal
from shoal.errors import ConfigError
from shoal.rpc.address import parse_address
from shoal.rpc.server import ServerConfig

Containers = list[Any]
"""``conftest.Container``."""


def test_there_are_containers_of_every_service(containers: Containers) -> None:
    """Both ways to deploy run the three services, and Kubernetes the reclustering."""
    found = {(each.where, each.name) for each in containers}
    services = {"embedder", "clusterer", "search"}
    assert found == {
        *(("compose", name) for name in services),
        *(("kubernetes", name) for name in {*services, "recluster"}),
    }


def test_images_are_targets_of_the_dockerfile_at_this_version(
    containers: Containers, targets: Mapping[str, Any]
) -> None:
    """An image is shoal/TARGET:VERSION, of a target that the Dockerfile has and this version."""
    for each in containers:
        assert each.target in targets
        assert each.image == f"shoal/{each.target}:{shoal.__version__}"


def test_compose_builds_the_target_that_it_names(compose: dict[str, Any]) -> None:
    """A service's image is named for the target that it is built from."""
    for service in compose["services"].values():
        if "build" in service:
            assert service["image"].startswith(f"shoal/{service['build']['target']}:")


def test_commands_are_understood(containers: Containers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments and environment together are what the command takes, strictly parsed."""
    for each in containers:
        with monkeypatch.context() as patch:
            command, _ = each.parse(patch)
        expected = "cluster" if each.name == "recluster" else each.name
        assert command.name == expected


def test_variables_are_environment_twins(
    containers: Containers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each SHOAL_ variable is the twin of an option of the very command that gets it."""
    for each in containers:
        with monkeypatch.context() as patch:
            command, _ = each.parse(patch)
        twins = {p.envvar for p in command.params if isinstance(p, click.Option)}
        assert {name for name in each.environment if name.startswith("SHOAL_")} <= twins


def test_secrets_are_not_in_the_files(containers: Containers) -> None:
    """A token or key is taken from a secret or the deployer's environment, never written down."""
    for each in containers:
        sensitive = {name for name in each.environment if name.endswith(("_TOKEN", "_KEY"))}
        assert "SHOAL_TOKEN" in sensitive
        assert sensitive == set(each.secrets)


def test_servers_that_others_reach_want_a_token(
    containers: Containers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server listens beyond loopback, has a token, and would not start without one."""
    for each in containers:
        if each.name == "recluster":
            continue
        with monkeypatch.context() as patch:
            _, context = each.parse(patch)
        address = context.params["address"]
        assert not parse_address(address).is_loopback
        assert len(context.params["token"]) == 1
        with pytest.raises(ConfigError, match="token"):
            ServerConfig(address=address).validate()


def test_servers_listen_where_their_image_exposes(
    containers: Containers, targets: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server's port and its metrics' port are those that the Dockerfile names."""
    for each in containers:
        if each.name == "recluster":
            continue
        with monkeypatch.context() as patch:
            _, context = each.parse(patch)
        addresses = (context.params["address"], context.params["metrics_address"])
        assert {parse_address(address).port for address in addresses} == targets[each.target].ports


def test_addresses_that_are_called_exist(
    containers: Containers,
    compose: dict[str, Any],
    manifests: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Store, embedder and clusterer are called by the names and ports that they are served at."""
    ports: dict[str, dict[str, set[int]]] = {
        "compose": {"qdrant": {6333, 6334}},
        "kubernetes": {
            each["metadata"]["name"]: {port["port"] for port in each["spec"]["ports"]}
            for each in manifests
            if each["kind"] == "Service"
        },
    }
    for name, service in compose["services"].items():
        if name != "qdrant":
            ports["compose"][name] = {int(port.split(":")[-1]) for port in service["ports"]}
    for each in containers:
        with monkeypatch.context() as patch:
            _, context = each.parse(patch)
        options, known = context.params, ports[each.where]
        called = [options["embedder_address"]] if options.get("embedder_address") else []
        called += [options["address"]] if each.name == "recluster" else []
        for address in map(parse_address, called):
            assert address.port in known[address.host]
        if "store_url" in options and each.name != "recluster":  # which has it for Spark only
            url = urlsplit(options["store_url"])
            assert {url.port, options["store_grpc_port"]} == known[url.hostname or ""]
