"""An encoder whose runs take as long as they are told to, on a clock of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import numpy as np


class Timed:
    """An encoder of 8 x 6 pixels whose runs take ``cost(size)`` seconds."""

    def __init__(self, cost: Callable[[int], float], *, has_text: bool = False) -> None:
        crop = SimpleNamespace(height=8, width=6)
        self.preprocessings = (SimpleNamespace(crop=crop),)
        self.name, self.dim, self.fingerprint, self.provider = "timed", 8, "f" * 64, "none"
        self.now = 0.0
        self.runs: list[int] = []
        self.pixels: list[np.ndarray] = []
        self.texts: list[int] = []
        self.has_text = has_text
        self._cost = cost
        self._lock = threading.Lock()

    def embed(self, pixels: Sequence[np.ndarray]) -> None:
        with self._lock:
            self.runs.append(len(pixels[0]))
            self.pixels += pixels
            self.now += self._cost(len(pixels[0]))

    def embed_texts(self, texts: Sequence[str]) -> None:
        self.texts.append(len(texts))
