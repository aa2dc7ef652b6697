"""The files of directories and tars that are not sent: how many, why, and an example of each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

REASONS: Final = {
    "not_an_image": "not an image",
    "hidden": "hidden",
    "hidden_directory": "a hidden directory",
    "camera_raw": "a camera's raw file",
    "other_image": "an image of a kind that is not read",
    "archive": "an archive inside a directory or tar",
    "not_a_file": "not a regular file",
    "unreadable": "not readable, and not called an image",
    "link_to_directory": "a link to a directory",
    "broken_link": "a link to nothing",
}
"""Each reason to leave a file out, and how it is told."""


@dataclass(slots=True)
class LeftOut:
    """Counts what is left out.

    Attributes:
        counts: How many files, by a reason of ``REASONS``.
        examples: The name of the first of each reason.
    """

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Files that were left out."""
        return self.counts.total()

    def add(self, reason: str, name: str) -> None:
        """Counts the file ``name``."""
        self.counts[reason] += 1
        self.examples.setdefault(reason, name)

    def update(self, other: LeftOut) -> None:
        """Counts what ``other`` has counted."""
        self.counts.update(other.counts)
        self.examples = {**other.examples, **self.examples}

    def __str__(self) -> str:
        """What was left out, in one line."""
        reasons = "; ".join(
            f"{count:,} {REASONS[reason]} (such as {self.examples[reason]})"
            for reason, count in self.counts.most_common()
        )
        return f"left out {self.total:,}: {reasons}"
