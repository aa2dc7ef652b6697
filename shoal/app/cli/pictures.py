"""The sets of images that the demo can show."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from shoal.client import IngestItem, Json
from shoal.errors import InvalidArgument
from shoal.sources import SourceConfig, SourceItem, count_items, read_items
from shoal.sources.files import to_path

_MAX_DIGIT_VALUE = 16
"""The digits' pixels are 0 to 16."""


class Pictures(Protocol):
    """A set of images, and how to get one back by what was stored with it."""

    @property
    def title(self) -> str:
        """What the set is called."""

    @property
    def total(self) -> int | None:
        """How many there are; None if that is not known."""

    @property
    def labelled(self) -> bool:
        """True when every payload has the true ``label``."""

    def items(self) -> Iterator[SourceItem]:
        """The images, to be stored."""

    def data(self, payload: Mapping[str, Json]) -> bytes | None:
        """The encoded file of the image stored with ``payload``; None if it is gone."""


class Digits:
    """scikit-learn's handwritten digits: 1,797 grey images of 8 x 8 pixels, as PNG files."""

    title = "handwritten digits (scikit-learn)"
    labelled = True

    @cached_property
    def _set(self) -> Any:
        from sklearn.datasets import load_digits

        return load_digits()

    @property
    def total(self) -> int:
        """How many there are."""
        return len(self._set.images)

    def items(self) -> Iterator[SourceItem]:
        """The images, with the digit as payload ``label``."""
        for index, label in enumerate(self._set.target):
            yield IngestItem(
                data=self._png(index),
                key=f"digits/{index:04d}",
                source="digits",
                payload={"label": int(label)},
                name=f"digits/{index:04d}",
            )

    def data(self, payload: Mapping[str, Json]) -> bytes | None:
        """The PNG of the digit whose key is in ``payload``."""
        return self._png(int(str(payload["key"]).rpartition("/")[2]))

    def _png(self, index: int) -> bytes:
        return encode_png(self._set.images[index] * (255 / _MAX_DIGIT_VALUE))


class Folder:
    """The images under a directory; their true labels are not known."""

    labelled = False

    def __init__(self, directory: Path) -> None:
        self._paths = [str(directory)]
        self.title = str(directory)
        self.total = count_items(self._paths)

    def items(self) -> Iterator[SourceItem]:
        """The images; files that cannot be read are failed outcomes."""
        return read_items(self._paths, SourceConfig(), stdin=io.BytesIO())

    def data(self, payload: Mapping[str, Json]) -> bytes | None:
        """The file at the ``uri`` in ``payload``."""
        try:
            return to_path(str(payload["uri"])).read_bytes()
        except (OSError, InvalidArgument):
            return None


def encode_png(pixels: npt.NDArray[np.float64]) -> bytes:
    """The PNG of grey ``pixels`` (H, W), 0 to 255."""
    out = io.BytesIO()
    Image.fromarray(np.rint(pixels).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()
