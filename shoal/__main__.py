"""``python -m shoal``, for where the ``shoal`` script is not on the path."""

from __future__ import annotations

from shoal.app.cli.root import main

if __name__ == "__main__":
    main(prog_name="shoal")
