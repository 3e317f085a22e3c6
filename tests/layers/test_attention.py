"""Attention: its definition, its cache, memories and masks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sequence_kernels import SequenceModel
from sequence_kernels.layers.attention import MultiHeadedAttention

WIDTH, HEADS, BATCH, LENGTH, MEMORY = 6, 2, 2, 9, 5


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def exact(layer: MultiHeadedAttention, x: Tensor, seen: Tensor, visible: Tensor) -> Tensor:
    """Attention by loops over sequences, heads and positions."""
    size = WIDTH // HEADS
    q, k, v = layer.linear_q(x), layer.linear_k(seen), layer.linear_v(seen)
    y = torch.zeros_like(x)
    for b in range(len(x)):
        for h in range(HEADS):
            part = slice(h * size, (h + 1) * size)
            for t in range(x.shape[1]):
                at = visible[b, t].nonzero().flatten()
                weights = (k[b, at, part] @ q[b, t, part] / size**0.5).softmax(0)
                y[b, t, part] = weights @ v[b, at, part]
    return layer.linear_out(y)


def layer_and_inputs(causal: bool = True) -> tuple[MultiHeadedAttention, Tensor, Tensor]:
    layer = MultiHeadedAttention(WIDTH, HEADS, causal=causal).double().eval()
    x, memory = (torch.randn(BATCH, n, WIDTH, dtype=torch.float64) for n in (LENGTH, MEMORY))
    return layer, x, memory


@pytest.mark.parametrize("causal", [False, True])
def test_definition(causal: bool) -> None:
    layer, x, memory = layer_and_inputs(causal)
    everything = torch.ones(BATCH, LENGTH, LENGTH)
    torch.testing.assert_close(layer(x)[0], exact(layer, x, x, everything.tril() if causal else everything))
    mask = torch.rand(BATCH, LENGTH, MEMORY) > 0.6
    torch.testing.assert_close(layer(x, memory=memory, mask=mask)[0], exact(layer, x, memory, mask))
    assert torch.equal(layer(x, memory=memory, mask=mask.int())[0], layer(x, memory=memory, mask=mask)[0])


def test_a_mask_and_the_past_hide_together() -> None:
    layer, x, _ = layer_and_inputs()
    mask = torch.rand(BATCH, LENGTH, LENGTH) > 0.4
    expected = exact(layer, x, x, mask.tril())
    torch.testing.assert_close(layer(x, mask=mask)[0], expected)
    state, parts = layer.default_state(BATCH), []
    for start, stop in ((0, 1), (1, 5), (5, LENGTH)):
        y, state = layer(x[:, start:stop], state, mask=mask[:, start:stop, :stop])
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), expected)


def test_step_sees_all_that_came_before() -> None:
    """ESPnet's step without a memory sees its own element only (1.6 off)."""
    layer, x, _ = layer_and_inputs()
    state, outputs = None, []
    for t in range(LENGTH):
        y, state = layer.step(x[:, t], state)
        outputs.append(y)
        assert state[0].shape == (BATCH, HEADS, t + 1, WIDTH // HEADS)
    torch.testing.assert_close(torch.stack(outputs, 1), layer(x)[0])


def test_a_memory_is_mapped_once() -> None:
    layer, x, memory = layer_and_inputs()
    expected = layer(x, memory=memory)[0]
    calls: list[Tensor] = []
    layer.linear_k.register_forward_hook(lambda module, inputs, output: calls.append(output))
    state, outputs = layer.default_state(BATCH), []
    for t in range(LENGTH):
        y, state = layer.step(x[:, t], state, memory=memory)
        outputs.append(y)
    torch.testing.assert_close(torch.stack(outputs, 1), expected)
    assert len(calls) == 1
    with pytest.raises(ValueError, match="state holds 5 elements of a memory, but this memory has 3"):
        layer.step(x[:, 0], state, memory=memory[:, :3])


@pytest.mark.parametrize("transposed", [False, True])
def test_both_layouts(transposed: bool) -> None:
    """ESPnet's ignores `transposed`: in a transposed stack it crashes."""
    layer, x, memory = layer_and_inputs()
    turned = MultiHeadedAttention(WIDTH, HEADS, transposed=transposed).double().eval()
    turned.load_state_dict(layer.state_dict())
    y, _ = turned(x.mT if transposed else x, memory=memory)
    torch.testing.assert_close(y.mT if transposed else y, layer(x, memory=memory)[0])
    stack = SequenceModel(WIDTH, transposed=transposed, layer={"_name_": "mha", "n_head": 2}, residual="R")
    assert stack(x.float())[0].shape == x.shape


def test_bfloat16_with_a_mask() -> None:
    """ESPnet's raises TypeError: it asks numpy for bfloat16's least value."""
    layer, x, memory = layer_and_inputs()
    mask = torch.rand(BATCH, 1, MEMORY) > 0.4
    mask[..., 0] = True
    expected = layer(x, memory=memory, mask=mask)[0]
    y, _ = layer.to(torch.bfloat16)(x.bfloat16(), memory=memory.bfloat16(), mask=mask)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), expected, rtol=0.05, atol=0.02)


def test_no_weights_are_kept() -> None:
    """ESPnet's keeps the attention of the latest call, and with it the graph of the whole batch."""
    layer, x, _ = layer_and_inputs()
    before = set(vars(layer))
    layer(x)
    assert set(vars(layer)) == before


def test_widths_are_set() -> None:
    """In ESPnet `d_model` of an attention or feed-forward layer raises."""
    layer = MultiHeadedAttention(WIDTH, HEADS)
    assert (layer.d_model, layer.d_output) == (WIDTH, WIDTH)
    with pytest.raises(ValueError, match="n_head must divide the width 6, got 4"):
        MultiHeadedAttention(WIDTH, 4)
    with pytest.raises(ValueError, match=r"x must have shape \(..., length, d_model=6\), got \(2, 3, 5\)"):
        layer(torch.randn(2, 3, 5))
    with pytest.raises(TypeError, match="colour"):
        MultiHeadedAttention(WIDTH, HEADS, colour="red")


def test_attention_to_the_whole_sequence_does_not_stream() -> None:
    layer, x, memory = layer_and_inputs(causal=False)
    assert not layer.causal
    for call in (lambda: layer.step(x[:, 0]), lambda: layer.default_state(2), lambda: layer(x, (x, x))):
        with pytest.raises(ValueError, match="whole sequence"):
            call()
    assert layer(x, memory=memory)[1] is None


def test_dropout_is_of_the_weights() -> None:
    layer, x, _ = layer_and_inputs()
    layer = MultiHeadedAttention(WIDTH, HEADS, dropout=0.5).double()
    assert not torch.equal(layer(x)[0], layer(x)[0])
    layer.eval()
    assert torch.equal(layer(x)[0], layer(x)[0])


def test_a_stepper_with_a_memory() -> None:
    layers = [{"_name_": "s4d", "d_state": 4}, {"_name_": "mha", "n_head": 2}, "ff"]
    model = SequenceModel(WIDTH, 2, layer=layers, residual="R", norm="layer").double().eval()
    _, x, memory = layer_and_inputs()
    expected = model(x, memory=memory)[0]
    stepper = model.stepper((BATCH,), memory=memory)
    with torch.no_grad():
        torch.testing.assert_close(
            torch.stack([stepper.step(one) for one in x[:, :4].unbind(1)], 1), expected[:, :4]
        )
        middle = stepper.state
        torch.testing.assert_close(stepper.forward(x[:, 4:]), expected[:, 4:])
        stepper.state = middle
        torch.testing.assert_close(stepper.forward(x[:, 4:]), expected[:, 4:])


def test_lengths_with_a_state() -> None:
    """What is not real stays in the cache, and is not seen."""
    layer = MultiHeadedAttention(WIDTH, HEADS)
    x, lengths = torch.randn(BATCH, LENGTH, WIDTH), torch.tensor([LENGTH, 2])
    _, state = layer(x, layer.default_state(BATCH), lengths=lengths)
    more = torch.randn(BATCH, 3, WIDTH)
    y, state = layer(more, state)
    last, _ = layer.step(more[:, 0], state)
    alone, own = layer(torch.cat((x[1:, :2], more[1:]), 1), layer.default_state(1))
    torch.testing.assert_close(y[1], alone[0, 2:])
    torch.testing.assert_close(last[1:], layer.step(more[1:, 0], own)[0])
    with pytest.raises((ValueError, RuntimeError)) as caught:  # what is wrong is the mask, not the state
        layer(more, state, mask=torch.ones(BATCH, 1, 2))
    assert "state must" not in str(caught.value)
    memory = torch.randn(BATCH, MEMORY, WIDTH)
    layer(x, layer.default_state(BATCH), memory=memory, lengths=lengths)
