"""ONNX Runtime with a GPU that is not there: on PYTHONPATH, it stands before the real one.

What asks for CUDA gets sessions on the CPU, with right vectors, that then take the time of a GPU:
PRETEND_RUN_MS for a run and PRETEND_IMAGE_MS for an image, in which they spin without
the GIL, as CUDA does while it waits. So the way of images to a GPU can be tried, and what it costs
the cores be measured, without one. No GPU's rate follows from it.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.remove(str(Path(__file__).parent))
del sys.modules["onnxruntime"]
import onnxruntime  # noqa: E402 - the real one, which stays in sys.modules

CUDA = "CUDAExecutionProvider"
RUN_S = float(os.environ.get("PRETEND_RUN_MS", "1.5")) / 1000
IMAGE_S = float(os.environ.get("PRETEND_IMAGE_MS", "0.07")) / 1000
_SPIN = bytes(60_000)
"""Hashing it takes about 0.03 ms, without the GIL."""
_Session = onnxruntime.InferenceSession


class PretendSession(_Session):  # type: ignore[misc]
    """A session on the CPU that calls itself CUDA's."""

    def __init__(self, graph: Path, options: Any, *, providers: Any, **rest: Any) -> None:
        ((name, _),) = providers
        assert name == CUDA
        super().__init__(graph, options, providers=["CPUExecutionProvider"], **rest)

    def get_providers(self) -> list[str]:
        return [CUDA]

    def run(self, names: Any, feeds: dict[str, Any], run_options: Any = None) -> Any:
        del run_options  # of an arena that is not there
        began = time.perf_counter()
        answer = super().run(names, feeds)
        end = began + RUN_S + IMAGE_S * len(next(iter(feeds.values())))
        while time.perf_counter() < end:
            hashlib.sha256(_SPIN)
        return answer


onnxruntime.InferenceSession = PretendSession
onnxruntime.get_available_providers = lambda: [CUDA, "CPUExecutionProvider"]
