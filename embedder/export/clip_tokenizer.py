"""CLIP's byte-pair tokenizer as a file of the ``tokenizers`` package, made from open_clip's own.

Source of the rules: open_clip ``SimpleTokenizer`` (after openai/CLIP); the words and merges are
read from the object at hand, so a change of them there is a change here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
_END_OF_WORD = "</w>"


def is_clips_own(tokenizer: Any) -> bool:
    """Whether ``tokenizer`` is the kind that ``write_tokenizer`` can write exactly."""
    from open_clip import tokenizer as theirs

    return (
        type(tokenizer) is theirs.SimpleTokenizer
        and tokenizer.clean_fn is theirs.get_clean_fn("lower")
        and tokenizer.reduction_fn is None
    )


def write_tokenizer(tokenizer: Any, file: Path) -> None:
    """Write ``tokenizer`` (open_clip's SimpleTokenizer), less its cleaning of texts."""
    merges = sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.__getitem__)
    made = Tokenizer(
        models.BPE(
            vocab=dict(tokenizer.encoder),
            merges=[pair for pair in merges if len(pair) == 2],  # noqa: PLR2004
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
    made.save(str(file))
