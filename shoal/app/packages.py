"""Makes sure that the packages beside ``shoal`` are Shoal's own.

``embedder``, ``clusterer`` and ``search`` are short names. A file ``search.py`` that comes earlier
on Python's path would be imported in place of the package, and fail far from its cause.
"""

from __future__ import annotations

from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import shoal
from shoal.errors import ConfigError

PACKAGES = ("embedder", "clusterer", "search")


def check_packages() -> None:
    """Looks at where each of PACKAGES would be imported from, and imports none.

    Raises:
        ConfigError: one is missing, or another module has its name.
    """
    home = Path(shoal.__file__).parents[1]
    for name in PACKAGES:
        found = _package(name)
        if found is None:
            raise ConfigError(f"Shoal's package {name} is missing: install Shoal again", path=name)
        if found == home / name or _is_installed(found, name):
            continue
        msg = (
            f"{found} hides Shoal's package {name}, which is {home / name}: rename the former, or "
            "take its directory off Python's path (PYTHONPATH; with python -m, where you are)"
        )
        raise ConfigError(msg, path=str(found))


def _package(name: str) -> Path | None:
    """The directory of the package, or the file of the module, that ``import name`` would run."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        return None
    file = Path(spec.origin)
    return file.parent if spec.submodule_search_locations else file


def _is_installed(directory: Path, name: str) -> bool:
    """Whether ``directory`` is the package ``name`` of the distribution that ``shoal`` is from.

    An installer may link each package from a place of its own.
    """
    try:
        files = metadata.files("shoal") or []
        (own,) = (file for file in files if file.parts == (name, "__init__.py"))
        return directory.samefile(Path(str(own.locate())).parent)
    except (metadata.PackageNotFoundError, OSError, ValueError):
        return False
