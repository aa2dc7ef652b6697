"""One way to say each thing, in all of the code: what a linter cannot be told."""

from __future__ import annotations

import ast
import io
import itertools
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("shoal", "embedder", "clusterer", "search")
MODULES = sorted(
    path
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
    if "v1" not in path.parts
)

_NOQA = re.compile(r"#\s*noqa:\s*[A-Z]+[0-9]+(,\s*[A-Z]+[0-9]+)*(?P<rest>.*)")
_RIDDLES = (
    re.compile(r"\bso (many|few|long) (images|points|rows|bytes|seconds|processes|vectors)\b"),
    re.compile(r"^Of (the|those|these|each|all|a|an)\b"),
    re.compile(r"^Return(s)? (the|a|an|whether)\b"),
    re.compile(r"\bOf those\b"),
)
"""Habits of sentences that leave their subject, or their noun, to the reader."""


def sentences(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every docstring: of modules, classes and functions, and those under a constant or a field."""
    for node in ast.walk(tree):
        for name in ("body", "orelse", "finalbody"):
            body = getattr(node, name, None)
            for each in body if isinstance(body, list) else ():
                if (
                    isinstance(each, ast.Expr)
                    and isinstance(each.value, ast.Constant)
                    and isinstance(each.value.value, str)
                ):
                    yield each.lineno, each.value.value


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_speaks_the_house_dialect(module: Path) -> None:
    """Error texts are ``msg``, loggers ``_LOG``, a noqa has a reason, a docstring no riddle."""
    source = module.read_text(encoding="utf-8")
    tree = ast.parse(source)
    found = [*_names(tree), *_noqas(source)]
    found += [
        f"{line}: {text.strip().splitlines()[0]}"
        for line, text in sentences(tree)
        if any(riddle.search(text.strip()) for riddle in _RIDDLES)
    ]
    assert found == []


def _names(tree: ast.Module) -> Iterator[str]:
    """Error texts and loggers that are called otherwise."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "logging.getLogger":
            continue
        body = getattr(node, "body", None)
        for first, second in itertools.pairwise(body if isinstance(body, list) else ()):
            if (
                isinstance(first, ast.Assign)
                and isinstance(second, ast.Raise)
                and isinstance(second.exc, ast.Call)
                and isinstance(first.value, ast.Constant | ast.JoinedStr)
                and isinstance(first.targets[0], ast.Name)
                and first.targets[0].id in {"message", "text", "error"}
            ):
                yield f"{first.lineno}: the text of an error is called msg"
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Call)
            and ast.unparse(node.value) == "logging.getLogger(__name__)"
            and ast.unparse(node.targets[0]) != "_LOG"
        ):
            yield f"{node.lineno}: a module's logger is called _LOG"


def _noqas(source: str) -> Iterator[str]:
    """Suppressed rules without a reason after a dash."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        match = _NOQA.search(token.string) if token.type == tokenize.COMMENT else None
        if match and not match["rest"].startswith(" - "):
            yield f"{token.start[0]}: {token.string}: expected a reason after ' - '"
