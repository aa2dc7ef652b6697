"""deploy/healthcheck.py against real servers."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
from pydantic import SecretStr

from shoal.rpc.server import RpcServer, ServerConfig

SCRIPT = Path(__file__).parents[2] / "deploy" / "healthcheck.py"
NAME = "shoal.v1.EmbedderService"


class Fake:
    """A service with no calls that is as ready as it is told."""

    name = NAME

    def __init__(self, *, ready: bool) -> None:
        self._ready = ready

    def register(self, server: Any) -> None: ...

    async def start(self) -> None: ...

    async def ready(self) -> bool:
        return self._ready

    def drain(self) -> None: ...

    async def stop(self, grace_s: float) -> None: ...


@pytest.fixture
def check() -> Callable[..., int]:
    """The script's ``main``."""
    spec = importlib.util.spec_from_file_location("healthcheck", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    main: Callable[..., int] = module.main
    return main


async def answers(
    check: Callable[..., int], config: ServerConfig, *arguments: str, ready: bool = True
) -> int:
    """The exit status against a server with one service."""
    server = RpcServer(config, [Fake(ready=ready)])
    await server.start()
    try:
        return await asyncio.to_thread(check, [server.address, *arguments])
    finally:
        await server.stop()


LOCAL = ServerConfig(address="127.0.0.1:0", tokens=(SecretStr("token"),), grace_s=0)


@pytest.mark.parametrize("service", ["", NAME])
@pytest.mark.parametrize(("ready", "status"), [(True, 0), (False, 1)])
def test_exit_status_is_readiness_and_needs_no_token(
    check: Callable[..., int], service: str, *, ready: bool, status: int
) -> None:
    """0 when the server (or the service) is ready, else 1; a server with a token wants none."""
    assert asyncio.run(answers(check, LOCAL, "--service", service, ready=ready)) == status


def test_unknown_service_is_not_ready(
    check: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """A name that the server does not have fails, and the line says why."""
    assert asyncio.run(answers(check, LOCAL, "--service", "no.Such")) == 1
    assert "no.Such: no answer: NOT_FOUND" in capsys.readouterr().out


def test_absent_server_is_not_ready(
    check: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody at the address: exit status 1 within the time limit, and no traceback."""
    assert check(["127.0.0.1:1", "--timeout", "0.5"]) == 1
    assert "no answer" in capsys.readouterr().out


def test_tls_server_is_asked_by_the_name_in_its_certificate(
    check: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --tls-ca and --tls-name a server with TLS is reached on loopback; without, it is not."""
    authority = trustme.CA()
    issued = authority.issue_cert("embedder")
    ca, cert, key = (tmp_path / name for name in ("ca.pem", "cert.pem", "key.pem"))
    authority.cert_pem.write_to_path(ca)
    issued.private_key_pem.write_to_path(key)
    cert.write_bytes(b"".join(each.bytes() for each in issued.cert_chain_pems))
    config = ServerConfig(address="127.0.0.1:0", tls_cert=cert, tls_key=key, grace_s=0)
    assert asyncio.run(answers(check, config, "--tls-ca", str(ca), "--tls-name", "embedder")) == 0
    assert asyncio.run(answers(check, config, "--timeout", "0.5")) == 1
    assert check(["127.0.0.1:1", "--tls-ca", str(tmp_path / "absent.pem")]) == 1
    assert "No such file" in capsys.readouterr().out
