"""A whole Python for aarch64 under qemu, with torch and a wheel of ours, to run the package's own tests in.

    python -m tests.aarch64.python build/aarch64 dist/aarch64/*.whl tests/ops/vandermonde/test_cpu.py

The folder is made by the first call and kept: Debian's python3 and what torch's wheel needs of the system, wheels from
the index that pip uses, and stand-ins for NVIDIA's libraries, which that wheel wants too. It takes 1.5 GB. Needs
Debian 12 with g++-aarch64-linux-gnu and qemu-user-static. Processes that a test starts by itself fail: nothing here
runs programs of another machine by name.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
QEMU, GCC, READELF = "qemu-aarch64-static", "aarch64-linux-gnu-gcc", "aarch64-linux-gnu-readelf"
DEBIAN = ["python3", "libpython3-stdlib", "libgomp1", "libstdc++6"]
VERSION = "3.11"
PACKAGES = ["numpy", "pytest", "pytest-xdist", "hypothesis", "expecttest", "packaging", "mpmath"]

#: torch reads it as it is loaded, and ends the process on the host's.
CPUINFO = """processor\t: 0
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x3
CPU part\t: 0xd0c
CPU revision\t: 1

"""


def system(folder: Path) -> None:
    """Debian's packages for arm64, unpacked by an apt with lists and a status of its own; no root is needed."""
    apt = folder / "apt"
    for name in ("state/lists/partial", "cache/archives/partial"):
        (apt / name).mkdir(parents=True, exist_ok=True)
    (apt / "status").touch()
    options = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Sandbox::User": "root",
        "Dir::State": apt / "state",
        "Dir::State::status": apt / "status",
        "Dir::Cache": apt / "cache",
        "Debug::NoLocking": "true",
    }
    said = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
    subprocess.run(["apt-get", *said, "-q", "update"], check=True)
    download = ["--no-install-recommends", "--download-only", "-y", "install", *DEBIAN]
    subprocess.run(["apt-get", *said, "-q", *download], check=True)
    for package in sorted((apt / "cache/archives").glob("*.deb")):
        subprocess.run(["dpkg", "-x", str(package), str(folder / "root")], check=True)
    (folder / "root/proc").mkdir()
    (folder / "root/proc/cpuinfo").write_text(CPUINFO)


def packages(folder: Path) -> None:
    """torch of this environment's version for aarch64, without the libraries of NVIDIA's, and what the tests need."""
    pip = [sys.executable, "-m", "pip", "install", "-q", "--upgrade", "--target", str(folder / "site")]
    pip += ["--python-version", VERSION, "--only-binary=:all:"]
    pip += [word for tag in ("2_28", "2_27", "2_17") for word in ("--platform", f"manylinux_{tag}_aarch64")]
    subprocess.run([*pip, "--no-deps", f"torch=={torch.__version__.split('+')[0]}"], check=True)
    needs = (ROOT / "constraints.txt").read_text()
    pinned = [line.split(";")[0].strip() for line in needs.splitlines() if line.split("==")[0] in PACKAGES]
    of_torch = ["typing_extensions", "sympy", "networkx", "jinja2", "fsspec", "filelock"]
    subprocess.run([*pip, *pinned, *of_torch], check=True)
    stand_ins(folder / "site/torch/lib")


def _read(option: str, library: Path) -> str:
    return subprocess.check_output([READELF, "-W", option, str(library)], text=True)


def stand_ins(torch_lib: Path) -> None:
    """For each library of NVIDIA's that torch's link to, one whose functions all return 100: there is no device."""
    needed: set[str] = set()
    defined: set[str] = set()
    wanted: dict[str, str] = {}  # functions, and their versions
    origin: dict[str, str] = {}  # versions, and the libraries that have them
    for library in torch_lib.glob("*.so*"):
        needed |= set(re.findall(r"NEEDED.*\[(.*)\]", _read("-d", library)))
        for part in re.split(r"(?=Version: \d+ +File: )", _read("-V", library))[1:]:
            file = part.split("File: ")[1].split()[0]
            origin |= dict.fromkeys(re.findall(r"  Name: (\S+)", part), file)
        for line in _read("--dyn-syms", library).splitlines():
            fields = line.split()
            if len(fields) < 8 or fields[4] == "LOCAL":
                continue
            name, _, version = fields[7].replace("@@", "@").partition("@")
            if fields[6] == "UND":
                wanted[name] = version
            else:
                defined.add(name)
    unversioned = {n for n, v in wanted.items() if not v and re.match(r"(__)?(cu|nv|nccl)", n)} - defined
    with tempfile.TemporaryDirectory() as name:
        source, script = Path(name) / "stub.S", Path(name) / "stub.map"
        for library in (n for n in needed if re.match(r"lib(cu|nccl|nvrtc|nvshmem)", n)):
            own = {n: v for n, v in wanted.items() if v and origin.get(v) == library}
            if library.startswith("libcudart."):
                own |= dict.fromkeys(unversioned, "")
            source.write_text(
                "".join(f".globl {n}\n.type {n},%function\n{n}: mov x0, #100\nret\n" for n in own)
            )
            of_version = {v: [n for n in own if own[n] == v] for v in set(own.values()) - {""}}
            script.write_text("".join(f"{v} {{ {'; '.join(n)}; }};\n" for v, n in of_version.items()))
            link = [f"-Wl,-soname,{library}", *([f"-Wl,--version-script={script}"] if of_version else [])]
            command = [GCC, "-shared", "-nostdlib", *link, str(source), "-o", str(torch_lib / library)]
            subprocess.run(command, check=True)


def run(folder: Path, arguments: list[str]) -> int:
    """That Python, in the folder with the wheel's package and this tree's tests."""
    program = [QEMU, "-L", str(folder / "root"), "-E", f"PYTHONPATH={folder / 'site'}"]
    command = [*program, str(folder / f"root/usr/bin/python{VERSION}"), *arguments]
    return subprocess.run(command, cwd=folder / "tree", check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("tests", nargs="+", help="arguments of pytest")
    given = parser.parse_args()
    folder = given.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for made, make in (("root/proc/cpuinfo", system), ("site/torch/lib/libcudart.so.13", packages)):
        if not (folder / made).exists():
            make(folder)
    tree = folder / "tree"
    tree.mkdir(exist_ok=True)
    with zipfile.ZipFile(given.wheel) as archive:
        archive.extractall(tree)
    shutil.copytree(ROOT / "tests", tree / "tests", dirs_exist_ok=True)
    shutil.copy(ROOT / "pyproject.toml", tree)
    return run(folder, ["-m", "pytest", "-q", "-n", "0", "--torch-threads", "1", *given.tests])


if __name__ == "__main__":
    sys.exit(main())
