from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from shoal.errors import ConfigError
from shoal.store import StoreConfig

PATH = Path("store")


@pytest.mark.parametrize(
    "given",
    [
        {"path": PATH},
        {"url": "http://localhost:6333"},
        {"url": "https://qdrant.example", "api_key": SecretStr("x"), "grpc_port": 1},
        {"url": "http://[::1]:6333/prefix"},
        {"in_memory": True},
    ],
)
def test_config_accepts_one_place(given: dict[str, Any]) -> None:
    """Exactly one of the three places, with the settings that belong to it."""
    StoreConfig(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "exactly one of path, url and in_memory, got none"),
        ({"path": PATH, "url": "http://x"}, "got path, url"),
        ({"path": PATH, "in_memory": True}, "got path, in_memory"),
        ({"path": PATH, "url": "http://x", "in_memory": True}, "got path, url, in_memory"),
        ({"url": ""}, "expected http"),
        ({"url": "localhost:6333"}, "expected http"),
        ({"url": "ftp://localhost"}, "expected http"),
        ({"url": "http://"}, "expected http"),
        ({"url": "http://x:99999"}, "url"),
        ({"path": PATH, "api_key": SecretStr("x")}, "api_key is for a Qdrant server"),
        ({"url": "http://x", "grpc_port": 0}, "grpc_port"),
        ({"url": "http://x", "grpc_port": 65536}, "grpc_port"),
        ({"url": "http://x", "timeout_s": 0}, "timeout_s"),
        ({"url": "http://x", "timeout_s": float("inf")}, "timeout_s"),
        ({"url": "http://x", "timeout_s": float("nan")}, "timeout_s"),
    ],
)
def test_config_refuses_the_rest(given: dict[str, Any], message: str) -> None:
    """No place, several, or a setting out of range: ConfigError says which."""
    with pytest.raises(ConfigError, match=message):
        StoreConfig(**given)
