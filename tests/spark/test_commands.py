"""``--engine spark`` as a process of its own: what it prints, and what a Ctrl-C leaves."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner
from pond import Pond
from reclustering import blobs
from standalone import PYTHONPATH, SETTINGS

from shoal.app.cli import main
from shoal.store.clusterings import Clusterings

N = 600


def command(pond: Pond, *arguments: str, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """``shoal cluster --engine spark`` on two threads, over the pond's store."""
    settings = {k: v for k, v in SETTINGS.items() if k != "spark.executor.memory"}
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "shoal", "cluster", "-k", "5", "--engine", "spark"),
            *("--n-init", "1", "--store-url", str(pond.place.url)),
            *("--store-grpc-port", str(pond.place.grpc_port), "--collection", pond.name),
            *("--spark-master", "local[2]"),
            *(part for k, v in settings.items() for part in ("--spark-conf", f"{k}={v}")),
            *arguments,
        ],
        env={**environment, "PYTHONPATH": PYTHONPATH},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_command_prints_the_run_and_nothing_of_spark(
    pond: Pond, spark_environment: dict[str, str]
) -> None:
    """Stdout has the run as JSON, stderr its stages, a line each; Spark's log is in neither."""
    ids = pond.put(blobs(N))
    with command(pond, "--json", environment=spark_environment) as process:
        out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err.decode()
    run = json.loads(out)
    assert (run["state"], run["points_written"]) == ("succeeded", N)
    assert set(err.decode().splitlines()) <= {
        f"shoal: {stage}" for stage in ("sample", "fit", "assign", "plan", "write", "cutover")
    }
    assert None not in pond.of(ids)


def test_interrupted_command_gives_the_lease_back(
    pond: Pond, spark_environment: dict[str, str]
) -> None:
    """After a Ctrl-C: exit 130, a cancelled run, a free lease, and nothing changed."""
    pond.put(blobs(N))
    with command(pond, environment=spark_environment) as process:
        until = time.monotonic() + 100
        while not pond.state.lease.run:
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err.decode()
    assert err.decode().splitlines()[-1].startswith("shoal: interrupted; run ")
    assert (pond.state.lease.run, pond.state.pointer.active_run) == ("", "")
    (record,) = Clusterings(pond.store, pond.name).runs()
    assert record["record"]["state"] == "RUN_STATE_CANCELLED"  # type: ignore[index,call-overload]
    assert set(pond.labels("a").values()) == {None}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["cluster", "-k", "5", "--engine", "spark"], "--store-url"),
        (["cluster", "-k", "5", "--bisecting"], "--engine spark"),
        (
            ["cluster", "-k", "5", "--engine", "spark", "--store-url", "http://x", "--no-wait"],
            "wait",
        ),
        (["cluster", "-k", "5", "--engine", "spark", "--spark-conf", "a=b"], "spark.NAME=VALUE"),
        (["ingest", ".", "--engine", "spark"], "--store-url"),
    ],
)
def test_wrong_usage_is_told_before_anything_starts(arguments: list[str], says: str) -> None:
    """Options that contradict each other: exit status 2."""
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert says in result.output
