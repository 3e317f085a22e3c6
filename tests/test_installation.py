"""Which installation is looked at, what it hides, the advice that mends it, and what is said of torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sequence_kernels import doctor, installation, native

ROOT = Path(__file__).parents[1]


def put(site: Path, url: str | None = None, editable: bool = False, files: tuple[str, ...] = ()) -> Path:
    """What an installer leaves of version 9.9 in the folder ``site``; returns the package's folder there."""
    facts = site / "sequence_kernels-9.9.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text("Metadata-Version: 2.4\nName: sequence-kernels\nVersion: 9.9\n")
    (facts / "RECORD").write_text("".join(f"sequence_kernels/{name},,\n" for name in ("module.py", *files)))
    if url is not None:
        (facts / "direct_url.json").write_text(json.dumps({"url": url, "dir_info": {"editable": editable}}))
    package = site / "sequence_kernels"
    if not editable:
        package.mkdir()
    return package


@pytest.fixture
def paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where Python looks: tmp_path / site, and nowhere else."""
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site")])
    return tmp_path


def reason_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Why the library for the CPU is unavailable in this folder."""
    monkeypatch.setattr(native, "_DIRECTORY", folder)
    monkeypatch.setattr(native, "_reasons", {})
    return str(native.unavailable("cpu"))


def tree(folder: Path) -> Path:
    """A source tree's package."""
    (folder / "sequence_kernels").mkdir(parents=True)
    (folder / "setup.py").touch()
    return folder / "sequence_kernels"


def test_a_source_tree_hides_what_was_installed_of_it(paths: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clone = tree(paths / "clone")
    site = put(paths / "site", f"file://{clone.parent}", files=("_native_cpu.so",))
    assert [it.folder for it in installation.hidden(clone)] == [site]
    assert installation.hidden(site) == []
    reason = reason_in(clone, monkeypatch)
    assert "was not built" in reason
    assert f"`pip install --no-deps -e {clone.parent}`, or leave this directory" in reason
    assert f"installed in {site}" in reason


def test_an_editable_installation_hides_nothing(paths: Path) -> None:
    clone = tree(paths / "a clone")
    put(paths / "site", f"file://{str(clone.parent).replace(' ', '%20')}", editable=True)
    assert installation.hidden(clone) == []
    assert [it.folder for it in installation.hidden(paths)] == [clone]


@pytest.mark.parametrize(
    ("url", "origin"), [("file:///made/it-9.9.whl", "/made/it-9.9.whl"), (None, "sequence-kernels")]
)
def test_a_library_that_is_gone_was_built(
    url: str | None, origin: str, paths: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = put(paths / "site", url, files=("_native_cpu.so",))
    reason = reason_in(site, monkeypatch)
    assert "_native_cpu.so was here and is gone" in reason
    assert f"`pip install --force-reinstall --no-deps {origin}`" in reason
    found = doctor.libraries()["cpu"]
    assert found["was_built"]
    assert not found["installed"]


def test_what_was_written_down_when_it_was_built_tells_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "was not built" in reason_in(tmp_path, monkeypatch)
    (tmp_path / "_native_cpu.json").write_text("{}")
    assert "was here and is gone" in reason_in(tmp_path, monkeypatch)


def run(*python: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *python]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("torch", [None, "2.9.1+cpu"])
def test_torch_that_is_missing_or_old_is_a_sentence(torch: str | None, tmp_path: Path) -> None:
    said = "has none" if torch is None else "this is torch 2.9.1+cpu"
    flags: list[str] = ["-S"]  # no site-packages
    if torch is not None:
        (tmp_path / "torch").mkdir()
        (tmp_path / "torch" / "__init__.py").write_text(f"__version__ = {torch!r}\n")
    where = os.pathsep.join((str(tmp_path), str(ROOT)))
    done = run(*flags, "-m", "sequence_kernels", PYTHONPATH=where)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("sequence_kernels needs torch >= 2.10, and ")
    assert said in line
    done = run(*flags, "-c", "import sequence_kernels", PYTHONPATH=where)
    assert done.stderr.splitlines()[-1] == f"ImportError: {line}"


def test_the_oldest_torch_is_that_of_the_package() -> None:
    from sequence_kernels.requirements import OLDEST_TORCH

    oldest = ".".join(map(str, OLDEST_TORCH))
    assert f'dependencies = ["torch>={oldest}"]' in (ROOT / "pyproject.toml").read_text()


def test_the_report_says_where_it_looks_first(monkeypatch: pytest.MonkeyPatch, paths: Path) -> None:
    other = put(paths / "site")
    found: dict[str, Any] = installation.report("0.1.0")
    assert found["path"] == str(ROOT / "sequence_kernels")
    assert found["hides"] == [{"path": str(other), "version": "9.9"}]
    first, second = doctor._where(found)
    assert first == f"looking at {ROOT / 'sequence_kernels'} (source tree, version 0.1.0)"
    assert f"NOT at {other} (version 9.9)" in second
