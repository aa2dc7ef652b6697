"""``shoal up`` and the errors at the prompt: one clear line each."""

from __future__ import annotations

import io
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from encoders import other_encoder
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image
from websites import Page, web_server

from embedder.config import EmbedderConfig
from embedder.encoding.artefact import bundled_artefact
from shoal.app.config import LocalConfig
from shoal.app.local import background
from shoal.client import Client
from shoal.errors import Unauthenticated
from shoal.rpc.config import ServerConfig
from shoal.store import StoreConfig, VectorInfo, open_store

Run = Callable[..., Any]
LOOPBACK = ServerConfig(address="127.0.0.1:0")


def error_line(result: Any, *, code: int = 1) -> str:
    """The one line of a failed command."""
    assert result.code == code, result.stderr
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("shoal: error: ")
    return str(line)


def test_no_server_is_one_line_with_the_address(
    in_process: Run, run_shoal: Run, tmp_path: Path
) -> None:
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
        result = in_process(*command, "--address", "127.0.0.1:9")
        assert "127.0.0.1:9" in error_line(result)


def test_no_such_file_is_one_line_before_anything_is_sent(shoal: Run, tmp_path: Path) -> None:
    """A missing file among the arguments stops all of them, by name."""
    (tmp_path / "x.png").write_bytes(b"x")
    line = error_line(shoal("ingest", "x.png", "gone.png", "--collection", "never"))
    assert line == "shoal: error: no such file or directory: gone.png"
    assert "gone.png" in error_line(shoal("search", "gone.png"))
    assert "never" in error_line(shoal("clusters", "--collection", "never"))


@pytest.fixture(scope="module")
def web(pictures_64: tuple[bytes, bytes]) -> Iterator[Any]:
    """A web server with a picture."""
    with web_server({"/a.png": Page(pictures_64[0])}) as found:
        yield found


@pytest.fixture(scope="module")
def pictures_64() -> tuple[bytes, bytes]:
    """Two pictures with few bytes: of 63 x 64 and of 64 x 64 pixels."""
    made = []
    for height in (63, 64):
        out = io.BytesIO()
        Image.new("RGB", (64, height), (200, 30, 30)).save(out, "PNG")
        made.append(out.getvalue())
    return made[0], made[1]


@pytest.fixture(scope="module")
def told(start_server: Any, tmp_path_factory: pytest.TempPathFactory, web: Any) -> Any:
    """A server that was told much: whom it lets in, what images may be, where they may lie."""
    return start_server(
        tmp_path_factory.mktemp("told"),
        *("--token", "s3cr3t", "--token", "0ther", "--log-format", "json", "--give-up", "77"),
        *("--max-image-bytes", "5000", "--max-image-pixels", "4095", "--run-size", "1"),
        *("--allow-host", f"localhost:{web.port}", "--allow-http", "--allow-private-hosts"),
        *("--allow-files", str(tmp_path_factory.mktemp("allowed"))),
    )


def test_up_reads_images_from_allowed_hosts_and_directories(
    in_process: Run, told: Any, web: Any
) -> None:
    """What --allow-host and --allow-files allow is ingested by its place; the rest is refused."""
    target = ("--address", told.address, "--token", "0ther", "--collection", "places")
    done = in_process("ingest", web.url("/a.png"), *target, "--json")
    assert (done.code, json.loads(done.stdout)["stored"]) == (0, 1), done.stderr
    refused = in_process("ingest", "https://images.test/a.png", *target)
    assert refused.code == 1
    assert "UNSUPPORTED: image.uri: expected a place that this server may read" in refused.stderr
    with Client(told.address, token="s3cr3t") as client:
        assert client.info().uri_schemes == ("file", "http", "https")


def test_up_holds_images_to_its_limits(
    in_process: Run, told: Any, tmp_path: Path, one_picture: bytes, pictures_64: Any
) -> None:
    """Bytes and pixels are the operator's to set; the others are told which limit it was."""
    (tmp_path / "small.png").write_bytes(pictures_64[0])
    (tmp_path / "wide.png").write_bytes(pictures_64[1])
    (tmp_path / "heavy.png").write_bytes(one_picture + bytes(5000))
    done = in_process("ingest", ".", "--address", told.address, "--token", "s3cr3t", "--json")
    assert done.code == 1
    report = json.loads(done.stdout)
    assert (report["stored"], report["failed"]) == (1, 2)
    by_name = {Path(each["name"]).name: each for each in report["errors"]}
    assert by_name["heavy.png"]["reason"] == "IMAGE_TOO_LARGE"
    assert "5,000" in by_name["heavy.png"]["message"]
    assert by_name["wide.png"]["reason"] == "IMAGE_TOO_MANY_PIXELS"
    assert "4095" in by_name["wide.png"]["message"]


def test_a_sample_past_its_own_bound_is_one_line(in_process: Run) -> None:
    """The clusterer's settings are looked at before a port opens or the store is asked."""
    sizes = ("--sample-size", "10", "--max-sample-size", "5")
    store = ("--store-url", "http://127.0.0.1:9")
    line = error_line(in_process("serve", "clusterer", *store, *sizes))
    assert "sample_size: expected at most max_sample_size, 5, got 10" in line
    overlap = ("--continued-jaccard", "0.4")  # two old clusters could be the new one
    refused = in_process("serve", "clusterer", *store, *overlap)
    assert refused.code == 2
    assert "0.4 is not in the range 0.5<=x<=1" in refused.stderr


def test_locked_store_is_one_line(in_process: Run, server: Any) -> None:
    """A second process on the same directory is refused before it opens a port."""
    arguments = ("up", "--data", str(server.data), "--address", "127.0.0.1:0")
    line = error_line(in_process(*arguments))
    assert str(server.data) in line
    assert str(server.process.pid) in line


def test_collection_of_another_encoder_is_one_line(
    start_server: Any, in_process: Run, pictures: Any, tmp_path: Path
) -> None:
    """Neither storing nor searching mixes encoders; the line names both fingerprints."""
    pictures(tmp_path, ["a.png", "b.png"])
    data = tmp_path / "up"
    data.mkdir()
    with background(LocalConfig(data, EmbedderConfig(run_size=1), LOOPBACK)) as address:
        stored = in_process("ingest", "a.png", "--address", address)
    assert stored.code == 0, stored.stderr

    encoder = other_encoder(tmp_path / "encoder")
    prints = [
        json.loads((directory / "encoder.json").read_text())["fingerprint"][:12]
        for directory in (bundled_artefact(), encoder)
    ]
    second = start_server(data, "--encoder", str(encoder))
    for command in (["ingest", "b.png"], ["search", "b.png"]):
        line = error_line(in_process(*command, "--address", second.address))
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


def test_taken_port_is_one_line(in_process: Run, server: Any) -> None:
    """A port that another process listens on is refused by name."""
    arguments = ("up", "--data", "d", "--address", server.address)
    assert server.address in error_line(in_process(*arguments))


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
    in_process: Run, arguments: list[str], said: str
) -> None:
    """Settings are checked before a port opens; the message says what is wrong."""
    result = in_process("up", "--data", "d", "--log-level", "error", *arguments)
    assert said in error_line(result)


def test_up_stops_cleanly_and_leaves_the_store_usable(start_server: Any, tmp_path: Path) -> None:
    """A signal ends it with status 0 and without a traceback; the next one can start."""
    data = tmp_path / "up"
    ready = tmp_path / "ready"
    for number in (signal.SIGTERM, signal.SIGINT):
        server = start_server(data, "--ready-file", str(ready), "--run-size", "1")
        assert ready.read_text() == f"{server.address}\n"
        server.process.send_signal(number)
        assert server.process.wait(timeout=30) == 0
        assert "Traceback" not in server.log.read_text()
    with open_store(StoreConfig(path=data / "store")) as store:
        assert store.collections() == []


def test_up_leaves_other_peoples_files_alone(in_process: Run, tmp_path: Path) -> None:
    """A directory that is not Shoal's is refused, and so is no name at all; nothing is changed."""
    notes = tmp_path / "scratch" / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("theirs")
    line = error_line(in_process("up", "--data", str(tmp_path), "--log-level", "error"))
    assert line.startswith(f"shoal: error: data directory {tmp_path}: expected an empty directory")
    assert "'scratch'" in line
    for command in (["up"], ["demo"]):
        refused = in_process(*command, "--data", "")
        assert refused.code == 2
        assert "--data" in refused.stderr
        assert "expected a path, got an empty text" in refused.stderr
    assert list(tmp_path.rglob("*")) == [notes.parent, notes]
    assert notes.read_text() == "theirs"


def test_up_marks_a_directory_of_an_earlier_version(tmp_path: Path) -> None:
    """One without a marker goes on working, and gets it; foreign files in it stay."""
    with open_store(StoreConfig(path=tmp_path / "store")) as store:
        store.create_collection("photos", [VectorInfo("tiny", 8, "ab" * 32)])
    (tmp_path / "store" / "shoal.json").unlink()
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "notes.txt").write_text("theirs")
    with (
        background(LocalConfig(tmp_path, server=LOOPBACK)) as address,
        Client(address) as client,
    ):
        assert [each.name for each in client.collections()] == ["photos"]
    assert (tmp_path / "shoal.json").is_file()
    assert (tmp_path / "store" / "shoal.json").is_file()
    assert [each.name for each in (tmp_path / "scratch").iterdir()] == ["notes.txt"]


def test_up_masks_secrets_in_its_log(told: Any, in_process: Run, run_shoal: Run) -> None:
    """The configuration is logged once, with tokens masked; calls need one of them."""
    log = told.log.read_text()
    assert "s3cr3t" not in log
    assert "0ther" not in log
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    (logged,) = (line["config"] for line in lines if "config" in line)
    assert logged["embedder"]["give_up_s"] == 77
    with Client(told.address) as client, pytest.raises(Unauthenticated):
        client.info()
    for token in ("s3cr3t", "0ther"):
        with Client(told.address, token=token) as client:
            assert client.info().encoders
    result = in_process("model", "list", "--address", told.address)
    assert "token" in error_line(result)
    environment = {"SHOAL_TOKEN": "s3cr3t", "SHOAL_ADDRESS": told.address}
    assert run_shoal("model", "list", cwd=Path(), environment=environment).code == 0


def test_up_with_tls_serves_and_searches_by_image(
    start_server: Any, tmp_path: Path, one_picture: bytes, in_process: Run
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
    target = (
        *("--address", f"localhost:{port}", "--token", "t"),
        *("--tls-ca", str(tmp_path / "ca.pem")),
    )
    for command in (["ingest", "one.png"], ["search", "one.png"]):
        result = in_process(*command, *target)
        assert result.code == 0, result.stderr
    assert "1.0000" in result.stdout


def test_up_on_a_full_disk_reads_and_says_so(
    start_server: Any, in_process: Run, tmp_path: Path, one_picture: bytes
) -> None:
    """Writes are refused with the numbers, also after a start; a health name tells it."""
    (tmp_path / "one.png").write_bytes(one_picture)
    server = start_server(tmp_path / "up", "--run-size", "1")
    target = ("--address", server.address)
    assert in_process("ingest", str(tmp_path / "one.png"), *target).code == 0
    server.stop()

    server = start_server(tmp_path / "up", "--run-size", "1", "--min-free-mib", str(10**9))
    target = ("--address", server.address)
    found = in_process("search", str(tmp_path / "one.png"), *target)
    assert (found.code, "1.0000" in found.stdout) == (0, True), found.stderr
    (tmp_path / "two.png").write_bytes(one_picture)
    refused = in_process("ingest", str(tmp_path / "two.png"), *target)
    assert refused.code == 1
    assert "DISK_FULL" in refused.stderr
    assert "expected at least 1,000,000,000 MiB free, got " in refused.stderr
    with grpc.insecure_channel(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        statuses = [
            stub.Check(health_pb2.HealthCheckRequest(service=name)).status
            for name in ("shoal.writes", "", "shoal.v1.EmbedderService")
        ]
    serving = health_pb2.HealthCheckResponse.SERVING
    assert statuses == [health_pb2.HealthCheckResponse.NOT_SERVING, serving, serving]
    server.stop()
