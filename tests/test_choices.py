"""Tables of measured times: how they are read, ranked and asked; and that each op with GPU kernels can be timed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sequence_kernels import choices, ops
from sequence_kernels.choices import Row, Table
from sequence_kernels.ops import dispatch

DEVICE = torch.device("cuda", 0)
MACHINE = {"gpu": "NVIDIA H200", "date": "2026-12-01"}


def row(shape: str, elements: int, backend: str, forward: float, both: float | None = None) -> Row:
    return Row("ssm_conv", "float32", shape, elements, backend, forward, both)


ROWS = (
    row("small", 100, "torch", 1.0, 2.0),
    row("small", 100, "cuda", 2.0, 1.0),
    row("large, diagonal", 10000, "torch", 9.0, 9.0),
    row("large, diagonal", 10000, "cuda", 2.0, 9.5),
    row("large, dense", 10000, "cuda", 2.0, 9.5),
    row("large, dense", 10000, "torch", 3.0, 9.0),
    row("large, dense", 10000, "triton", 0.1, 0.1),
)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> choices.Measured:
    monkeypatch.setattr(choices, "_table", lambda device: Table(MACHINE, ROWS))
    found = choices.measured("ssm_conv", "float32", DEVICE)
    assert found is not None
    assert choices.measured("ssm_conv", "float64", DEVICE) is None
    assert choices.measured("cauchy", "float32", DEVICE) is None
    return found


def test_backends_are_ranked_by_the_product_of_their_times(measured: choices.Measured) -> None:
    """Without gradients, with them; who has not done all shapes is last, however fast it was."""
    (few, small), (many, large) = measured.sizes
    assert (few, many) == (100, 10000)
    assert (small.forward, small.both) == (("torch", "cuda"), ("cuda", "torch"))
    assert (large.forward, large.both) == (("cuda", "torch", "triton"), ("torch", "cuda", "triton"))
    assert measured.ever_fastest() == {"cuda", "torch"}
    assert measured.overall == ("cuda", "torch", "triton")


def test_a_size_serves_up_to_halfway_to_the_next_one(measured: choices.Measured) -> None:
    by_size = choices.by_size(measured, ["cuda", "torch"])
    assert [by_size.backend(n, gradients=False) for n in (0, 999, 1001, 10**9)] == [
        "torch",
        "torch",
        "cuda",
        "cuda",
    ]
    assert [by_size.backend(n, gradients=True) for n in (0, 999, 1001, 10**9)] == [
        "cuda",
        "cuda",
        "torch",
        "torch",
    ]
    assert choices.by_size(measured, ["triton"]).backend(5, gradients=True) == "triton"


def test_a_table_is_written_and_read_and_a_damaged_one_is_none(tmp_path: Path) -> None:
    file = tmp_path / "choices.json"
    assert choices.read(file) is None
    file.write_text(choices.written(Table(MACHINE, ROWS)))
    assert choices.read(file) == Table(MACHINE, ROWS)
    for text in ("", "{", "[]", '{"machine": {}}', '{"machine": {}, "rows": [{"op": "cauchy"}]}'):
        file.write_text(text)
        assert choices.read(file) is None


def test_a_table_that_ships_serves_its_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choices, "SHIPPED", tmp_path)
    monkeypatch.setattr(choices, "path", lambda device: tmp_path / "own.json")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    (tmp_path / "nvidia-h200.json").write_text(choices.written(Table(MACHINE, ROWS)))
    choices.forget()
    assert choices._table(DEVICE) == Table(MACHINE, ROWS)
    (tmp_path / "own.json").write_text(choices.written(Table(MACHINE, ROWS[:2])))
    choices.forget()
    assert choices._table(DEVICE) == Table(MACHINE, ROWS[:2])
    choices.forget()


def test_tables_that_ship_can_be_read() -> None:
    for file in choices.SHIPPED.glob("*.json"):
        table = choices.read(file)
        assert table is not None
        assert choices.slug(table.machine["gpu"]) == file.stem
        assert all(r.op in ops.operations() for r in table.rows)


@pytest.mark.parametrize(
    "op",
    [
        op
        for op in ops.operations()
        if not op.endswith("_backward") and dispatch._unprovable(op, "cuda") is None
    ],
)
def test_every_op_with_gpu_kernels_can_be_timed(op: str) -> None:
    """Its smallest call is one that plain torch takes; gradients are timed with the op that they are of."""
    for kind in dispatch._proofs(op).PRECISIONS:
        assert len({w.shape for w in dispatch.workloads(op, kind)}) == len(dispatch.workloads(op, kind)) > 1
    smallest = min(dispatch.workloads(op, "float32"), key=lambda workload: workload.elements)
    args = smallest.make()
    assert any(isinstance(a, torch.Tensor) and a.numel() == smallest.elements for a in args)
    with torch.no_grad():
        results = getattr(torch.ops.sequence_kernels, op).default(*args, "torch")
    results = results if isinstance(results, (tuple, list)) else (results,)
    assert all(r.isfinite().all() for r in results)
