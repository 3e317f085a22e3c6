"""What the rule chooses, against the times that were recorded, and what it must not look at."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch

from sequence_kernels import S4, S4D, ops
from sequence_kernels.ssm import choose_convolution

RECORDED = Path(__file__).parents[2] / "bench" / "results" / "conv_choice.json"


def cases() -> list[list[dict[str, Any]]]:
    def case(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["dense"], row["size"], row["batch"], row["length"]

    return [list(rows) for _, rows in groupby(json.loads(RECORDED.read_text())["rows"], case)]


@pytest.mark.parametrize("rows", cases())
def test_the_choice_is_close_to_the_best_that_was_measured(rows: list[dict[str, Any]]) -> None:
    first = rows[0]
    conv, chunk = choose_convolution(
        first["batch"], first["length"], first["size"], dense=first["dense"], backend="cpu"
    )
    (chosen,) = (r for r in rows if r["conv"] == conv and r["chunk"] in (chunk, 0))
    for time in ("forward", "both"):
        assert chosen[time] <= 1.25 * min(r[time] for r in rows)


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
    assert "an FFT cannot carry the state" in said
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
