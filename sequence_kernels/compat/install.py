"""Existing S4 and Mamba code on this library's kernels, without editing it; reversible."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from . import extensions, hugging_face, stand_ins

#: The compiled modules that S4 code imports: of v3 (and so ESPnet), and of v4.
_EXTENSIONS = {
    "cauchy_mult": ("cauchy_mult_fwd", "cauchy_mult_bwd", "cauchy_mult_sym_fwd", "cauchy_mult_sym_bwd"),
    "structured_kernels": (
        "cauchy_mult_sym_fwd",
        "cauchy_mult_sym_bwd",
        "vand_log_mult_sym_fwd",
        "vand_log_mult_sym_bwd",
    ),
}

#: The last part of the name of a module that uses them, and what stands there instead of its own functions.
_USERS = ("s4", "s4model", "ssm", "cauchy", "vandermonde")
_USED = frozenset(name for functions in _EXTENSIONS.values() for name in functions)
_REPLACEMENTS: dict[str, Callable[..., Any]] = {
    "cauchy_naive": extensions.cauchy,
    "cauchy_slow": extensions.cauchy,
    "cauchy_conj_slow": extensions.cauchy,
    "cauchy_cuda": extensions.cauchy_mult,
    "cauchy_mult": extensions.cauchy_mult,
    "log_vandermonde": extensions.log_vandermonde,
    "log_vandermonde_cuda": extensions.log_vandermonde,
    "log_vandermonde_naive": extensions.log_vandermonde,
    "log_vandermonde_transpose": extensions.log_vandermonde_transpose,
    "log_vandermonde_transpose_naive": extensions.log_vandermonde_transpose,
}
#: What such a module believes to have. With none of it, it calls its fallbacks: for every device, dtype, N and L.
_EXTENSION_FLAGS = ("has_cauchy_extension", "has_cuda_extension")
_FLAGS = (*_EXTENSION_FLAGS, "has_pykeops")
#: Fallbacks that such a module does not define where it found something better.
_FALLBACKS = ("cauchy_naive", "cauchy_slow", "cauchy_conj_slow")

_MISSING = object()
_NO_NAMES: dict[str, Any] = {}

#: Packages whose modules are not looked at: ours, and most of what is imported where anything is.
_PASSED_BY = (f"{__name__.partition('.')[0]}.", "torch.")


class Installation(ExitStack):
    """What ``install`` did, by module; ``with install(): ...`` undoes it at its end.

    Attributes:
        adopted: the names of functions, flags and classes that were replaced in each module that uses the extensions,
            so far: modules that are imported later are added.
        left: why nothing was replaced in modules with the names of S4's.
    """

    def __init__(self) -> None:
        super().__init__()
        self.adopted: dict[str, list[str]] = {}
        self.left: dict[str, str] = {}

    def __str__(self) -> str:
        lines = [f"adopted {module}: {', '.join(names)}" for module, names in self.adopted.items()]
        lines += [f"left {module}: {reason}" for module, reason in self.left.items()]
        return "\n".join(lines) or "no module that uses the extensions is imported yet"


_installed: Installation | None = None


def install(*modules: ModuleType, verbose: bool = True) -> Installation:
    """Make ESPnet's and ``state-spaces/s4``'s own code run on this library's kernels, until ``uninstall()``.

    Two things happen. The modules ``cauchy_mult`` and ``structured_kernels`` become importable, with the functions of
    the CUDA extensions of these names. And in the S4 modules themselves (``espnet2.asr.state_spaces.s4``,
    ``models.s4.s4`` and the like), the Cauchy and Vandermonde functions are replaced and the flags that choose between
    them cleared: at once in modules that are imported already, since they have made their choice, and in others as
    they are imported. Models that exist follow, because the functions are looked up when they are called.

    So become ``mamba_ssm``, ``causal_conv1d`` and the compiled modules below them, and VMamba's, where they are not
    installed (stand_ins.py has the table); where they are, their functions serve tensors on a CPU by ours.

    On a CPU, the Mamba mixers of Hugging Face's models run on this library's ops, with a cache, a mask or neither:
    those of mamba, mamba2, falcon_mamba, jamba, bamba, falcon_h1, granitemoehybrid, nemotron_h and zamba2, of
    transformers 4.57 and 5 (hugging_face.py).

    Args:
        modules: further modules to treat so, such as a copy of ``s4.py`` under another name. Only these are treated so
            whatever they hold; others must import the extensions or have flags that say whether they are there.
        verbose: print what was adopted and what was left, module by module.

    Returns:
        What was adopted and what was left, and a context manager: ``with install(): ...`` uninstalls at its end. Raises
        TypeError for what is not a module.
    """
    global _installed
    for module in modules:
        if not isinstance(module, ModuleType):
            raise TypeError(f"modules must be modules, got {type(module).__name__}: {module!r}")
    if _installed is None:
        _installed = Installation()
        _installed.callback(_forget)
        modules_of_s4 = {
            name: stand_ins.made(name, {f: getattr(extensions, f) for f in functions}, __name__)
            for name, functions in _EXTENSIONS.items()
        }
        for name, module in (modules_of_s4 | stand_ins.absent(__name__)).items():
            _put(sys.modules, name, module, _installed)
        finder = _Finder()
        sys.meta_path.insert(0, finder)
        _installed.callback(sys.meta_path.remove, finder)
        for name in [name for name, module in sys.modules.items() if module and _is_user(name, module)]:
            adopt(sys.modules[name], False, _installed)
    for module in modules:
        adopt(module, True, _installed)
    if verbose:
        print(_installed)
    return _installed


def uninstall() -> None:
    """Put everything that ``install`` changed back. Does nothing when nothing is installed."""
    if _installed is not None:
        _installed.close()


def _forget() -> None:
    global _installed
    _installed = None


def _put(mapping: dict[str, Any], key: str, value: Any, undo: ExitStack) -> None:
    before = mapping.get(key, _MISSING)
    if before is value:
        return
    mapping[key] = value
    undo.callback(mapping.pop, key, None) if before is _MISSING else undo.callback(
        mapping.update, {key: before}
    )


def _replace(cls: Any, method: str, replacement: Callable[[Any], Any], undo: ExitStack) -> None:
    """Put another method into a class that has it, unless that has been done already."""
    original = vars(cls).get(method) if isinstance(cls, type) else None
    if original is None or hasattr(original, "replaces"):
        return
    setattr(cls, method, replacement(original))
    undo.callback(setattr, cls, method, original)


def _is_user(name: str, module: ModuleType | None = None) -> bool:
    """Whether a module is looked at: by its name, or by what it believes to have."""
    if name.startswith(_PASSED_BY):
        return False
    names, last = getattr(module, "__dict__", _NO_NAMES).keys(), name.rpartition(".")[2]
    return (
        not names.isdisjoint(_EXTENSION_FLAGS)
        or ("has_pykeops" in names and not names.isdisjoint(_REPLACEMENTS))
        or last in hugging_face.MIXERS
        or name in stand_ins.MODULES
        or last.lower() in _USERS
    )


def adopt(module: ModuleType, asked: bool, undo: ExitStack) -> None:
    """Replace the module's functions by ours, if it is one that looks for the extensions or was asked for."""
    names, found = vars(module), dict[str, Any]()
    mixer = hugging_face.MIXERS.get(module.__name__.rpartition(".")[2])
    if mixer is not None:
        _replace(names.get(mixer), "forward", hugging_face.forward, undo)
    if module.__spec__ is None or module.__spec__.origin != __name__:
        found |= stand_ins.serving_cpu(module)
    flags = [flag for flag in _FLAGS if flag in names]
    uses = asked or bool(flags) or not _USED.isdisjoint(names)
    if uses:
        found |= dict.fromkeys(flags, False)
        found |= {n: f for n, f in _REPLACEMENTS.items() if n in names or (flags and n in _FALLBACKS)}
    for name, value in found.items():
        _put(names, name, value, undo)
    if isinstance(undo, Installation):
        if found or mixer is not None:
            undo.adopted[module.__name__] = [*found, *([f"{mixer}.forward"] if mixer else [])]
        elif not uses and module.__name__.rpartition(".")[2].lower() in _USERS:
            undo.left[module.__name__] = (
                "it neither imports the extensions nor has flags that say whether they are there; "
                "install(module) treats it all the same"
            )
        elif uses and not found:
            undo.left[module.__name__] = f"it has none of {', '.join(_REPLACEMENTS)}"


def _as_without(module: ModuleType) -> None:
    """What a module that was executed while installed would have without: no extension, and so its fallbacks."""
    names = vars(module)
    found = [flag for flag in _EXTENSION_FLAGS if names.get(flag)]
    for flag in found:
        names[flag] = False
    if found:
        for name in _FALLBACKS:
            names.setdefault(name, _REPLACEMENTS[name])


class _Finder(MetaPathFinder):
    """Finds nothing itself, but adopts the modules that use the extensions once they are imported."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not _is_user(name):
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        loader: Any = spec and spec.loader
        if loader is not None:
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                if _installed is not None:  # it was found while installed, and is executed only now
                    _as_without(module)
                    adopt(module, False, _installed)

            loader.exec_module = exec_module
        return spec
