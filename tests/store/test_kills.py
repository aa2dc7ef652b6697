"""kill -9 beside a flush: the worst moment for an engine that notes writes as their filters."""

from __future__ import annotations

import os
from pathlib import Path

from kill_in_flush import kill_again_and_again

KILLS = int(os.environ.get("SHOAL_TEST_KILLS", "5"))
"""How often the process is killed. The numbers in docs/faults.md are of many more."""


def test_no_acknowledged_write_is_lost_by_a_kill_beside_a_flush(tmp_path: Path) -> None:
    """Leases, pointers, labels and fields are what was acknowledged; their indexes agree."""
    tally = kill_again_and_again(tmp_path, kills=KILLS, seed=11)
    assert tally.writes > 0
    assert (tally.kills, tally.lost, tally.diverged) == (KILLS, 0, 0)
