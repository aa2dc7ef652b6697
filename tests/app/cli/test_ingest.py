"""``shoal ingest`` against a real ``shoal up``: counts, failures by name, resuming."""

from __future__ import annotations

import io
import json
import os
import signal
import struct
import subprocess
import sys
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest

from shoal import errors
from shoal.client import Client
from shoal.rpc.status import item_error
from shoal.v1 import embedder_pb2, embedder_pb2_grpc


def png_claiming(width: int, height: int) -> bytes:
    """A PNG whose header claims this size, with hardly any pixels behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


Run = Callable[..., Any]


def ingest_json(shoal: Run, *arguments: str, stdin: bytes = b"") -> tuple[int, dict[str, Any]]:
    result = shoal("ingest", *arguments, "--json", stdin=stdin)
    assert result.stdout, result.stderr
    return result.code, json.loads(result.stdout)


def test_ingest_again_changes_nothing(shoal: Run, tmp_path: Path, pictures: Any) -> None:
    """The same directory twice: stored, then unchanged; one changed file is updated."""
    folder = pictures(tmp_path / "p", [f"{i}.png" for i in range(5)])
    arguments = ("p", "--collection", "again", "--field", "year=2024")
    code, first = ingest_json(shoal, *arguments)
    assert (code, first["stored"], first["failed"]) == (0, 5, 0)
    code, second = ingest_json(shoal, *arguments)
    assert (code, second["stored"], second["unchanged"]) == (0, 0, 5)
    (folder / "0.png").write_bytes((folder / "1.png").read_bytes())
    code, third = ingest_json(shoal, *arguments)
    assert (code, third["updated"], third["unchanged"]) == (0, 1, 4)


def test_ingest_names_each_bad_image_and_stores_the_good_ones(
    shoal: Run, tmp_path: Path, pictures: Any, server: Any
) -> None:
    """A truncated, an empty, a text and a giant file fail by name with their reasons."""
    folder = pictures(tmp_path / "p", ["1.jpg", "2.png", "3.jpg"])
    (folder / "truncated.jpg").write_bytes((folder / "1.jpg").read_bytes()[:300])
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("this is no image, whatever it is called")
    (folder / "giant.png").write_bytes(png_claiming(50_000, 50_000))
    result = shoal("ingest", "p", "--collection", "bad", "--json")
    report = json.loads(result.stdout)
    assert (result.code, report["stored"], report["failed"]) == (1, 3, 4)
    reasons = {Path(each["name"]).name: each["reason"] for each in report["errors"]}
    assert reasons == {
        "truncated.jpg": "IMAGE_CORRUPT",
        "empty.jpg": "IMAGE_EMPTY",
        "text.jpg": "IMAGE_UNSUPPORTED_FORMAT",
        "giant.png": "IMAGE_TOO_MANY_PIXELS",
    }
    lines = result.stderr.splitlines()
    for name, reason in reasons.items():
        assert sum(line.startswith(f"p/{name}: {reason}: ") for line in lines) == 1
    with Client(server.address) as client:
        assert client.collection("bad").points == 3


def test_ingest_reads_tars_and_manifests_alike(
    shoal: Run, tmp_path: Path, pictures: Any, server: Any
) -> None:
    """A tar, a manifest file and a manifest on stdin store what their files would."""
    folder = pictures(tmp_path / "p", ["1.png", "2.png"])
    with tarfile.open(tmp_path / "t.tar.gz", "w:gz") as tar:
        tar.add(folder, "inside")
    line = {"path": "p/1.png", "key": "mine", "source": "cam", "payload": {"n": 7}}
    (tmp_path / "m.jsonl").write_text(json.dumps(line))
    collection = ("--collection", "kinds")
    assert ingest_json(shoal, "t.tar.gz", *collection)[1]["stored"] == 2
    assert ingest_json(shoal, "m.jsonl", *collection)[1]["stored"] == 1
    code, report = ingest_json(shoal, "-", *collection, stdin=json.dumps(line).encode())
    assert (code, report["unchanged"]) == (0, 1)
    with Client(server.address) as client:
        point = client.point("mine", collection="kinds")
        assert point.payload["n"] == 7
        assert point.payload["source"] == "cam"
        assert point.payload["uri"] == (folder / "1.png").as_uri()
        assert client.collection("kinds").points == 3


def test_ingest_summary_is_one_line_on_stdout(shoal: Run, tmp_path: Path, pictures: Any) -> None:
    """Without --json, stdout has the counts and the rate, and stderr is silent."""
    pictures(tmp_path / "p", ["1.png"])
    result = shoal("ingest", "p", "--collection", "summary")
    assert result.stdout.startswith("stored 1, updated 0, unchanged 0, failed 0 in ")
    assert result.stdout.endswith(" images/s)\n")
    assert result.stderr == ""


def test_ingest_progress_is_on_stderr(shoal: Run, tmp_path: Path, pictures: Any) -> None:
    """A progress bar, where asked for, counts to the total and stays off stdout."""
    pictures(tmp_path / "p", ["1.png", "2.png"])
    result = shoal("ingest", "p", "--collection", "progress", "--progress")
    assert "2/2" in result.stderr
    assert result.stdout.count("\n") == 1


def test_ingest_of_nothing_says_so(shoal: Run, tmp_path: Path) -> None:
    """A directory without images is no error, but is told."""
    (tmp_path / "p").mkdir()
    result = shoal("ingest", "p", "--collection", "nothing")
    assert result.code == 0
    assert result.stderr == "shoal: no images in p\n"


def test_ingest_again_with_other_fields(
    shoal: Run, tmp_path: Path, pictures: Any, server: Any
) -> None:
    """Fields are those of the last time; with --merge-fields the others stay, and null removes."""
    pictures(tmp_path, ["1.png"])
    with Client(server.address) as client:

        def fields(*arguments: str) -> dict[str, Any]:
            code, _ = ingest_json(
                shoal, "1.png", "--collection", "merged", "--keys", "name", *arguments
            )
            assert code == 0
            payload = client.point("1.png", collection="merged").payload
            return {name: payload[name] for name in ("a", "b", "c", "source") if name in payload}

        first = fields("--field", "a=1", "--field", "b=2", "--source", "cam")
        assert first == {"a": 1, "b": 2, "source": "cam"}
        merged = fields("--merge-fields", "--field", "c=3", "--field", "b=null")
        assert merged == {"a": 1, "c": 3, "source": "cam"}
        assert fields("--field", "c=3") == {"c": 3}


def test_ingest_of_a_long_path_in_any_script(shoal: Run, tmp_path: Path, pictures: Any) -> None:
    """2,700 letters as a URI, and some bytes that are no UTF-8: as the file system allows."""
    name = "/".join(["写真" * 30] * 5) + "/caf\udce9 #?%.png"
    pictures(tmp_path, ["1.png"])
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / "1.png").rename(tmp_path / name)
    for keys in ("uri", "name"):
        for again in ("stored", "unchanged"):
            arguments = ("写真" * 30, "--keys", keys, "--collection", f"long-{keys}")
            code, report = ingest_json(shoal, *arguments)
            assert (code, report[again]) == (0, 1)
    found = shoal("search", name, "--collection", "long-uri", "--json")
    (hit,) = json.loads(found.stdout)["hits"]
    assert hit["payload"]["uri"] == (tmp_path / name).as_uri()
    assert len(hit["payload"]["uri"]) > 2700
    by_uri = shoal("search", (tmp_path / name).as_uri(), "--collection", "long-uri", "--json")
    assert json.loads(by_uri.stdout)["hits"][0]["id"] == hit["id"]


def test_ingest_tells_what_it_leaves_out(shoal: Run, tmp_path: Path, pictures: Any) -> None:
    """On stderr and in --json, by reason; with --strict the exit status is 1, all being stored."""
    folder = pictures(tmp_path / "p", ["1.png", "2.jpg"])
    (folder / "2.jpg").rename(folder / "2")
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").touch()
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        tar.add(folder / "notes.txt", "notes.txt")
    said = (
        "shoal: left out 3: 2 not an image (such as p/notes.txt); 1 hidden (such as p/.hidden.png)"
    )
    arguments = ("ingest", "p", "t.tar", "--collection", "left-out")
    told = shoal(*arguments)
    assert (told.code, told.stderr) == (0, f"{said}\n")
    assert told.stdout.startswith("stored 2, ")
    strict = shoal(*arguments, "--strict", "--json")
    assert (strict.code, strict.stderr) == (1, f"{said}: --strict\n")
    assert json.loads(strict.stdout)["left_out"] == {"hidden": 1, "not_an_image": 2}
    (folder / "notes.txt").unlink()
    (folder / ".hidden.png").unlink()
    clean = shoal(*arguments[:2], *arguments[3:], "--strict")
    assert (clean.code, clean.stderr) == (0, "")


def start_endless_ingest(
    address: str, cwd: Path, picture: bytes, *, collection: str = "endless"
) -> subprocess.Popen[bytes]:
    """An ingestion of images that never ends, from a manifest on a pipe that stays open."""
    (cwd / "one.png").write_bytes(picture)
    return subprocess.Popen(
        [sys.executable, "-m", "shoal", "ingest", "-", "--collection", collection],
        cwd=cwd,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "SHOAL_ADDRESS": address, "PYTHONPATH": str(Path(__file__).parents[3])},
    )


def wait_for_points(address: str, *, collection: str, at_least: int) -> None:
    deadline = time.monotonic() + 30
    with Client(address) as client:
        while time.monotonic() < deadline:
            if any(
                each.name == collection and each.points >= at_least for each in client.collections()
            ):
                return
            time.sleep(0.05)
    pytest.fail(f"{collection} did not reach {at_least} points")


def send_lines(process: subprocess.Popen[bytes], count: int) -> None:
    stdin = process.stdin
    assert isinstance(stdin, io.BufferedWriter)
    for index in range(count):
        stdin.write(json.dumps({"path": "one.png", "key": str(index)}).encode() + b"\n")
    stdin.flush()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ingest_interrupted_tells_what_is_stored_and_how_to_resume(
    server: Any, tmp_path: Path, one_picture: bytes, number: signal.Signals
) -> None:
    """Ctrl-C, kill and a terminal that goes away end in one line, with the status of shells."""
    name = f"endless-{number}"
    process = start_endless_ingest(server.address, tmp_path, one_picture, collection=name)
    send_lines(process, 3)
    wait_for_points(server.address, collection=name, at_least=3)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert stderr.decode() == (
        "shoal: interrupted: 3 images are stored; run the same command again to resume\n"
    )


def test_ingest_interrupted_while_stdin_stays_open_does_not_crash(
    server: Any, tmp_path: Path, one_picture: bytes
) -> None:
    """The program ends in order even though a thread still waits for stdin."""
    process = start_endless_ingest(server.address, tmp_path, one_picture, collection="waiting")
    send_lines(process, 3)
    wait_for_points(server.address, collection="waiting", at_least=3)
    process.send_signal(signal.SIGINT)
    code = process.wait(timeout=30)  # stdin is still open
    _, stderr = process.communicate(timeout=30)
    assert (code, len(stderr.decode().splitlines())) == (130, 1), stderr.decode()


class Busy(embedder_pb2_grpc.EmbedderServiceServicer):
    """Refuses each image: "busy..." for now, anything else for good."""

    def GetInfo(self, request: Any, context: grpc.ServicerContext) -> Any:
        return embedder_pb2.GetInfoResponse()

    def Ingest(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        for request in requests:
            error: errors.ShoalError = errors.ImageCorrupt("bad")
            if request.image.data.startswith(b"busy"):
                error = errors.StoreUnavailable("the store is away")
            yield embedder_pb2.IngestResponse(sequence=request.sequence, error=item_error(error))


@pytest.fixture
def busy() -> Iterator[str]:
    """The address of a server that stores nothing."""
    server = grpc.server(futures.ThreadPoolExecutor(2))
    embedder_pb2_grpc.add_EmbedderServiceServicer_to_server(Busy(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(0).wait()


@pytest.mark.parametrize(
    ("data", "hint"),
    [
        (
            b"busy",
            ["shoal: 1 of the failures may be temporary; run the same command again to retry"],
        ),
        (b"bad", []),
    ],
)
def test_ingest_tells_when_running_it_again_may_help(
    run_shoal: Run, busy: str, tmp_path: Path, data: bytes, hint: list[str]
) -> None:
    """Failures that may be temporary are counted at the end; for others, nothing is promised."""
    (tmp_path / "1.png").write_bytes(data)
    (tmp_path / "2.png").write_bytes(b"bad")
    result = run_shoal("ingest", ".", "--address", busy, cwd=tmp_path)
    assert result.code == 1
    assert result.stderr.splitlines()[2:] == hint


def test_ingest_of_a_damaged_tar_exits_1(shoal: Run, tmp_path: Path, pictures: Any) -> None:
    """The images before the damage are stored, and the tar is named."""
    folder = pictures(tmp_path / "p", ["1.png", "2.png"])
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        tar.add(folder / "1.png", "1.png")
        end = tar.offset
        tar.add(folder / "2.png", "2.png")
    (tmp_path / "t.tar").write_bytes((tmp_path / "t.tar").read_bytes()[:end])
    code, report = ingest_json(shoal, "t.tar", "--collection", "damaged")
    assert (code, report["stored"], report["failed"]) == (1, 1, 1)
    assert report["errors"][0]["name"] == "t.tar"


def test_ingest_when_the_server_dies_tells_what_is_stored(
    start_server: Any, tmp_path: Path, one_picture: bytes
) -> None:
    """A broken connection is one line with the count, and exit status 1."""
    server = start_server(tmp_path / "up")
    process = start_endless_ingest(server.address, tmp_path, one_picture)
    send_lines(process, 3)
    wait_for_points(server.address, collection="endless", at_least=3)
    server.process.kill()
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 1
    (line,) = stderr.decode().splitlines()
    lost = f"shoal: error: lost the Shoal server at {server.address}: the connection was "
    assert line.startswith(lost)
    assert line.endswith("(3 images are stored; run the same command again to resume)")


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (("ingest", ".", "--encoder", "x"), "--encoder"),
        (("ingest", ".", "--store-url", "http://qdrant:6333"), "--store-url"),
        (("cluster", "-k", "2", "--spark-conf", "spark.a=b"), "--spark-conf"),
        (("cluster", "-k", "2", "--bisecting"), "--bisecting"),
    ],
)
def test_options_of_spark_without_spark_are_refused(
    shoal: Any, arguments: tuple[str, ...], flag: str
) -> None:
    """None is taken and then ignored."""
    result = shoal(*arguments)
    assert (result.code, f"{flag} is for --engine spark" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        ("ingest", "--window"),
        ("ingest", "--streams"),
        ("ingest", "--token"),
        ("cluster", "--token"),
    ],
)
def test_options_of_calls_are_refused_with_spark(run_shoal: Any, command: str, flag: str) -> None:
    """Spark's executors open the store by themselves: there is no server, and no stream to one."""
    spark = ("--engine", "spark", "--store-url", "http://qdrant:6333")
    what = {"ingest": ["."], "cluster": ["-k", "2"]}[command]
    result = run_shoal(command, *what, *spark, flag, "2", cwd=Path())
    assert (result.code, f"{flag} is for --engine local" in result.stderr) == (2, True)
