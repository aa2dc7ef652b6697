"""Texts to tokens: how they are cleaned, cut and padded, and what is said of a bad file."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from embedder.encoding.manifest import Clean, TextSpec
from embedder.encoding.tokenizer import Tokenizer, clean
from shoal.errors import ArtefactError, ConfigError

tokenizers = pytest.importorskip("tokenizers", reason="shoal[text] is not installed")
pytest.importorskip("ftfy", reason="shoal[text] is not installed")

WORDS = {"<end>": 1, "a": 2, "dog": 3, "cat": 4, "A": 5}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A tokenizer of five words, whose mark of the end comes last."""
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(WORDS, unk_token="a"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A <end>", special_tokens=[("<end>", 1)]
    )
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def spec(*, context_length: int = 5, pad_id: int = 0, rule: Clean = "none") -> TextSpec:
    return TextSpec.model_construct(context_length=context_length, pad_id=pad_id, clean=rule)


def test_tokens_are_padded_and_cut_to_the_context(file: Path) -> None:
    """The mark of the end is the last of a text that was cut; padding comes after it."""
    tokens = Tokenizer(file, spec(pad_id=9)).encode(["a dog", "", "cat " * 10])
    assert tokens.dtype == np.int64
    assert tokens.tolist() == [[2, 3, 1, 9, 9], [1, 9, 9, 9, 9], [4, 4, 4, 4, 1]]


def test_texts_are_cleaned_by_the_rule(file: Path) -> None:
    """Of the manifest, before they are split."""
    assert Tokenizer(file, spec(rule="none")).encode(["A dog"])[0].tolist()[:2] == [5, 3]
    assert Tokenizer(file, spec(rule="lower")).encode(["A dog"])[0].tolist()[:2] == [2, 3]


@pytest.mark.parametrize(
    ("rule", "cleaned"),
    [
        ("none", "  A &amp;amp; b_c\t(D)!  schÃ¶n "),
        ("whitespace", "A & b_c (D)! schön"),
        ("lower", "a & b_c (d)! schön"),
        ("canonicalize", "a b c d schön"),
    ],
)
def test_rules_of_cleaning(rule: Clean, cleaned: str) -> None:
    """Mojibake, entities, blanks, capitals and punctuation, each where its rule says so."""
    assert clean("  A &amp;amp; b_c\t(D)!  schÃ¶n ", rule) == cleaned


def test_file_that_is_no_tokenizer_is_named(tmp_path: Path) -> None:
    """Also one that is not there."""
    (tmp_path / "empty.json").write_text("{}")
    for name in ("empty.json", "absent.json"):
        with pytest.raises(ArtefactError, match=rf"{name}: expected a tokenizer, got ") as told:
            Tokenizer(tmp_path / name, spec())
        assert told.value.metadata["file"] == str(tmp_path / name)


@pytest.mark.parametrize("package", ["tokenizers", "ftfy"])
def test_missing_package_is_told_with_what_to_install(
    file: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the encoder is opened, not at the first text; none is needed that is not used."""
    monkeypatch.setitem(sys.modules, package, None)
    told = f"^{package} is not installed, and text towers need it: pip install 'shoal.text.'$"
    with pytest.raises(ConfigError, match=told) as caught:
        Tokenizer(file, spec(rule="lower"))
    assert caught.value.metadata["package"] == package
    if package == "ftfy":
        Tokenizer(file, spec(rule="none")).encode(["a"])
