"""What is printed of texts from outside."""

from __future__ import annotations

import sys
import unicodedata

import pytest

from shoal.printable import printable

DIRECTIONS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("\x1b[2J\x1b]0;title\x07", r"\u001b[2J\u001b]0;title\u0007"),
        ("one\ntwo\r\tthree", r"one\ntwo\r\tthree"),
        ("\x9b31m red", r"\u009b31m red"),
        ("gpj.\u202eexe", r"gpj.\u202eexe"),
        ("caf\udce9.jpg", r"caf\udce9.jpg"),
        ("\U000e0041", r"\udb40\udc41"),
        ("DEL\x7f", r"DEL\u007f"),
    ],
)
def test_what_acts_on_a_terminal_is_escaped(text: str, safe: str) -> None:
    """As JSON escapes it, so that it can be read, and searched for."""
    assert printable(text) == safe


@pytest.mark.parametrize(
    "text", ["a b/c.jpg", "日本語の写真", "é ñ ß", "👨‍👩‍👧", r"C:\new", "العربية"]
)
def test_text_of_any_script_stays(text: str) -> None:
    """Also joiners and backslashes."""
    assert printable(text) == text


def test_no_control_character_is_forgotten() -> None:
    """Every one that Unicode knows, and everything that changes the direction of text."""
    for number in range(sys.maxunicode + 1):
        char = chr(number)
        unsafe = unicodedata.category(char) in {"Cc", "Cs", "Zl", "Zp"}
        if unsafe or unicodedata.bidirectional(char) in DIRECTIONS:
            assert printable(char).isascii(), hex(number)
