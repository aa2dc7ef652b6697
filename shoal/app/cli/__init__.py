"""The command line, ``shoal``: parse, build, call, print.

Data goes to stdout (``--json`` for programs), talk and progress to stderr. Exit status 0 is
success, 1 an error told in one line, 2 a wrong usage, 130 Ctrl-C. Every option has an
environment twin ``SHOAL_<OPTION>``. A command's module is imported when it is asked for, so
that ``shoal --help`` costs no heavy import.
"""

from __future__ import annotations

from shoal.app.cli.root import main

__all__ = ["main"]
