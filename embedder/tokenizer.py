"""Texts to tokens, as the text tower's own library makes them; without that library.

Owns the cleaning of a text and the use of a ``tokenizer.json`` of the ``tokenizers`` package.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from shoal.errors import ArtefactError, ConfigError

if TYPE_CHECKING:
    from embedder.manifest import TextSpec


class Tokenizer:
    """A tokenizer file and what the manifest says of it. Thread-safe."""

    def __init__(self, file: Path, spec: TextSpec) -> None:
        """Load ``file``.

        Raises:
            ConfigError: the packages that texts need are not installed.
            ArtefactError: the file is not a tokenizer.
        """
        try:
            import tokenizers  # noqa: PLC0415 - an extra: encoders without a text tower need none

            if spec.clean == "lower":
                import ftfy  # noqa: F401, PLC0415 - found missing now, not at the first text
        except ImportError as exc:
            msg = f"{exc.name} is not installed, and text towers need it: pip install 'shoal[text]'"
            raise ConfigError(msg, package=str(exc.name)) from exc
        try:
            made: Any = tokenizers.Tokenizer.from_file(str(file))
        except Exception as exc:  # a bare Exception is what it raises
            msg = f"{file}: expected a tokenizer, got {exc}"
            raise ArtefactError(msg, file=str(file)) from exc
        made.enable_truncation(spec.context_length)
        made.enable_padding(length=spec.context_length, pad_id=spec.pad_id)
        self._tokenizer = made
        self._clean = spec.clean == "lower"

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.int64]:
        """The tokens of ``texts``, (N, context_length)."""
        cleaned = [clean_lower(text) for text in texts] if self._clean else list(texts)
        return np.array([found.ids for found in self._tokenizer.encode_batch(cleaned)], np.int64)


def clean_lower(text: str) -> str:
    """``text`` as open_clip's tokenizer cleans it by default before it splits it.

    Mojibake is mended, HTML entities are resolved twice, white space becomes single blanks, all
    in lower case.
    """
    import ftfy  # noqa: PLC0415 - an extra

    mended = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(mended.strip().split()).lower()
