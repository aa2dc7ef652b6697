"""Texts to tokens, as the model's own library makes them, but without that library.

Owns the cleaning of a text and the use of a ``tokenizer.json`` of the ``tokenizers`` package.
"""

from __future__ import annotations

import html
import string
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from shoal.errors import ArtefactError, ConfigError

if TYPE_CHECKING:
    from embedder.encoding.manifest import Clean, TextSpec

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Tokenizer:
    """A tokenizer file and what the manifest says of it. Thread-safe."""

    def __init__(self, file: Path, spec: TextSpec) -> None:
        """Loads ``file``.

        Raises:
            ConfigError: the packages that texts need are not installed.
            ArtefactError: the file is not a tokenizer.
        """
        try:
            import tokenizers  # noqa: PLC0415 - an extra: encoders without a text tower need none

            if spec.clean != "none":
                import ftfy  # noqa: F401, PLC0415 - fails now if it is missing, not at a text
        except ImportError as exc:
            msg = f"{exc.name} is not installed, and text towers need it: pip install 'shoal[text]'"
            raise ConfigError(msg, package=str(exc.name)) from exc
        try:
            made: Any = tokenizers.Tokenizer.from_file(str(file))
        except Exception as exc:  # the package raises a bare Exception
            msg = f"{file}: expected a tokenizer, got {exc}"
            raise ArtefactError(msg, file=str(file)) from exc
        made.enable_truncation(spec.context_length)
        made.enable_padding(length=spec.context_length, pad_id=spec.pad_id)
        self._tokenizer = made
        self._clean = spec.clean

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.int64]:
        """The tokens of ``texts``, (N, context_length)."""
        cleaned = [clean(text, self._clean) for text in texts]
        return np.array([found.ids for found in self._tokenizer.encode_batch(cleaned)], np.int64)


def clean(text: str, rule: Clean) -> str:
    """``text`` as the model's own library cleans it before it splits it (``TextSpec.clean``)."""
    if rule == "none":
        return text
    import ftfy  # noqa: PLC0415 - an extra

    mended = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    if rule == "canonicalize":
        mended = mended.replace("_", " ").translate(_NO_PUNCTUATION)
    if rule != "whitespace":
        mended = mended.lower()
    return " ".join(mended.split())
