"""``shoal up`` and the errors at the prompt: one clear line each."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
from encoders import other_encoder
from websites import Page, web_server

from embedder.encoding.artefact import bundled_artefact
from shoal.client import Client
from shoal.errors import Unauthenticated

Run = Callable[..., Any]


def error_line(result: Any, *, code: int = 1) -> str:
    """The one line of a failed command."""
    assert result.code == code, result.stderr
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("shoal: error: ")
    return str(line)


def test_no_server_is_one_line_with_the_address(shoal: Run, run_shoal: Run, tmp_path: Path) -> None:
    """Every client command without a server names the address and exits 1."""
    (tmp_path / "x.png").write_bytes(b"x")
    result = run_shoal("clusters", "--address", "127.0.0.1:9", cwd=tmp_path)
    assert "127.0.0.1:9" in error_line(result)
    for command in (
        ["ingest", "x.png"],
        ["cluster", "-k", "2"],
        ["search", "x.png"],
        ["runs"],
        ["rollback"],
        ["model", "list"],
    ):
        result = shoal(*command, "--address", "127.0.0.1:9")
        assert "127.0.0.1:9" in error_line(result)


def test_no_such_file_is_one_line_before_anything_is_sent(shoal: Run, tmp_path: Path) -> None:
    """A missing file among the arguments stops all of them, by name."""
    (tmp_path / "x.png").write_bytes(b"x")
    line = error_line(shoal("ingest", "x.png", "gone.png", "--collection", "never"))
    assert line == "shoal: error: no such file or directory: gone.png"
    assert "gone.png" in error_line(shoal("search", "gone.png"))
    assert "never" in error_line(shoal("clusters", "--collection", "never"))


def test_up_reads_images_from_allowed_hosts_and_directories(
    run_shoal: Run, start_server: Any, tmp_path: Path, one_picture: bytes
) -> None:
    """What --allow-host and --allow-files allow is ingested by its place; the rest is refused."""
    with web_server({"/a.png": Page(one_picture)}) as web:
        allowed = ["--allow-host", f"localhost:{web.port}", "--allow-http", "--allow-private-hosts"]
        server = start_server(tmp_path / "data", *allowed, "--allow-files", str(tmp_path))
        target = ["--address", server.address]
        done = run_shoal("ingest", web.url("/a.png"), *target, "--json", cwd=tmp_path)
        assert (done.code, json.loads(done.stdout)["stored"]) == (0, 1), done.stderr
        refused = run_shoal("ingest", "https://images.test/a.png", *target, cwd=tmp_path)
        assert refused.code == 1
        assert (
            "UNSUPPORTED: image.uri: expected a place that this server may read" in refused.stderr
        )
        with Client(server.address) as client:
            assert client.info().uri_schemes == ("file", "http", "https")


def test_up_holds_images_to_its_limits(
    run_shoal: Run, start_server: Any, tmp_path: Path, one_picture: bytes
) -> None:
    """Bytes and pixels are the operator's to set; the others are told which limit it was."""
    (tmp_path / "a.png").write_bytes(one_picture)  # 64 x 64
    for option, limit, said in (
        ("--max-image-bytes", "50", "IMAGE_TOO_LARGE"),
        ("--max-image-pixels", "4095", "IMAGE_TOO_MANY_PIXELS"),
    ):
        server = start_server(tmp_path / option, option, limit)
        done = run_shoal("ingest", "a.png", "--address", server.address, cwd=tmp_path)
        assert done.code == 1
        assert said in done.stderr
        assert limit in done.stderr


def test_a_sample_past_its_own_bound_is_one_line(run_shoal: Run, tmp_path: Path) -> None:
    """The clusterer's settings are looked at before a port opens or the store is asked."""
    sizes = ("--sample-size", "10", "--max-sample-size", "5")
    store = ("--store-url", "http://127.0.0.1:9")
    line = error_line(run_shoal("serve", "clusterer", *store, *sizes, cwd=tmp_path))
    assert "sample_size: expected at most max_sample_size, 5, got 10" in line
    overlap = ("--continued-jaccard", "0.4")  # two old clusters could be the new one
    refused = run_shoal("serve", "clusterer", *store, *overlap, cwd=tmp_path)
    assert refused.code == 2
    assert "0.4 is not in the range 0.5<=x<=1" in refused.stderr


def test_locked_store_is_one_line(run_shoal: Run, server: Any, tmp_path: Path) -> None:
    """A second process on the same directory is refused before it opens a port."""
    arguments = ("up", "--data", str(server.data), "--address", "127.0.0.1:0")
    line = error_line(run_shoal(*arguments, cwd=tmp_path))
    assert str(server.data) in line
    assert str(server.process.pid) in line


def test_collection_of_another_encoder_is_one_line(
    start_server: Any, run_shoal: Run, pictures: Any, tmp_path: Path
) -> None:
    """Neither storing nor searching mixes encoders; the line names both fingerprints."""
    pictures(tmp_path, ["a.png", "b.png"])
    data = tmp_path / "up"
    first = start_server(data)
    stored = run_shoal("ingest", "a.png", "--address", first.address, cwd=tmp_path)
    assert stored.code == 0, stored.stderr
    first.stop()

    encoder = other_encoder(tmp_path / "encoder")
    prints = [
        json.loads((directory / "encoder.json").read_text())["fingerprint"][:12]
        for directory in (bundled_artefact(), encoder)
    ]
    second = start_server(data, "--encoder", str(encoder))
    for command in (["ingest", "b.png"], ["search", "b.png"]):
        line = error_line(run_shoal(*command, "--address", second.address, cwd=tmp_path))
        assert all(each in line for each in prints), line
    second.stop()


def test_more_clusters_than_points_is_one_line(shoal: Run, pictures: Any, tmp_path: Path) -> None:
    """The line names both numbers and the collection; nothing was started."""
    pictures(tmp_path, ["a.png", "b.png"])
    assert shoal("ingest", "a.png", "b.png", "--collection", "two").code == 0
    line = error_line(shoal("cluster", "-k", "3", "--collection", "two"))
    assert line == (
        "shoal: error: k = 3 is larger than the number of points in collection 'two', which is 2"
    )
    assert json.loads(shoal("runs", "--collection", "two", "--json").stdout) == []


def test_taken_port_is_one_line(run_shoal: Run, server: Any, tmp_path: Path) -> None:
    """A port that another process listens on is refused by name."""
    arguments = ("up", "--data", "d", "--address", server.address)
    assert server.address in error_line(run_shoal(*arguments, cwd=tmp_path))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--address", "0.0.0.0:0"], "token"),
        (["--address", "nonsense"], "nonsense"),
        (["--address", "127.0.0.1:0", "--tls-cert", "gone.pem", "--tls-key", "gone.pem"], "gone"),
        (["--address", "127.0.0.1:0", "--tls-cert", "gone.pem"], "key"),
        (["--address", "127.0.0.1:0", "--metrics-address", "0.0.0.0:0"], "token"),
        (["--address", "127.0.0.1:0", "--encoder", "gone"], "gone"),
        (["--address", "127.0.0.1:0", "--ready-file", "gone/ready"], "--ready-file"),
        (["--address", "127.0.0.1:0", "--max-image-pixels", "89478486"], "89478485"),
    ],
)
def test_wrong_setting_is_one_line_and_opens_no_port(
    run_shoal: Run, tmp_path: Path, arguments: list[str], said: str
) -> None:
    """Settings are checked before a port opens; the message says what is wrong."""
    result = run_shoal("up", "--data", "d", "--log-level", "error", *arguments, cwd=tmp_path)
    assert said in error_line(result)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_up_stops_cleanly_and_leaves_the_store_usable(
    start_server: Any, tmp_path: Path, number: signal.Signals
) -> None:
    """A signal ends it with status 0 and without a traceback; the next one can start."""
    data = tmp_path / "up"
    ready = tmp_path / "ready"
    for _ in range(2):
        server = start_server(data, "--ready-file", str(ready))
        assert ready.read_text() == f"{server.address}\n"
        server.process.send_signal(number)
        assert server.process.wait(timeout=30) == 0
        assert "Traceback" not in server.log.read_text()


def test_up_masks_secrets_in_its_log(start_server: Any, run_shoal: Run, tmp_path: Path) -> None:
    """The configuration is logged once, with tokens masked; calls need one of them."""
    server = start_server(
        *(tmp_path / "up", "--token", "s3cr3t", "--token", "0ther", "--log-format", "json"),
        *("--give-up", "77"),
    )
    log = server.log.read_text()
    assert "s3cr3t" not in log
    assert "0ther" not in log
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    (logged,) = (line["config"] for line in lines if "config" in line)
    assert logged["embedder"]["give_up_s"] == 77
    with Client(server.address) as client, pytest.raises(Unauthenticated):
        client.info()
    for token in ("s3cr3t", "0ther"):
        with Client(server.address, token=token) as client:
            assert client.info().encoders
    result = run_shoal("model", "list", "--address", server.address, cwd=tmp_path)
    assert "token" in error_line(result)
    environment = {"SHOAL_TOKEN": "s3cr3t", "SHOAL_ADDRESS": server.address}
    assert run_shoal("model", "list", cwd=tmp_path, environment=environment).code == 0


def test_up_with_tls_serves_and_searches_by_image(
    start_server: Any, tmp_path: Path, one_picture: bytes, run_shoal: Run
) -> None:
    """With a certificate for another name than loopback, image queries still find the embedder."""
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(tmp_path / "cert.pem", append=True)
    cert, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    server = start_server(tmp_path / "up", "--tls-cert", cert, "--tls-key", key, "--token", "t")
    port = server.address.rpartition(":")[2]
    (tmp_path / "one.png").write_bytes(one_picture)
    environment = {
        "SHOAL_ADDRESS": f"localhost:{port}",
        "SHOAL_TOKEN": "t",
        "SHOAL_TLS_CA": str(tmp_path / "ca.pem"),
    }
    for command in (["ingest", "one.png"], ["search", "one.png"]):
        result = run_shoal(*command, cwd=tmp_path, environment=environment)
        assert result.code == 0, result.stderr
    assert "1.0000" in result.stdout
