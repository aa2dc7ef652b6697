"""An open Spark application: jobs that can be stopped, and errors of one line.

The only module here that imports pyspark. A job runs in a thread of its own under a job group, so
that whoever waits for it can look around, and stop it, ten times a second.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

from shoal.errors import ConfigError, OperatorError, ShoalError
from shoal.spark.config import SparkConfig
from shoal.spark.failures import Failure, guarded, marked, merged

T = TypeVar("T")
R = TypeVar("R")

Progress = Callable[[int, int], object]
"""A listener that gets the number of tasks that are done, and the number of all tasks."""

_POLL_S = 0.1
_DEPTH = 3
"""Levels of a reduction: results may be tens of megabytes, and a job may have thousands."""
_TAIL_CHARS = 300
_WRONG = re.compile(r"Error|Exception|[Nn]o such|not (?:set|found)")
_JAVA = re.compile(r"Java gateway|JAVA_GATEWAY")


class SparkCluster:
    """Runs jobs. Made by ``open_spark``; not thread-safe."""

    def __init__(self, context: Any) -> None:
        self.context = context
        self._groups = itertools.count()
        self._scratch = tempfile.TemporaryDirectory(prefix="shoal-spark-")

    @property
    def session(self) -> Any:
        """The SparkSession, for jobs on data frames."""
        from pyspark.sql import SparkSession  # noqa: PLC0415 - an extra

        return SparkSession(self.context)

    @property
    def parallelism(self) -> int:
        """The number of tasks that run at once, as far as Spark knows by now; at least 1."""
        return max(1, int(self.context.defaultParallelism))

    def map(
        self,
        function: Callable[[T], R],
        items: Sequence[T],
        *,
        check: Callable[[], object],
        progress: Progress | None = None,
    ) -> list[R]:
        """The results of ``function`` for ``items``, in their order; each item is a task.

        Both must be picklable. Spark repeats a task whose executor died, or that raised a
        TransientError. ``check`` is called often; an exception that it raises stops the job.

        Raises:
            ShoalError: a task raised it, or Spark failed.
        """
        context, call = self.context, guarded(function)
        found = self.run(
            lambda: context.parallelize(list(items), len(items)).map(call).collect(),
            check=check,
            progress=progress,
        )
        for result in found:
            if isinstance(result, Failure):
                raise result.error()
        return list(found)

    def reduce(
        self,
        function: Callable[[T], R],
        merge: Callable[[R, R], R],
        items: Sequence[T],
        *,
        check: Callable[[], object],
        progress: Progress | None = None,
    ) -> R:
        """The results of ``function`` for ``items``, merged pairwise, mostly in executors.

        The driver holds about as many at once as the cube root of their number. Raises as ``map``.
        """
        context, call, join = self.context, guarded(function), merged(merge)
        found = self.run(
            lambda: context.parallelize(list(items), len(items)).map(call).treeReduce(join, _DEPTH),
            check=check,
            progress=progress,
        )
        if isinstance(found, Failure):
            raise found.error()
        return found  # type: ignore[no-any-return]

    def run(
        self,
        job: Callable[[], R],
        *,
        check: Callable[[], object],
        progress: Progress | None = None,
    ) -> R:
        """The result of ``job``, which may start any number of Spark jobs.

        Raises:
            ShoalError: of a task, or OperatorError where Spark itself failed.
        """
        group = f"shoal-{next(self._groups)}"
        outcome: _Outcome[R] = _Outcome()

        def work() -> None:
            try:
                self.context.setJobGroup(group, "shoal", interruptOnCancel=True)
                outcome.value = job()
            except BaseException as exc:  # noqa: BLE001 - handed to the thread that waits
                outcome.error = exc

        thread = threading.Thread(target=work, name=group, daemon=True)
        thread.start()
        try:
            while thread.is_alive():
                thread.join(_POLL_S)
                check()
                if progress is not None:
                    progress(*self._tasks(group))
        except BaseException:
            while thread.is_alive():  # a fit has many jobs, and between two there is none
                with contextlib.suppress(Exception):
                    self.context.cancelJobGroup(group)
                thread.join(_POLL_S)
            raise
        if outcome.error is not None:
            raise _translated(outcome.error) from outcome.error
        return outcome.value  # type: ignore[return-value]

    def _tasks(self, group: str) -> tuple[int, int]:
        """The number of tasks of the last job of ``group`` that are done, and of all of them."""
        tracker = self.context.statusTracker()
        jobs = tracker.getJobIdsForGroup(group)
        info = tracker.getJobInfo(max(jobs)) if jobs else None
        stages = [tracker.getStageInfo(stage) for stage in info.stageIds] if info else []
        known = [stage for stage in stages if stage is not None]
        return sum(s.numCompletedTasks for s in known), sum(s.numTasks for s in known)

    def close(self) -> None:
        """Stops the application."""
        self.context.stop()
        self._scratch.cleanup()

    def add_directory(self, directory: Path, name: str) -> None:
        """Sends a directory to every executor, where ``shipped`` finds it by ``name``.

        As an archive: outside of local mode Spark sends no directories.
        """
        base = Path(self._scratch.name, str(next(self._groups)))  # fetched from here, until the end
        archive = shutil.make_archive(str(base), "zip", directory)
        self.context.addArchive(f"{archive}#{name}")


def shipped(name: str) -> Path:
    """The place in this executor of the directory ``name`` that ``add_directory`` sent."""
    from pyspark import SparkFiles  # noqa: PLC0415 - an extra

    return Path(SparkFiles.get(name))


class _Outcome(Generic[R]):
    """The result of a job's thread, or its error."""

    value: R | None = None
    error: BaseException | None = None


@contextlib.contextmanager
def open_spark(config: SparkConfig, *, name: str) -> Iterator[SparkCluster]:
    """A Spark application called ``name``, stopped on leaving.

    Raises:
        ConfigError: pyspark is not installed, or Spark's driver or master cannot be started.
    """
    try:
        from pyspark import SparkConf, SparkContext  # noqa: PLC0415 - an extra
    except ImportError as exc:
        msg = f"--engine spark needs {exc.name}: pip install 'shoal[spark]'"
        raise ConfigError(msg, package=str(exc.name)) from exc
    logging.getLogger("py4j").setLevel(logging.CRITICAL)  # it logs each lost connection at its end
    settings = {"spark.ui.showConsoleProgress": "false", **config.settings}
    with _log_file(config.log) as log:
        try:
            with _signals_kept():
                gateway = SparkContext._gateway or _launched(  # noqa: SLF001 - one a process
                    _conf(SparkConf(loadDefaults=False), config.master, settings), log
                )
                SparkContext._ensure_initialized(gateway=gateway)  # noqa: SLF001 - as above
                conf = _conf(SparkConf(), config.master, settings)  # with spark-submit's
                conf.setAppName(name).setIfMissing("spark.master", "local[*]")
                context = SparkContext(conf=conf, gateway=gateway)
        except Exception as exc:
            raise ConfigError(_unstarted(exc, _tail(log))) from exc
        if "PYSPARK_PYTHON" not in os.environ and not conf.contains("spark.pyspark.python"):
            context.pythonExec = sys.executable
        cluster = SparkCluster(context)
        try:
            yield cluster
        finally:
            cluster.close()


def _launched(conf: Any, log: IO[bytes]) -> Any:
    """Spark's Java process, launched as pyspark does it, but with no Python between fork and exec.

    pyspark runs Python there, to keep Ctrl-C from Java; where gRPC has threads, the child dies of
    that now and then. A session of its own does the same without.
    """
    from pyspark import java_gateway  # noqa: PLC0415 - an extra

    class Quiet(subprocess.Popen[bytes]):
        def __init__(self, command: Sequence[str], **how: Any) -> None:
            how.pop("preexec_fn", None)
            super().__init__(command, start_new_session=True, **how)

    original = java_gateway.Popen  # type: ignore[attr-defined]
    java_gateway.Popen = Quiet  # type: ignore[attr-defined,assignment]
    try:
        return java_gateway.launch_gateway(conf, {"stdout": log, "stderr": log})  # type: ignore[no-untyped-call]
    finally:
        java_gateway.Popen = original  # type: ignore[attr-defined]


def _conf(conf: Any, master: str, settings: Any) -> Any:
    if master:
        conf.setMaster(master)
    for key, value in settings.items():
        conf.set(key, value)
    return conf


@contextlib.contextmanager
def _log_file(path: Path | None) -> Iterator[IO[bytes]]:
    try:
        log = tempfile.TemporaryFile() if path is None else path.open("w+b")  # noqa: SIM115 - closed below
    except OSError as exc:
        raise ConfigError(f"spark log {path}: cannot be written: {exc.strerror}") from exc
    with log:
        yield log


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Gives the handler of SIGINT back, which Spark replaces when it starts."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT) if main else None
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGINT, before)


def _tail(log: IO[bytes]) -> str:
    """The first line that names an error, without the lines of stack traces."""
    log.seek(0)
    lines = log.read().decode(errors="replace").splitlines()
    told = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("at ")]
    wrong = [line for line in told if _WRONG.search(line)]
    return (wrong or told or [""])[0][:_TAIL_CHARS]


def _unstarted(error: Exception, tail: str) -> str:
    if _JAVA.search(str(error)):
        return f"Spark cannot be started: expected Java 17 or newer in JAVA_HOME: {tail or error}"
    return f"Spark cannot be started: {_first_line(error)}"


def _translated(error: BaseException) -> BaseException:
    """``error`` of a job as an error of Shoal's tree."""
    if isinstance(error, ShoalError) or not isinstance(error, Exception):
        return error
    text = str(error)
    found = marked(text)
    if found is not None:
        return found
    return OperatorError(f"the Spark job failed: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    """The line that names the error in Java's and Python's traces, Python's if there is one."""
    text = str(error)
    python = re.findall(r"^(?:\w+\.)*\w*(?:Error|Exception|Exit)\b: .*$", text, re.MULTILINE)
    java = re.findall(r"^: (?:[\w.$]+: )?(.+)$", text, re.MULTILINE)
    lines = [line for line in text.splitlines() if line.strip()]
    shown = next(iter((*python, *java, *lines)), type(error).__name__)
    return shown.strip()[:_TAIL_CHARS]
