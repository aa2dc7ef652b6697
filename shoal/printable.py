"""Text from outside that is safe to print: it stays in its line and moves no cursor."""

from __future__ import annotations

import json
import re
from typing import Final

_UNSAFE: Final = re.compile(
    "["
    "\x00-\x1f\x7f-\x9f"  # control characters: escape sequences, line breaks, tabs
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # change the direction of what follows
    "\u2028\u2029"  # line and paragraph separators
    "\u00ad\u180e\u200b\u2060-\u2065\u206a-\u206f\ufeff\ufff9-\ufffb"  # not to be seen
    "\U000e0000-\U000e007f"  # tags, not to be seen either
    "\ud800-\udfff"  # bytes of a file name that are no UTF-8
    "]"
)


def printable(text: str) -> str:
    r"""``text`` with what a terminal would act upon, or not show, written as JSON writes it.

    A line break becomes ``\n``, an escape ``\u001b``. Joiners stay: emoji and some scripts need
    them.
    """
    return _UNSAFE.sub(lambda found: json.dumps(found[0])[1:-1], text)
