"""The docstrings under the fields of a class, read from its source."""

from __future__ import annotations

import ast
import functools
import inspect
import sys
from itertools import pairwise


@functools.cache
def docstrings_of(owner: type) -> dict[str, str]:
    """The first paragraph under each field of ``owner``, on one line; a base's count too."""
    found: dict[str, str] = {}
    for each in reversed(owner.__mro__[:-1]):
        found |= _module(each.__module__).get(each.__qualname__, {})
    return found


@functools.cache
def _module(name: str) -> dict[str, dict[str, str]]:
    """The paragraphs of all classes of a module, by class and field; none without its source."""
    try:
        source = inspect.getsource(sys.modules[name])
    except (OSError, TypeError):  # an interactive session, or only compiled
        return {}
    tree = ast.parse(source)
    return {each.name: _fields(each) for each in tree.body if isinstance(each, ast.ClassDef)}


def _fields(owner: ast.ClassDef) -> dict[str, str]:
    found = {}
    for field, below in pairwise(owner.body):
        match field, below:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                found[name] = first_paragraph(text)
    return found


def first_paragraph(text: str) -> str:
    """A docstring's first paragraph on one line, as people read it: code in single backticks."""
    return " ".join(text.strip().split("\n\n")[0].split()).replace("``", "`")
