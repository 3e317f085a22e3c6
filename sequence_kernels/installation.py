"""Which installation of this package is running, which others it hides, and how to install it again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

_NAME = "sequence-kernels"

#: The folder of the package that is running.
FOLDER = Path(__file__).parent


class Installed(NamedTuple):
    """What an installer has put somewhere, whether or not it is what is running."""

    folder: Path  # of the package
    version: str
    origin: str | None  # the folder or wheel that it was installed from, where that is known
    files: frozenset[str]  # that it came with, below the folder


def everywhere() -> Iterator[Installed]:
    """All that installers have put where this Python looks."""
    for found in metadata.distributions(name=_NAME):
        if found.read_text("METADATA") is None:  # a source tree's egg-info: nothing was installed
            continue
        said: dict[str, Any] = json.loads(found.read_text("direct_url.json") or "{}")
        url = urlsplit(said.get("url", ""))
        origin = unquote(url.path) if url.scheme == "file" else None
        editable = origin is not None and said.get("dir_info", {}).get("editable", False)
        root = Path(origin) if origin and editable else Path(str(found.locate_file("")))
        package = f"{FOLDER.name}/"
        files = (str(file) for file in found.files or ())
        names = frozenset(name.removeprefix(package) for name in files if name.startswith(package))
        yield Installed(root / FOLDER.name, found.version, origin, names)


def running(folder: Path = FOLDER) -> Installed | None:
    """What was installed into the folder; None if it is a source tree that was not, or was copied by hand."""
    return next((it for it in everywhere() if it.folder.resolve() == folder.resolve()), None)


def hidden(folder: Path = FOLDER) -> list[Installed]:
    """Installations elsewhere, which this one is found before, because of the current directory or PYTHONPATH."""
    return [it for it in everywhere() if it.folder.is_dir() and it.folder.resolve() != folder.resolve()]


def is_source_tree(folder: Path = FOLDER) -> bool:
    return (folder.parent / "setup.py").exists()


def came_with(folder: Path, name: str) -> bool:
    """Whether the file was there when the package was installed, going by the installer's record."""
    found = running(folder)
    return found is not None and name in found.files


def again(folder: Path, variable: str = "") -> str:
    """The command that installs what is in the folder again; ``variable`` stands before pip in it."""
    pip = f"{variable} pip" if variable else "pip"
    if is_source_tree(folder):
        elsewhere = "".join(
            f", or leave this directory to use the one that is installed in {it.folder}"
            for it in hidden(folder)
        )
        return f"run `{pip} install --no-deps -e {folder.parent}`{elsewhere}"
    found = running(folder)
    origin = found.origin if found and found.origin else _NAME
    return f"run `{pip} install --force-reinstall --no-deps {origin}`"


def report(version: str) -> dict[str, Any]:
    """For the doctor: what is running, and what it hides. ``version``: of the code that is running."""
    return {
        "path": str(FOLDER),
        "version": version,
        "kind": "source tree" if is_source_tree() else "installed",
        "hides": [{"path": str(it.folder), "version": it.version} for it in hidden()],
    }
