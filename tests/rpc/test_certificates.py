"""A server's certificate, renewed while it serves."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme

from shoal.errors import ConfigError
from shoal.rpc import certificates
from shoal.rpc.certificates import server_credentials
from shoal.rpc.channel import ChannelConfig
from shoal.rpc.server import ServerConfig
from shoal.v1 import embedder_pb2


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def leaves(authority: trustme.CA) -> list[trustme.LeafCert]:
    """Two certificates for the same host."""
    return [authority.issue_cert("127.0.0.1") for _ in range(2)]


@dataclass
class Scene:
    """The files of a certificate and its key, and a server and a client that use them."""

    cert: Path
    key: Path
    ca: Path
    serving: Any
    service: Any

    def put(self, leaf: trustme.LeafCert) -> None:
        """Puts a certificate in place, the key first."""
        write(self.key, leaf.private_key_pem)
        write(self.cert, leaf.cert_chain_pems[0])

    def serve(self) -> Any:
        server = ServerConfig(address="127.0.0.1:0", tls_cert=self.cert, tls_key=self.key)
        return self.serving(self.service, server=server, client=self.client)

    def client(self, address: str) -> ChannelConfig:
        return ChannelConfig(address=address, tls=True, tls_ca=self.ca)


@pytest.fixture
def scene(
    tmp_path: Path,
    authority: trustme.CA,
    leaves: list[trustme.LeafCert],
    serving: Any,
    fake_embedder: Any,
) -> Scene:
    """The first certificate is in place."""
    paths = [tmp_path / name for name in ("tls.crt", "tls.key", "ca.crt")]
    authority.cert_pem.write_to_path(str(paths[2]))
    made = Scene(*paths, serving, fake_embedder())
    made.put(leaves[0])
    return made


def write(path: Path, blob: trustme.Blob) -> None:
    """Puts the whole file in place at once, as whoever renews certificates does."""
    fresh = path.with_suffix(".fresh")
    fresh.write_bytes(blob.bytes())
    fresh.replace(path)


async def shown(port: int) -> str:
    """The certificate that a new connection is shown."""
    return await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port), timeout=20)


def pem(leaf: trustme.LeafCert) -> str:
    """The same, of a certificate that was issued."""
    issued = leaf.cert_chain_pems[0].bytes().decode()
    return ssl.DER_cert_to_PEM_cert(ssl.PEM_cert_to_DER_cert(issued))


def test_renewed_certificate_is_shown_without_a_restart(
    scene: Scene, leaves: list[trustme.LeafCert]
) -> None:
    """New connections get the new certificate; one that was open goes on."""

    async def scenario() -> None:
        async with scene.serve() as running:
            await running.embedder.Embed(embedder_pb2.EmbedRequest())
            assert await shown(running.port) == pem(leaves[0])
            scene.put(leaves[1])
            assert [await shown(running.port) for _ in range(2)] == [pem(leaves[1])] * 2
            answer = await running.embedder.Embed(embedder_pb2.EmbedRequest(encoder="e"))
            assert answer.encoder == "e"

    asyncio.run(scenario())


@pytest.mark.parametrize("damage", ["half", "gone", "empty"])
def test_certificate_that_cannot_be_used_leaves_the_old_one_in_use(
    scene: Scene,
    leaves: list[trustme.LeafCert],
    caplog: pytest.LogCaptureFixture,
    damage: str,
) -> None:
    """Until both files are whole and belong together nothing changes, and one line says why."""
    damages: dict[str, Callable[[], object]] = {
        "half": lambda: write(scene.cert, leaves[1].cert_chain_pems[0]),
        "gone": scene.key.unlink,
        "empty": lambda: scene.key.write_text(""),
    }

    async def scenario() -> None:
        async with scene.serve() as running:
            for _ in range(2):
                caplog.clear()
                damages[damage]()
                assert [await shown(running.port) for _ in range(3)] == [pem(leaves[0])] * 3
                assert len(caplog.records) == 1
                assert "the old TLS certificate stays in use" in caplog.text
                assert str(scene.key) in caplog.text
                scene.put(leaves[0])
                await shown(running.port)
            scene.put(leaves[1])
            assert await shown(running.port) == pem(leaves[1])

    with caplog.at_level(logging.WARNING, "shoal.rpc.certificates"):
        asyncio.run(scenario())


def test_certificate_renewed_behind_a_link_is_taken_up(
    scene: Scene, leaves: list[trustme.LeafCert], tmp_path: Path
) -> None:
    """Kubernetes replaces a link to the directory that holds both files."""
    for number, leaf in enumerate(leaves):
        (tmp_path / f"version{number}").mkdir()
        write(tmp_path / f"version{number}" / "tls.crt", leaf.cert_chain_pems[0])
        write(tmp_path / f"version{number}" / "tls.key", leaf.private_key_pem)
    (tmp_path / "data").symlink_to("version0")
    scene.cert, scene.key = tmp_path / "data" / "tls.crt", tmp_path / "data" / "tls.key"

    async def scenario() -> None:
        async with scene.serve() as running:
            assert await shown(running.port) == pem(leaves[0])
            (tmp_path / "next").symlink_to("version1")
            (tmp_path / "next").replace(tmp_path / "data")
            assert await shown(running.port) == pem(leaves[1])

    asyncio.run(scenario())


def test_certificate_is_checked_at_the_start(scene: Scene) -> None:
    """Files that cannot be used are an error at first."""
    scene.key.write_text("")
    with pytest.raises(ConfigError, match="cannot be used"):
        server_credentials(scene.cert, scene.key)
    scene.key.unlink()
    with pytest.raises(ConfigError, match=r"tls\.key cannot be read: No such file"):
        server_credentials(scene.cert, scene.key)


def test_certificate_that_changes_while_it_is_read_is_read_again(
    scene: Scene, leaves: list[trustme.LeafCert], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two files may be of two versions then: the next connection looks again."""
    files = certificates._Files(scene.cert, scene.key)
    files.read()
    assert files.changed() is None
    scene.put(leaves[1])
    with monkeypatch.context() as patched:
        patched.setattr(certificates, "check_pair", lambda *_: scene.put(leaves[0]))
        assert files.changed() is None
    assert files.changed() is not None
    assert files.changed() is None
