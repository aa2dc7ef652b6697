"""The machine and the versions that a measurement was made with."""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path

from shoal.cores import usable_cores

_PACKAGES = ("shoal", "onnxruntime", "onnxruntime-gpu", "qdrant-edge-py", "grpcio", "pillow")


def describe() -> str:
    """One line: processor, cores, memory, Python and the versions of what is measured."""
    versions = [f"{name} {version}" for name in _PACKAGES if (version := _version(name))]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{_processor()}, {usable_cores()} cores, {memory:.0f} GiB; "
        f"Python {platform.python_version()}, {', '.join(versions)}"
    )


def resident_mib(pid: int) -> float:
    """Resident memory of the process ``pid``, in MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def peak_mib(pid: int) -> float:
    """The highest resident memory that the process ``pid`` ever had, in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return resident_mib(pid)


@contextmanager
def children_peak_mib(pid: int) -> Iterator[Callable[[], float]]:
    """Watches the processes that ``pid`` starts; gives the highest resident memory of one, in MiB.

    Looked at five times a second: what lives for less may be missed.
    """
    highest, stop = [0.0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.2):
            for child in _children(pid):
                with suppress(OSError):  # it has just ended
                    highest[0] = max(highest[0], peak_mib(child))

    thread = threading.Thread(target=watch, name="children", daemon=True)
    thread.start()
    try:
        yield lambda: highest[0]
    finally:
        stop.set()
        thread.join()


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += map(int, task.read_text().split())
    return found


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
