"""Writes open_clip's tokenizers as files of the ``tokenizers`` package.

CLIP's byte-pair tokenizer is rebuilt from open_clip's object; a Hugging Face tokenizer (SigLIP's,
multilingual models') already contains such a file. The rules are those of open_clip's
``SimpleTokenizer`` (after openai/CLIP) and ``HFTokenizer``. Words and merges are read from the
given object, so they follow open_clip's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from open_clip import tokenizer as open_clip_tokenizer
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

from embedder.encoding.manifest import Clean
from shoal.errors import ExportRefused

_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
_END_OF_WORD = "</w>"
_CLEANS: Final[tuple[Clean, ...]] = ("lower", "whitespace", "canonicalize")


def write_tokenizer(tokenizer: Any, file: Path) -> tuple[Clean, int]:
    """Writes ``tokenizer`` to ``file``, without its cleaning of texts.

    Returns:
        The rule by which it cleans texts, and the id of its padding.

    Raises:
        ExportRefused: the tokenizer does something that a file of the ``tokenizers`` package
            cannot express.
    """
    if isinstance(tokenizer, open_clip_tokenizer.SimpleTokenizer):
        _refuse("a reduction mask", given=tokenizer.reduction_fn is not None)
        _byte_pairs(tokenizer).save(str(file))
        return _clean(tokenizer), 0
    kind = type(tokenizer).__name__
    _refuse(f"being a {kind}", given=not isinstance(tokenizer, open_clip_tokenizer.HFTokenizer))
    _refuse("tokenizer_mode", given=bool(tokenizer.tokenizer_mode))
    _refuse("strip_sep_token", given=tokenizer.strip_sep_token)
    inner = tokenizer.tokenizer
    _refuse("no fast implementation", given=getattr(inner, "backend_tokenizer", None) is None)
    _refuse("padding or cutting on the left", given="left" in _sides(inner))
    _refuse("no padding token", given=inner.pad_token_id is None)
    file.write_text(inner.backend_tokenizer.to_str(), encoding="utf-8")
    return _clean(tokenizer), int(inner.pad_token_id)


def _refuse(what: str, *, given: bool) -> None:
    if given:
        msg = f"the model's tokenizer cannot be written as a file: {what}; --no-text leaves it out"
        raise ExportRefused(msg)


def _sides(inner: Any) -> tuple[str, str]:
    return inner.padding_side, inner.truncation_side


def _clean(tokenizer: Any) -> Clean:
    """The name of the rule by which ``tokenizer`` cleans texts."""
    for name in _CLEANS:
        if tokenizer.clean_fn is open_clip_tokenizer.get_clean_fn(name):
            return name
    _refuse("a cleaning of texts of its own", given=True)
    raise AssertionError


def _byte_pairs(tokenizer: Any) -> Tokenizer:
    """CLIP's byte-pair tokenizer as one of the ``tokenizers`` package."""
    merges = sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.__getitem__)
    made = Tokenizer(
        models.BPE(
            vocab=dict(tokenizer.encoder),
            merges=[pair for pair in merges if len(pair) == 2],  # noqa: PLR2004 - a pair
            continuing_subword_prefix="",
            end_of_word_suffix=_END_OF_WORD,
        )
    )
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    names = {i: word for word, i in tokenizer.encoder.items()}
    start, end = (names[i] for i in tokenizer.all_special_ids[:2])
    made.add_special_tokens([start, end])
    made.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        special_tokens=[(start, tokenizer.encoder[start]), (end, tokenizer.encoder[end])],
    )
    return made
