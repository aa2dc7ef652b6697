from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from stand_in import qdrant_server

from embedder.encoding.artefact import bundled_artefact
from shoal.app.bench import overload
from shoal.app.bench.callers import Flow, callers
from shoal.app.bench.embed import ceiling, drop
from shoal.app.bench.rounds import Row
from shoal.errors import OperatorError, ServiceUnavailable
from shoal.store import StoreConfig, open_store
from shoal.v1 import embedder_pb2_grpc


def test_bench_search_is_exact_and_prints_every_layer(in_process: Any) -> None:
    """A small run has all rows, and in-cluster search misses nothing that brute force finds."""
    size = ["--points", "800", "--dim", "16", "--clusters", "4", "--queries", "20"]
    done = in_process("bench", "search", *size, "--rounds", "1", "--json")
    assert done.code == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["recall"] == 1.0
    names = [row["name"] for row in result["rows"]]
    assert names[:2] == ["engine, in its cluster", "store, in its cluster"]
    assert len(names) == 5
    assert all(len(row["latencies_s"]) == 20 for row in result["rows"])


def test_bench_heads_compares_with_kmeans_on_known_classes(tmp_path: Path, in_process: Any) -> None:
    """Every row has a score per seed, and on clear groups all are right; a bad file is named."""
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 3
    vectors = np.eye(8)[labels] + 0.1 * rng.normal(size=(90, 8))
    views = vectors + 0.05 * rng.normal(size=(2, 90, 8))
    np.savez(tmp_path / "set.npz", vectors=vectors, labels=labels, views=views)
    few = ("--seeds", "2", "--pairs", "both", "--objective", "temi")
    done = in_process("bench", "heads", "set.npz", *few, "--json")
    assert done.code == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [row["name"] for row in rows][-3:] == [
        "temi, both",
        "temi, both: best 2 of 2 by agreement",
        "temi, both: best 2 of 2 by cohesion",
    ]
    assert len(rows) == 7
    for row in rows[:5]:
        assert len(row["scores"]) == 2
        assert min(min(score) for score in row["scores"]) > 0.95
    np.savez(tmp_path / "plain.npz", vectors=vectors, labels=labels)
    plain = in_process("bench", "heads", "plain.npz", "--pairs", "both")
    assert (plain.code, "pairs both: expected views" in plain.stderr) == (1, True)
    np.savez(tmp_path / "bad.npz", vectors=vectors, labels=labels[:3])
    bad = in_process("bench", "heads", "bad.npz")
    assert (bad.code, "expected vectors (N, D), labels (N,)" in bad.stderr) == (1, True)


def test_bench_cluster_prints_its_three_tables(in_process: Any) -> None:
    """A small run has every engine, the stages of two runs beside the store's, and growth."""
    size = ["--points", "1200", "--dim", "16", "-k", "6", "--density", "800"]
    done = in_process("bench", "cluster", *size, "--json")
    assert done.code == 0, done.stderr
    result = json.loads(done.stdout)
    names = " ".join(engine["name"] for engine in result["engines"])
    assert all(word in names for word in ("shoal", "scikit-learn", "MiniBatch", "faiss"))
    assert all(engine["inertia"] > 0 for engine in result["engines"])
    stages = {stage["name"]: stage for stage in result["stages"]}
    assert list(stages) == ["sample", "fit", "assign", "plan", "write", "cutover"]
    assert {name for name, stage in stages.items() if stage["floor_s"]} == {"assign", "write"}
    assert 0.01 <= result["moved_share"] <= 0.03
    assert [row["points"] for row in result["growth"]] == [100, 200, 400, 800]
    assert 0 < result["before_mib"] <= result["peak_mib"]
    assert result["fit_mib"] > 20
    assert result["newcomers_s"] > 0


def test_bench_decode_compares_what_is_served_with_its_parts(
    in_process: Any,
) -> None:
    """A row each for serving, the batch and Pillow alone; what is not installed is named."""
    done = in_process("bench", "decode", "--count", "3", "--rounds", "1", "--json")
    assert done.code == 0, done.stderr
    result = json.loads(done.stdout)
    names = [row["name"] for row in result["rows"]]
    assert names[:4] == [
        "as served: decode, resize, crop",
        "copy into the batch",
        "Pillow, decode",
        "Pillow, decode, resize",
    ]
    assert all(row["rates"][0] > 0 for row in result["rows"])
    for package, word in (("opencv-python-headless", "OpenCV"), ("simplejpeg", "simplejpeg")):
        assert (package in result["missing"]) != any(word in name for name in names)


def test_bench_embed_ceiling_follows_from_its_rows(in_process: Any) -> None:
    """The ceiling is 1 / (1/bare + 1/decode) of the same run, and each row has its rate."""
    done = in_process("bench", "embed", "--count", "6", "--rounds", "1", "--json")
    assert done.code == 0, done.stderr
    result = json.loads(done.stdout)
    rates = {row["name"]: row["rates"][0] for row in result["rows"]}
    bare = max(rate for name, rate in rates.items() if name.startswith("bare session"))
    assert result["ceiling"] == pytest.approx(1 / (1 / bare + 1 / rates["decode only"]))
    assert len(rates) == 6
    assert result["resident_mib"] > 50


def test_bench_keeps_what_it_measured_if_the_store_cannot_be_cleared(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What is left behind is named; a collection that was never made is no trouble."""
    with qdrant_server() as (url, port):
        drop(StoreConfig(url=url, grpc_port=port), ["never-made"])
    assert caplog.messages == []
    drop(StoreConfig(url="http://127.0.0.1:1", grpc_port=1, timeout_s=1), ["left"])
    assert [message for message in caplog.messages if "collection left is left" in message]


def test_bench_embed_of_several_processes(in_process: Any) -> None:
    """Their rows come beside the others: decoding, calls of one image, of 16, and ingestion.

    The ceiling is that of the faster way to decode. Nothing is left in the store.
    """
    command = ("bench", "embed", "--count", "20", "--rounds", "1", "--processes", "2", "--json")
    with qdrant_server() as (url, port):
        store = ("--store-url", url, "--store-grpc-port", str(port))
        done = in_process(*command, *store)
        with open_store(StoreConfig(url=url, grpc_port=port)) as opened:
            left = opened.collections()
    assert done.code == 0, done.stderr
    assert left == []
    result = json.loads(done.stdout)
    rows = {row["name"]: row for row in result["rows"]}
    assert len(rows) == 10
    calls = {name: len(row["latencies_s"]) for name, row in rows.items() if "2 processes" in name}
    decoding = max(rows[f"decode only{more}"]["rates"][0] for more in ("", ", 2 processes"))
    bare = result["bare"]["rates"][0]
    assert result["ceiling"] == pytest.approx(1 / (1 / bare + 1 / decoding))
    assert calls == {
        "decode only, 2 processes": 0,
        "gRPC Embed, 2 processes": 20,
        "gRPC Embed of 16, 2 processes": 2,
        "gRPC Ingest, 2 processes": 20,
    }


@pytest.mark.parametrize("command", ["embed", "decode"])
def test_bench_names_a_file_that_does_not_decode(
    tmp_path: Path, in_process: Any, pictures: Any, command: str
) -> None:
    """Before anything is measured, and in one line."""
    folder = pictures(tmp_path / "p", ["a.jpg", "b.jpg"])
    (folder / "b.jpg").write_bytes((folder / "b.jpg").read_bytes()[:500])
    done = in_process("bench", command, "--images", "p", "--count", "2")
    assert done.code == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("shoal: error: --images p/b.jpg: ")
    assert not done.stdout


def test_callers_raise_what_a_call_raised() -> None:
    """A server that is not there is an error of the bench, not a row."""
    with callers("127.0.0.1:1", [b"image"], 2) as crowd, pytest.raises(ServiceUnavailable):
        crowd.embed(1, 1)


def test_callers_tell_that_a_process_died() -> None:
    """One that is killed, as for its memory, before an order or during it."""
    with callers("127.0.0.1:1", [b"image"], 2) as crowd:
        first, *_ = multiprocessing.active_children()
        first.kill()
        with pytest.raises(OperatorError, match=r"client process .* died \(exit code -9\)"):
            crowd.embed(1, 1)


def test_callers_can_be_interrupted_while_they_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C during an ingestion without answers: its process is ended, not waited for."""
    monkeypatch.setattr("shoal.app.bench.callers._LEAVE_S", 0.5)
    stopped = threading.Event()

    class Silent(embedder_pb2_grpc.EmbedderServiceServicer):
        def Ingest(self, requests: Any, context: Any) -> Any:
            next(requests)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            stopped.wait()
            return iter(())

    server = grpc.server(ThreadPoolExecutor(1))
    embedder_pb2_grpc.add_EmbedderServiceServicer_to_server(Silent(), server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    with pytest.raises(KeyboardInterrupt), callers(address, [b"image"], 1) as crowd:  # noqa: PT012
        (process,) = multiprocessing.active_children()
        crowd.ingest("images", Flow())
    stopped.set()
    server.stop(0).wait()
    assert process.exitcode == -signal.SIGKILL


def test_ceiling_beside_a_gpu_is_the_lower_rate() -> None:
    """Where decoding and the model use different hardware, the slower one decides."""
    assert ceiling(100, 400, shared=True) == pytest.approx(80)
    assert ceiling(100, 400, shared=False) == 100
    assert ceiling(400, 100, shared=False) == 100


def test_gpu_script_runs_dry_on_a_cpu(tmp_path: Path) -> None:
    """The script that measures on a GPU, on a CPU that pretends, with a model that is there.

    All processes go the way of a GPU: warm-up, decoding apart, batches filled up to their sizes,
    and vectors that are right, or no encoder would open. Without pretending it is refused.
    """
    model = tmp_path / "ready"
    shutil.copytree(bundled_artefact(), model)
    script = Path(__file__).parents[3] / "deploy" / "bench-gpu.sh"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("SHOAL_")},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "MODELS": "ready",
        "PYTHONPATH": str(Path(__file__).parents[2] / "support" / "pretend_gpu"),
        "DIRECTORY": str(tmp_path),
        "COUNT": "6",
        "ROUNDS": "1",
        "PROCESSES": "2",
    }
    done = subprocess.run([script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "gRPC Ingest, stored" in done.stdout
    assert "gRPC Embed, 2 processes" in done.stdout
    assert "efficientnet-lite0 (CUDAExecutionProvider)" in done.stderr
    assert "ceiling = the lower of bare and decode" in done.stderr
    nothing = {**environment, "PYTHONPATH": ""}
    refused = subprocess.run([script], env=nothing, capture_output=True, text=True, check=False)
    assert refused.returncode != 0
    assert "CUDAExecutionProvider" in refused.stderr


def test_bench_wrong_size_is_one_line(in_process: Any) -> None:
    """More clusters than points is refused before anything is started."""
    done = in_process("bench", "search", "--points", "100", "--clusters", "101")
    assert done.code == 1
    assert done.stderr.splitlines() == [
        "shoal: error: --clusters: expected at most 100 (--points), got 101"
    ]


def test_bench_soak_answers_every_image_once(in_process: Any) -> None:
    """A short soak: thousands of answers would be better, hundreds show that nothing is lost."""
    result = in_process("bench", "soak", "--minutes", "0.15", "--json")
    assert result.code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["answered"] > 100
    assert 0 < found["poisoned"] < 0.2 * found["answered"]
    assert found["cancelled"] > 0
    assert found["slow"] > 0
    assert found["resident_mib"] > 50


def test_bench_overload_prints_the_callers_beside_the_flood(
    in_process: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both phases, their ratio and the memory; what it floods with was decoded, or refused."""
    monkeypatch.setattr(overload, "_WARM_UP_S", 0.1)
    monkeypatch.setattr(overload, "_AWAY_S", 1.0)
    monkeypatch.setattr(overload, "PER_CALL", 2)
    result = in_process("bench", "overload", "--seconds", "2", "--json")
    assert result.code == 0, result.stderr
    found = json.loads(result.stdout)
    alone, beside = found["rows"]
    assert min(len(alone["latencies_s"]), len(beside["latencies_s"])) > 4
    assert found["ratio"] > 0
    assert found["flooded"] + found["refused"] > 0
    assert 50 < found["before_mib"] < found["peak_mib"]
    assert found["after_mib"] > 50


def test_bench_overload_fails_where_others_wait_too_long() -> None:
    """The ratio of both p99s, over enough calls; too few calls are not judged."""
    calls = overload.MEASURED_CALLS
    alone = Row("alone", [], [0.1] * calls)
    assert overload._ratio(alone, Row("beside", [], [0.3] * calls)) == pytest.approx(3)
    with pytest.raises(OperatorError, match="is 310 ms, alone 100: expected at most 3 times"):
        overload._ratio(alone, Row("beside", [], [0.31] * calls))
    few = Row("beside", [], [0.5] * (calls - 1))
    assert overload._ratio(alone, few) == pytest.approx(5)
    with pytest.raises(OperatorError, match="no call was answered"):
        overload._ratio(Row("alone", [], []), few)


def test_bench_train_prints_the_training_beside_its_products(
    in_process: Any,
) -> None:
    """Both rows, and a training that takes longer than its products alone."""
    arguments = ("--points", "600", "--dim", "16", "-k", "3", "--epochs", "2", "--json")
    result = in_process("bench", "train", *arguments)
    assert result.code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["steps"] == 2
    assert found["training_s"] > 0
    assert found["products_s"] > 0
    assert found["ratio"] == pytest.approx(found["training_s"] / found["products_s"])
    # Rows of both views x weights: three products each, two in the first layer.
    weights = 6 * (3 * 512 * 512 + 512 * 3) + 4 * 16 * 512
    assert found["gflop"] == pytest.approx(2 * 1024 * weights / 1e9)
