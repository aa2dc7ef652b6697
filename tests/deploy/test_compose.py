from __future__ import annotations

from typing import Any

import pytest

SHOAL = ("embedder", "clusterer", "search")
ALL = (*SHOAL, "qdrant")


@pytest.fixture
def services(compose: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found = compose["services"]
    assert set(found) == set(ALL)
    return dict(found)


def test_ports_are_published_on_loopback_only(services: dict[str, dict[str, Any]]) -> None:
    """Nothing is reachable from other machines; the store and the metrics not even from this."""
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert sorted(published) == [f"127.0.0.1:{port}:{port}" for port in (7801, 7802, 7803)]


@pytest.mark.parametrize("name", ALL)
def test_service_can_write_only_where_it_must(
    services: dict[str, dict[str, Any]], name: str
) -> None:
    """Containers have a read-only root, no capabilities, and cannot gain privileges."""
    service = services[name]
    assert service["read_only"] is True
    assert service["tmpfs"] == ["/tmp"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service


@pytest.mark.parametrize("name", ALL)
def test_service_has_a_health_check_and_comes_back(
    services: dict[str, dict[str, Any]], name: str
) -> None:
    """Each service tells its health by a command that its image has, and is restarted."""
    service = services[name]
    kind, program, *rest = service["healthcheck"]["test"]
    assert kind == "CMD"
    assert service["restart"] == "unless-stopped"
    if name == "qdrant":
        assert program == "bash"
    else:
        port = service["ports"][0].split(":")[-1]
        assert [program, *rest] == ["python", "/opt/healthcheck.py", f"127.0.0.1:{port}"]


@pytest.mark.parametrize("name", SHOAL)
def test_service_waits_for_the_store(services: dict[str, dict[str, Any]], name: str) -> None:
    """Services start once the store is healthy."""
    assert services[name]["depends_on"]["qdrant"] == {"condition": "service_healthy"}


@pytest.mark.parametrize("name", SHOAL)
def test_service_is_given_longer_to_stop_than_it_drains(
    services: dict[str, dict[str, Any]],
    containers: list[Any],
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Docker kills a service only after the grace that it gives its calls."""
    (container,) = [each for each in containers if (each.where, each.name) == ("compose", name)]
    _, context = container.parse(monkeypatch)
    assert int(services[name]["stop_grace_period"].rstrip("s")) > context.params["grace"]


def test_store_is_pinned_persistent_and_locked(
    compose: dict[str, Any], services: dict[str, dict[str, Any]]
) -> None:
    """Qdrant is of one version, keeps its data in a volume, and wants the key that is sent."""
    store = services["qdrant"]
    assert store["image"].startswith("qdrant/qdrant:v")
    assert "qdrant-storage:/qdrant/storage" in store["volumes"]
    assert {volume.partition(":")[0] for volume in store["volumes"]} == set(compose["volumes"])
    key = store["environment"]["QDRANT__SERVICE__API_KEY"]
    assert all(services[name]["environment"]["SHOAL_STORE_API_KEY"] == key for name in SHOAL)


def test_missing_secrets_are_named(services: dict[str, dict[str, Any]]) -> None:
    """Compose stops with a message, rather than starting with an empty token or key."""
    for service in services.values():
        for name, value in service["environment"].items():
            if "$" in value:
                variable = value[2:].partition(":?")[0]
                assert value == f"${{{variable}:?set {variable}}}", name
