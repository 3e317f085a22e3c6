"""What the rule chooses, against the times that were recorded, and what it must not look at."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch

from sequence_kernels import S4, S4D, native, ops
from sequence_kernels.ssm import choose_convolution

from ..ops.samples import Recorded

needs_cpu = pytest.mark.skipif(native.unavailable("cpu") is not None, reason="needs the native library")
RESULTS = Path(__file__).parents[2] / "bench" / "results"


def recorded(name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((RESULTS / f"{name}.json").read_text())["rows"]
    return rows


def cases() -> list[list[dict[str, Any]]]:
    def case(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["dense"], row["size"], row["batch"], row["length"]

    return [list(rows) for _, rows in groupby(recorded("conv_choice"), case)]


@pytest.mark.parametrize("rows", cases())
def test_the_choice_is_close_to_the_best_that_was_measured(rows: list[dict[str, Any]]) -> None:
    first = rows[0]
    conv, chunk = choose_convolution(
        first["batch"], first["length"], first["size"], dense=first["dense"], backend="cpu", state=True
    )
    (chosen,) = (r for r in rows if r["conv"] == conv and r["chunk"] in (chunk, 0))
    for time in ("forward", "both"):
        assert chosen[time] <= 1.25 * min(r[time] for r in rows)


@pytest.mark.parametrize("row", recorded("direct_choice"))
def test_what_is_convolved_directly_is_not_much_faster_in_chunks(row: dict[str, Any]) -> None:
    conv, _ = choose_convolution(row["batch"], row["length"], row["size"], dense=row["dense"], backend="cpu")
    times_slower = 1 / row["both"] if conv == "direct" else row["both"]
    assert times_slower <= 1.25


def test_an_fft_in_plain_torch_for_few_elements_where_no_state_is_carried() -> None:
    for dense, most in ((True, 4095), (False, 16383)):
        assert choose_convolution(1, most, 64, dense=dense, backend="torch") == ("fft", 32)
        assert choose_convolution(1, most + 1, 64, dense=dense, backend="torch") == ("chunked", 32)
        assert choose_convolution(1, most, 64, dense=dense, backend="torch", state=True).conv == "chunked"


def test_explain_says_what_is_chosen_and_why() -> None:
    said = ops.explain("ssm_conv", "cuda", batch=8, length=1024, size=64, dense=False)
    assert "fft (8192 elements a head, a diagonal A with a state of 64; in plain torch faster than" in said
    said = ops.explain("ssm_conv", "cuda", batch=8, length=4096, size=64, dense=True, state=True)
    assert "chunked, 64 elements a chunk (32768 elements a head, a dense A" in said
    assert "nothing else carries a state" in said
    said = ops.explain("ssm_conv", batch=8, length=80, size=64, dense=True)
    assert (
        "direct (640 elements a head, a dense A with a state of 64; measured to be faster up to 256" in said
    )
    with pytest.raises(TypeError, match="nothing depends on the shape for fft_conv, got batch, length"):
        ops.explain("fft_conv", batch=8, length=4096)


@pytest.mark.parametrize("layer", [S4, S4D])
def test_every_choice_is_the_same_layer(layer: type[S4]) -> None:
    torch.manual_seed(0)
    free = layer(4, 8, l_max=None).double()
    x = torch.randn(3, 4, 800, dtype=torch.float64)  # 2400 elements a head: chunks of 32
    state = free.default_state(3)
    want, _ = free(x, state)
    for conv in ("chunked", "fft", None):
        free.conv = conv
        torch.testing.assert_close(free(x)[0], want, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(free(x[..., :100])[0], want[..., :100], rtol=1e-9, atol=1e-9)
    with ops.use_backend("torch"):
        torch.testing.assert_close(free(x)[0], want, rtol=1e-9, atol=1e-9)


def ops_called(layer: S4, x: torch.Tensor, state: torch.Tensor | None = None) -> set[str]:
    with Recorded() as recorded:
        layer(x, state)
    return {call.op._opname for call in recorded.calls}


@needs_cpu
@pytest.mark.parametrize("layer", [S4, S4D])
def test_short_sequences_make_no_chunk_matrices(layer: type[S4]) -> None:
    """Directly where no state is carried and nothing but the fastest way is asked for, at every length that is."""
    model = layer(3, 64).double()
    x = torch.randn(2, 3, 257, dtype=torch.float64)
    want, _ = model(x, model.default_state(2))
    for length in (1, 2, 64, 128):
        assert "ssm_direct" in ops_called(model, x[..., :length])
        torch.testing.assert_close(model(x[..., :length])[0], want[..., :length], rtol=1e-9, atol=1e-9)
    assert "ssm_chunk" in ops_called(model, x)
    assert "ssm_chunk" in ops_called(model, x[..., :64], model.default_state(2))
    model.conv = "chunked"
    assert "ssm_chunk" in ops_called(model, x[..., :64])
    with ops.use_backend("torch"):
        assert "ssm_direct" not in ops_called(model, x[..., :64])


@needs_cpu
def test_padding_is_not_read_and_the_kernel_may_be_cut_off_behind_the_end() -> None:
    model = S4D(3, 64, l_max=80).double()
    x = torch.randn(2, 3, 60, dtype=torch.float64)
    lengths = torch.tensor([60, 17])
    x[1, :, 17:] = float("nan")
    assert "ssm_direct" in ops_called(model, x[:1])
    short = model(x[1:, :, :17])[0]
    torch.testing.assert_close(model(x, lengths=lengths)[0][1:, :, :17], short)


@pytest.mark.parametrize("layer", [S4, S4D])
@pytest.mark.parametrize("state", [False, True])
def test_one_compiled_graph_serves_all_lengths(layer: type[S4], state: bool) -> None:
    """Whole chunks and others, few elements and many: on both sides of every border of the rule."""
    model = layer(3, 8).eval()
    graphs: list[torch.fx.GraphModule] = []

    def counting(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counting)
    with torch.no_grad():
        for length in (40, 64, 77, 1500, 9000):
            x = torch.randn(2, 3, length)
            initial = model.default_state(2) if state else None
            torch.testing.assert_close(compiled(x, initial), model(x, initial), rtol=1e-4, atol=1e-4)
    assert len(graphs) == 1


@pytest.mark.parametrize("layer", [S4, S4D])
@pytest.mark.parametrize("conv", ["chunked", "fft"])
def test_autocast_gives_what_a_linear_layer_gives(layer: type[S4], conv: str) -> None:
    """Activations in autocast's dtype, parameters and their gradients in float32."""
    torch.manual_seed(0)
    model, x = layer(4, 8, conv=conv, postact=None, activation=None), torch.randn(2, 4, 70)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)[0]
        assert model._convolve(x, None, 1.0, None)[0].dtype == y.dtype == torch.nn.Linear(70, 3)(x).dtype
    y.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
    assert float((y - model(x)[0]).detach().norm() / y.detach().norm()) < 2e-2
