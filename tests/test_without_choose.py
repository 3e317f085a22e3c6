"""Ops that are reached without their Python front load what they need: exported programs, graphs, calls by hand."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sequence_kernels import S4, S4D, BackendUnavailableError

from .ops.samples import every_call

ROOT = Path(__file__).parent.parent


def in_a_fresh_process(program: str) -> None:
    """Run it after `import sequence_kernels`, which loads no library."""
    program = f"import pickle, torch, sequence_kernels\n{program}"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_an_exported_layer_runs_where_nothing_has_been_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.ModuleList([S4D(8, 8, transposed=False), S4(8, 8, transposed=False)]).eval()
    x = torch.randn(2, 40, 8)
    for layer, name in zip(model, ("s4d", "s4"), strict=True):
        torch.export.save(torch.export.export(layer, (x,)), tmp_path / f"{name}.pt2")
        torch.save((x, layer(x)[0].detach()), tmp_path / f"{name}.pt")
    in_a_fresh_process(
        f"for name in ('s4d', 's4'):\n"
        f"    x, y = torch.load(f'{tmp_path}/{{name}}.pt')\n"
        f"    layer = torch.export.load(f'{tmp_path}/{{name}}.pt2').module()\n"
        f"    torch.testing.assert_close(layer(x)[0], y)\n"
    )


def test_every_op_runs_from_a_pickled_graph(tmp_path: Path) -> None:
    """The first op that a process runs loads the library for all."""
    calls = [(op._opname, args, results) for op, args, results in every_call() if op._opname[-1] != "_"]
    (tmp_path / "calls.pkl").write_bytes(pickle.dumps(calls))
    in_a_fresh_process(
        f"for name, args, expected in pickle.load(open('{tmp_path}/calls.pkl', 'rb')):\n"
        "    graph = torch.fx.Graph()\n"
        "    inputs = [graph.placeholder(f'x{i}') for i in range(len(args))]\n"
        "    graph.output(graph.call_function(getattr(torch.ops.sequence_kernels, name).default, tuple(inputs)))\n"
        "    module = torch.fx.GraphModule({}, graph)\n"
        "    out = pickle.loads(pickle.dumps(module))(*args)\n"
        "    for got, want in zip(out if isinstance(out, (tuple, list)) else [out], expected, strict=True):\n"
        "        torch.testing.assert_close(got, want, equal_nan=True)\n"
    )


def test_a_backend_that_cannot_serve_says_so() -> None:
    v = torch.ones(1, 1, 3)
    with pytest.raises(BackendUnavailableError, match=r"fft_conv\(backend='cpu'\): fft_conv has no 'cpu'"):
        torch.ops.sequence_kernels.fft_conv(v, v, None, False, "cpu")
    with pytest.raises(ValueError, match="backend must be None or one of"):
        torch.ops.sequence_kernels.fft_conv(v, v, None, False, "numpy")
