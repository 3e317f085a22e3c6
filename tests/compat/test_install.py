"""``compat.install``: S4 code that is not ours runs on our kernels, as it is, and is put back as it was."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from sequence_kernels import compat
from sequence_kernels.compat import extensions

ESPNET = "espnet2.asr.state_spaces.s4"
ACCELERATORS = ("cauchy_mult", "structured_kernels", "pykeops", "pykeops.torch")


@pytest.fixture(autouse=True)
def nothing_installed() -> Iterator[None]:
    yield
    compat.uninstall()


@pytest.fixture
def imported(monkeypatch: pytest.MonkeyPatch) -> Callable[[], ModuleType]:
    """Import ESPnet's module anew, unmodified, each time it is called; no accelerator of its own is there."""
    pytest.importorskip("espnet2", reason="pip install --no-deps -r tests/parity/requirements.txt")
    for name in ACCELERATORS:
        monkeypatch.setitem(sys.modules, name, None)

    def load() -> ModuleType:
        for name in (ESPNET, "espnet2.asr.state_spaces.cauchy"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(ESPNET)

    return load


def layer(
    s4: Any, dtype: torch.dtype = torch.float32, d_model: int = 8, d_state: int = 16, **arguments: Any
) -> Any:
    torch.manual_seed(0)
    return s4.S4(d_model, d_state, transposed=False, **arguments).to(dtype).eval()


def disagreement(module: Any, length: int = 48) -> float:
    """Of forward and its own step, relative to the largest value."""
    x = torch.randn(2, length, module.d_model, dtype=module.D.dtype)
    with torch.no_grad():
        y, _ = module(x)
        for part in module.modules():
            if hasattr(part, "setup_step"):
                part.setup_step()
        state, steps = module.default_state(2), []
        for u in x.unbind(1):
            out, state = module.step(u, state)
            steps.append(out)
    return float((torch.stack(steps, 1) - y).abs().max() / y.abs().max())


@pytest.mark.parametrize("first", ["install", "import"])
@pytest.mark.parametrize(
    "mode",
    [
        {"mode": "nplr"},
        {"mode": "nplr", "measure": "legt", "rank": 2},
        {"mode": "diag", "measure": "diag-lin"},
    ],
)
def test_espnet_agrees_with_its_own_step(
    imported: Callable[[], ModuleType], first: str, mode: dict[str, Any]
) -> None:
    if first == "install":
        compat.install()
        s4 = imported()
    else:
        s4 = imported()
        if mode == {"mode": "nplr"}:  # the reason for all this: it computes two functions
            assert disagreement(layer(s4, **mode)) > 0.3
        compat.install()
    assert disagreement(layer(s4, **mode)) < (
        2e-5 if "rank" in mode else 2e-6
    )  # legt: its own 2 x 2 determinants
    assert disagreement(layer(s4, torch.float64, **mode)) < 1e-12
    for length in (1, 2, 33):
        assert disagreement(layer(s4, torch.float64, d_state=6, **mode), length) < 1e-12


@pytest.mark.parametrize("mode", ["nplr", "diag"])
def test_gradients_of_espnet_are_those_of_the_sum_over_pairs(
    imported: Callable[[], ModuleType], mode: str
) -> None:
    s4: Any = imported()
    half = s4.cauchy_naive
    s4.cauchy_naive = lambda v, z, w: half(torch.cat((v, v.conj()), -1), z, torch.cat((w, w.conj()), -1))
    x = torch.randn(2, 40, 8, dtype=torch.float64)

    def gradients() -> list[Tensor]:
        module = layer(s4, torch.float64, mode=mode)
        module(x)[0].square().sum().backward()
        return [p.grad for p in module.parameters() if p.grad is not None]

    expected = gradients()
    with compat.install():
        actual = gradients()
    assert len(actual) >= 8
    for mine, want in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, want, rtol=0, atol=1e-9 * float(want.abs().max()))


def test_a_keops_that_needs_a_gpu_is_not_asked(imported: Callable[[], ModuleType]) -> None:
    s4: Any = imported()
    s4.has_pykeops = True
    with compat.install():
        assert disagreement(layer(s4)) < 2e-6
    assert s4.has_pykeops is True


def test_the_extension_modules_can_be_imported_and_go_again() -> None:
    assert importlib.util.find_spec("cauchy_mult") is None
    compat.install()
    for name, functions in (
        ("cauchy_mult", ["cauchy_mult_fwd", "cauchy_mult_bwd", "cauchy_mult_sym_fwd", "cauchy_mult_sym_bwd"]),
        (
            "structured_kernels",
            ["cauchy_mult_sym_fwd", "cauchy_mult_sym_bwd", "vand_log_mult_sym_fwd", "vand_log_mult_sym_bwd"],
        ),
    ):
        assert importlib.util.find_spec(name) is not None
        module = importlib.import_module(name)
        assert all(getattr(module, function) is getattr(extensions, function) for function in functions)
    compat.uninstall()
    for name in ("cauchy_mult", "structured_kernels"):
        with pytest.raises(ImportError):
            importlib.import_module(name)
    compat.uninstall()  # nothing is left to undo


def test_everything_is_put_back(imported: Callable[[], ModuleType]) -> None:
    s4 = imported()
    before, finders, modules = dict(vars(s4)), list(sys.meta_path), dict(sys.modules)
    with compat.install():
        compat.install()  # once more changes nothing
        assert vars(s4)["cauchy_naive"] is extensions.cauchy
    assert vars(s4) == before
    assert sys.meta_path == finders
    assert sys.modules == modules


WRAPPED = """
try:
    from structured_kernels import cauchy_mult_sym_bwd, cauchy_mult_sym_fwd
    has_cuda_extension = True
except ImportError:
    has_cuda_extension = False
has_pykeops = False

def cauchy_cuda(v, z, w):
    raise NotImplementedError("CUDA only")

def cauchy_naive(v, z, w):
    raise NotImplementedError("slow")

def log_vandermonde_naive(v, x, L, conj=True):
    raise NotImplementedError("slow")
"""


@pytest.mark.parametrize("first", ["install", "import"])
def test_code_that_is_laid_out_as_s4_v4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str) -> None:
    """A module that finds its extension when it is imported, or has found before that it has none."""
    package = tmp_path / "models_of_a_test" / "s4"
    package.mkdir(parents=True)
    (package / "s4.py").write_text(textwrap.dedent(WRAPPED))
    (tmp_path / "a_copy_of_a_test.py").write_text(textwrap.dedent(WRAPPED))
    monkeypatch.syspath_prepend(str(tmp_path))
    names = ("models_of_a_test.s4.s4", "a_copy_of_a_test")
    if first == "install":
        compat.install()
    known, copy = (importlib.import_module(name) for name in names)
    assert known.has_cuda_extension is False
    assert copy.has_cuda_extension is (first == "install")
    compat.install(copy)
    v, z, w = (
        torch.ones(2, 3, dtype=torch.complex64),
        torch.ones(4, dtype=torch.complex64),
        -torch.ones(2, 3) + 1j,
    )
    for module in (known, copy):
        assert module.has_cuda_extension is False
        assert torch.equal(module.cauchy_naive(v, z, w), extensions.cauchy(v, z, w))
        assert torch.equal(module.cauchy_cuda(v, z, w), extensions.cauchy(v, z, w))
        assert module.log_vandermonde_naive(v, w, 5).shape == (2, 5)
    compat.uninstall()
    for module in (known, copy):
        with pytest.raises(NotImplementedError):
            module.cauchy_naive(v, z, w)
    for name in names:
        del sys.modules[name]


def test_a_module_that_has_nothing_to_do_with_it_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    stranger = ModuleType("somewhere.s4")
    stranger.cauchy_naive = lambda v, z, w: "mine"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "somewhere.s4", stranger)
    with compat.install():
        assert stranger.cauchy_naive(0, 0, 0) == "mine"
        compat.install(stranger)
        assert stranger.cauchy_naive is extensions.cauchy


def test_only_modules_can_be_named() -> None:
    with pytest.raises(TypeError, match="modules must be modules, got str"):
        compat.install("models.s4.s4")  # type: ignore[arg-type]
    assert importlib.util.find_spec("cauchy_mult") is None


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    v, w, z = (
        t.cuda()
        for t in (torch.randn(3, 5, dtype=torch.complex64), torch.randn(3, 5) - 1j, torch.ones(7) * 1j)
    )
    torch.testing.assert_close(
        extensions.cauchy_mult_sym_fwd(v, z, w).cpu(),
        extensions.cauchy_mult_sym_fwd(v.cpu(), z.cpu(), w.cpu()),
    )


def test_a_blocked_import_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "somewhere.s4", None)
    for _ in range(2):
        with compat.install():
            assert sys.modules["structured_kernels"].__spec__.origin == "sequence_kernels.compat.install"
        assert "structured_kernels" not in sys.modules or sys.modules["structured_kernels"] is None


def test_what_was_adopted_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """SSSD's fallback is called ``cauchy_slow``; a module of that name without flags is left, and that is said."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "S4Model.py").write_text(
        textwrap.dedent(
            """
            try:
                from cauchy_mult import cauchy_mult_sym_fwd
                has_cauchy_extension = True
            except ImportError:
                has_cauchy_extension = False
            has_pykeops = False
            if not has_cauchy_extension:
                def cauchy_slow(v, z, w):
                    return None
                cauchy_conj_slow = cauchy_slow
            """
        )
    )
    (tmp_path / "ssm.py").write_text("other = 1")
    (tmp_path / "taker.py").write_text("from S4Model import cauchy_slow\nhas_pykeops = False")
    monkeypatch.setitem(sys.modules, "cauchy_mult", None)
    for name in ("S4Model", "ssm", "taker"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    module, _ = importlib.import_module("S4Model"), importlib.import_module("ssm")
    own, taker = module.cauchy_slow, importlib.import_module("taker")
    done = compat.install()
    assert {"cauchy_slow", "cauchy_conj_slow"} < set(done.adopted["S4Model"])
    assert not any(name.startswith("torch.") for name in done.left)  # torch.distributions.cauchy
    assert "adopted S4Model: " in capsys.readouterr().out
    assert "install(module)" in done.left["ssm"]
    assert module.cauchy_slow is taker.cauchy_slow is extensions.cauchy
    compat.uninstall()
    assert module.cauchy_slow is own

    monkeypatch.delitem(sys.modules, "S4Model")
    with compat.install():
        meanwhile = importlib.import_module("S4Model")
        assert not meanwhile.has_cauchy_extension
    assert (
        not meanwhile.has_cauchy_extension
    )  # the extension that it found is gone, and it calls its fallback
    assert callable(meanwhile.cauchy_slow)
