"""Readouts of sequences and of states."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from sequence_kernels import S4D, FeedForward, SequenceDecoder, SequenceModel, StateDecoder, StateEncoder
from sequence_kernels.models import merge_states, select_state, split_states


def readouts(x: torch.Tensor, mode: str) -> torch.Tensor:
    """(L, D): as the definition says, element by element."""
    if mode == "last":
        return x
    rows = [x[: t + 1].sum(0) / (t + 1 if mode == "pool" else 1) for t in range(len(x))]
    return torch.stack(rows)


@pytest.mark.parametrize("mode", ["last", "pool", "sum"])
@pytest.mark.parametrize("l_output", [None, 0, 1, 3])
@pytest.mark.parametrize("given", [False, True])
def test_readouts(mode: str, l_output: int | None, given: bool) -> None:
    torch.manual_seed(0)
    decoder = SequenceDecoder(4, 3, l_output, mode).double()
    x = torch.randn(2, 7, 4, dtype=torch.float64)
    lengths = torch.tensor([7, 4]) if given else None
    y, _ = decoder(x, lengths=lengths)
    for row, sequence, length in zip(y, x, [7, 4] if given else [7, 7], strict=True):
        want = decoder.output_transform(readouts(sequence[:length], mode))
        if l_output is not None:
            want = want[length - l_output :] if l_output else want[-1]
        torch.testing.assert_close(row[:length] if l_output is None else row, want)


@pytest.mark.parametrize("mode", ["pool", "sum"])
def test_the_state_is_the_one_after_the_real_elements(mode: str) -> None:
    decoder = SequenceDecoder(4, mode=mode)
    x = torch.randn(2, 7, 4)
    _, state = decoder(x, decoder.default_state(2), lengths=torch.tensor([7, 4]))
    for i, length in enumerate([7, 4]):
        _, alone = decoder(x[i : i + 1, :length], decoder.default_state(1))
        torch.testing.assert_close(select_state(state, slice(i, i + 1)), alone)


def test_what_a_sequence_decoder_refuses() -> None:
    with pytest.raises(ValueError, match="mode must be one of"):
        SequenceDecoder(4, mode="first")
    with pytest.raises(ValueError, match="l_output must be at least 0, got -1"):
        SequenceDecoder(4, l_output=-1)
    with pytest.raises(ValueError, match=r"x must have shape \(\.\.\., length, d_model=4\), got \(2, 3, 5\)"):
        SequenceDecoder(4)(torch.randn(2, 3, 5))
    with pytest.raises(ValueError, match="at least l_output=2 elements, got 1"):
        SequenceDecoder(4, l_output=2)(torch.randn(2, 1, 4))
    with pytest.raises(ValueError, match=r"lengths must be in 2 \.\. 3"):
        SequenceDecoder(4, l_output=2)(torch.randn(2, 3, 4), lengths=torch.tensor([1, 3]))
    with pytest.raises(ValueError, match="lengths must have shape"):
        SequenceDecoder(4)(torch.randn(2, 3, 4), lengths=torch.tensor([1, 2, 3]))


def model() -> SequenceModel:
    torch.manual_seed(0)
    return SequenceModel(6, n_layers=2, layer=[{"_name_": "s4d", "d_state": 4}, "ff"], residual="R")


def test_states_as_vectors() -> None:
    encoder = StateEncoder(model())
    x = torch.randn(3, 20, 6)
    vector = encoder(x)
    assert vector.shape == (3, encoder.d_output)
    shorter = encoder(x, lengths=torch.tensor([5, 20, 1]))
    torch.testing.assert_close(shorter[0], encoder(x[:, :5])[0], rtol=1e-4, atol=1e-5)

    decoder = StateDecoder(encoder.module, 2)
    assert {name for name, _ in decoder.named_parameters()} == {
        "output_transform.weight",
        "output_transform.bias",
    }
    _, state = encoder.module(x, encoder.module.default_state(3))
    expected = decoder.output_transform(vector)
    for one in (decoder, copy.deepcopy(decoder), pickle.loads(pickle.dumps(decoder))):
        torch.testing.assert_close(one(state), expected)

    for kind in (StateEncoder, lambda module: StateDecoder(module, 2)):
        with pytest.raises(ValueError, match="module must have a state, and a FeedForward has none"):
            kind(FeedForward(4))


def test_states_of_several_sequences_are_those_of_a_batch() -> None:
    stack = model()
    x = torch.randn(3, 6)
    states = [stack.step(one)[1] for one in x]
    merged = merge_states(states)
    torch.testing.assert_close(merged, stack.step(x)[1])
    for state, again in zip(states, split_states(merged, 3), strict=True):
        torch.testing.assert_close(state, again)
    twice = select_state(merged, torch.tensor([2, 2]))
    torch.testing.assert_close(select_state(twice, 1), states[2])
    tree = {"a": (torch.ones(2), None), "b": [torch.zeros(1)]}
    assert merge_states([tree, tree])["a"][0].shape == (2, 2)
    assert select_state(merge_states([tree, tree]), 0)["a"][1] is None
    with pytest.raises(ValueError, match="at least one state"):
        merge_states([])


def test_a_state_decoder_beside_its_module() -> None:
    """Copied together, the copy reads the copy's states by the copy's module."""
    layer = S4D(4, 4)
    both = torch.nn.ModuleDict({"layer": layer, "decoder": StateDecoder(layer, 2)})
    again = copy.deepcopy(both)
    assert again["decoder"]._module[0] is again["layer"]


@pytest.mark.parametrize("mode", ["pool", "sum"])
def test_half_precision_counts_beyond_its_digits(mode: str) -> None:
    """In bfloat16 256 + 1 is 256."""
    decoder, state = SequenceDecoder(1, 1, mode=mode).bfloat16(), None
    x = torch.cat((torch.zeros(1, 300, 1), torch.ones(1, 300, 1)), 1).bfloat16()
    for element in x.unbind(1):
        y, state = decoder.step(element, state)
    assert y.dtype == torch.bfloat16
    assert state is not None
    assert [part.item() for part in state] == [300.0, 600.0]
    torch.testing.assert_close(y, decoder(x)[0][:, -1])


def test_lengths_are_a_tensor_or_a_list() -> None:
    x = torch.randn(2, 5, 4)
    y, _ = SequenceDecoder(4)(x, lengths=torch.tensor([3, 4]))
    torch.testing.assert_close(SequenceDecoder(4)(x, lengths=[3, 4])[0], y, rtol=0, atol=0)


def test_lengths_of_a_wrong_kind_are_named() -> None:
    with pytest.raises(TypeError, match="lengths must be integers"):
        SequenceDecoder(4)(torch.randn(2, 5, 4), lengths=[3.0, 4.0])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="x must have shape"):
        SequenceDecoder(4)(torch.randn(5, 4), lengths=torch.tensor([3, 4, 5, 1, 1]))
