"""What lies past the end of a sequence is never read: every class that the library exports, forward and backward."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sequence_kernels import S4, S4Decoder, SequenceModel, SequenceModule, SequenceResidualBlock, StateEncoder
from sequence_kernels.layers.norms import Normalization
from sequence_kernels.layers.pools import DownSpectralPool, UpPool
from sequence_kernels.layers.series_norms import (
    ReversibleInstanceNorm1dInput,
    ReversibleInstanceNorm1dOutput,
    TSInverseNormalization,
    TSNormalization,
)

from .test_law import WIDTH, Factory, all_cases, causal_cases, close, grows, layout_of, tensors

F64 = torch.float64
LENGTH = 40
BAD = {"nan": float("nan"), "inf": float("inf"), "largest": torch.finfo(F64).max}

bad_padding = pytest.mark.parametrize("bad", BAD.values(), ids=BAD)


def real(lengths: Tensor, length: int = LENGTH) -> Tensor:
    return (torch.arange(length) < lengths.unsqueeze(-1)).unsqueeze(-1)


def forward(module: SequenceModule, x: Tensor, state: Any = None, **given: Any) -> tuple[Tensor, Any]:
    """(batch, length, width) in and out, whatever the layout of the module."""
    y, state = module(x.mT if layout_of(module) else x, state, **given)
    return (y.mT if layout_of(module) else y), state


def row(state: Any, i: int) -> Any:
    if isinstance(state, Tensor):
        return state[i : i + 1]
    return type(state)(row(part, i) for part in state) if isinstance(state, (list, tuple)) else state


def losses(y: Tensor, state: Any) -> Tensor:
    """A loss to which every number of the result counts otherwise."""
    total = y.new_zeros(())
    for t in [y, *(torch.view_as_real(t) if t.is_complex() else t for t in tensors(state))]:
        total = total + (t * torch.cos(torch.arange(t.numel(), dtype=t.dtype)).view(t.shape)).sum()
    return total


def check(module: SequenceModule, bad: float, state: Any) -> None:
    """Rows of a padded batch give what each row gives alone: outputs, states, and gradients of both."""
    even = any(isinstance(part, DownSpectralPool) for part in module.modules())
    lengths = torch.tensor([18, LENGTH, 36, 4] if even else [19, LENGTH, 33, 3])
    torch.manual_seed(2)
    x = torch.randn(len(lengths), LENGTH, WIDTH, dtype=F64)
    padded = torch.where(real(lengths), x, bad).requires_grad_()
    alone = [x[i : i + 1, :n].clone().requires_grad_() for i, n in enumerate(lengths.tolist())]

    y, after = forward(module, padded, state, lengths=lengths)
    loss, want_loss = y.new_zeros(()), y.new_zeros(())
    for i, one in enumerate(alone):
        if isinstance(module, S4) and not module.causal and not module.bidirectional:
            one = nn.functional.pad(one, (0, 0, 0, LENGTH - one.shape[1]))  # its kernel depends on the length
        want, want_after = forward(module, one, row(state, i))
        kept = want.shape[1] if one is alone[i] else int(lengths[i])
        close((y[i : i + 1, :kept], row(after, i)), (want[:, :kept], want_after), 1e-11)
        loss = loss + losses(y[i : i + 1, :kept], row(after, i))
        want_loss = want_loss + losses(want[:, :kept], want_after)

    parameters = [p for p in module.parameters() if p.requires_grad]
    got_x, *got = torch.autograd.grad(loss, [padded, *parameters], allow_unused=True)
    all_wanted = torch.autograd.grad(want_loss, [*alone, *parameters], allow_unused=True)
    wanted_x, wanted = all_wanted[: len(alone)], all_wanted[len(alone) :]
    for i, want_x in enumerate(wanted_x):
        close(got_x[i : i + 1, : lengths[i]], want_x, 1e-10)
        assert bool((got_x[i, lengths[i] :] == 0).all())
    for left, right in zip(got, wanted, strict=True):
        assert (left is None) == (right is None)
        if left is not None and right is not None:
            assert float((left - right).abs().max()) <= 1e-10 * max(float(right.abs().max()), 1e-3)


@bad_padding
@all_cases
def test_rows_of_a_batch_are_as_they_are_alone(make: Factory, bad: float) -> None:
    check(make().double(), bad, None)


@bad_padding
@causal_cases
def test_and_so_are_their_states(make: Factory, bad: float) -> None:
    module = make().double()
    if grows(module):
        return  # a cache keeps what cannot be seen: test_sequences.py looks at how it goes on
    with torch.no_grad():
        _, state = forward(module, torch.randn(4, 12, WIDTH, dtype=F64), module.default_state(4))
    try:
        forward(module, torch.zeros(4, LENGTH, WIDTH, dtype=F64), state, lengths=torch.full((4,), LENGTH))
    except ValueError as error:
        assert "lengths cannot be given together with a state" in str(error)  # noqa: PT017
        return
    check(module, bad, state)


@causal_cases
def test_a_row_without_elements_keeps_its_state(make: Factory) -> None:
    module = make().double()
    if grows(module):
        return
    with torch.no_grad():
        _, state = forward(module, torch.randn(2, 12, WIDTH, dtype=F64), module.default_state(2))
    x = torch.full((2, LENGTH, WIDTH), float("nan"), dtype=F64)
    try:
        _, after = forward(module, x, state, lengths=torch.tensor([0, 0]))
    except ValueError as error:
        assert "lengths cannot be given together with a state" in str(error)  # noqa: PT017
        return
    close(after, state, 1e-15)


NORMS = ["layer", "batch", "instance", "group", "none"]


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("prenorm", [False, True])
def test_norms_between_layers(name: str, transposed: bool, prenorm: bool) -> None:
    torch.manual_seed(0)
    model = SequenceModel(
        WIDTH,
        n_layers=2,
        layer=[{"_name_": "s4d", "d_state": 4, "bidirectional": True}, "ff"],
        residual="H",
        norm=name,
        prenorm=prenorm,
        transposed=transposed,
        track_norms=True,
    )
    check(model.double().eval(), float("nan"), None)
    assert all(bool(value.isfinite()) for value in model.metrics.values())
    block = SequenceResidualBlock(WIDTH, residual="A", norm=name, prenorm=prenorm, pool="linear")
    check(block.double().eval(), float("nan"), None)


def test_metrics_are_of_real_elements() -> None:
    x, lengths = torch.randn(3, 20, WIDTH), torch.tensor([5, 20, 9])
    model = SequenceModel(WIDTH, n_layers=1, layer="ff", track_norms=True)
    y, _ = model(torch.where(real(lengths, 20), x, float("nan")), lengths=lengths)
    for i, z in enumerate((x, y)):
        want = z[real(lengths, 20).squeeze(-1)].square().mean()
        torch.testing.assert_close(model.metrics[f"norm/{i}"], want)


BATCH_NORMS: list[dict[str, Any]] = [
    {},
    {"momentum": None},
    {"momentum": 0.3, "eps": 1e-3},
    {"affine": False},
    {"track_running_stats": False},
]


class Counted(nn.BatchNorm1d):
    """A class below torch's, as the synchronised one is: it is called, on what is real."""


@pytest.mark.parametrize("arguments", BATCH_NORMS, ids=str)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("kind", [nn.BatchNorm1d, Counted])
def test_batch_norm_is_torch_s_of_the_real_elements(
    arguments: dict[str, Any], transposed: bool, kind: type[nn.BatchNorm1d]
) -> None:
    torch.manual_seed(0)
    norm = Normalization(WIDTH, transposed, "batch", **arguments).double()
    norm.norm = kind(WIDTH, **arguments).double()
    plain = nn.BatchNorm1d(WIDTH, **arguments).double()
    for module in (norm, plain):
        for p in module.parameters():
            nn.init.normal_(p, generator=torch.Generator().manual_seed(1))
    for training, seed in itertools.product((True, True, False), range(2)):
        norm.train(training), plain.train(training)
        generator = torch.Generator().manual_seed(seed)
        x = 3 + 2 * torch.randn(4, 20, WIDTH, dtype=F64, generator=generator)
        lengths = torch.tensor([5, 20, 0, 9])
        chosen = real(lengths, 20).squeeze(-1)
        padded = torch.where(chosen.unsqueeze(-1), x, float("nan")).requires_grad_()
        y = norm(padded.mT, lengths).mT if transposed else norm(padded, lengths)
        together = x[chosen].requires_grad_()
        want = plain(together)
        close(y[chosen], want, 1e-13)
        got = torch.autograd.grad(y[chosen].pow(3).sum(), [padded, *norm.parameters()])
        wanted = torch.autograd.grad(want.pow(3).sum(), [together, *plain.parameters()])
        close(got[0][chosen], wanted[0], 1e-11)
        assert bool((got[0][~chosen] == 0).all())
        close(list(got[1:]), list(wanted[1:]), 1e-11)
        close([b.double() for b in norm.buffers()], [b.double() for b in plain.buffers()], 1e-13)


@pytest.mark.parametrize("name", ["instance", "group"])
@pytest.mark.parametrize("transposed", [False, True])
def test_norms_over_the_length_are_torch_s_of_each_row(name: str, transposed: bool) -> None:
    norm = Normalization(WIDTH, transposed, name).double()
    x, lengths = 3 + torch.randn(3, 20, WIDTH, dtype=F64), torch.tensor([5, 20, 9])
    padded = torch.where(real(lengths, 20), x, float("inf"))
    y = norm(padded.mT, lengths).mT if transposed else norm(padded, lengths)
    for i, n in enumerate(lengths.tolist()):
        close(y[i, :n], norm.norm(x[i : i + 1, :n].mT).mT[0], 1e-13)


def test_running_statistics_of_an_instance_norm() -> None:
    options = {"track_running_stats": True, "affine": True}
    norm = Normalization(WIDTH, True, "instance", **options).double()
    plain = nn.InstanceNorm1d(WIDTH, **options).double()
    x = torch.randn(3, WIDTH, 20, dtype=F64)
    for training in (True, False):
        norm.train(training), plain.train(training)
        padded = nn.functional.pad(x, (0, 7), value=float("nan"))
        close(norm(padded, 20)[..., :20], plain(x), 1e-13)
        close([b.double() for b in norm.buffers()], [b.double() for b in plain.buffers()], 1e-13)


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_norms_keep_the_dtype_and_compile_to_one_graph(name: str, dtype: torch.dtype) -> None:
    norm = Normalization(WIDTH, True, name).to(dtype)
    x, lengths = torch.randn(3, WIDTH, 20, dtype=dtype), torch.tensor([5, 20, 9])
    y = norm(x, lengths)
    assert y.dtype == dtype
    if dtype == torch.float32 and name in ("batch", "instance"):
        compiled = torch.compile(norm, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x, lengths), y)


def test_norms_of_series() -> None:
    x, lengths = 3 + torch.randn(3, 20, WIDTH, dtype=F64), torch.tensor([7, 20, 9])
    padded = torch.where(real(lengths, 20), x, float("nan"))
    pairs: list[tuple[Any, type[nn.Module], tuple[Any, ...]]] = [
        (TSNormalization(method, 4), TSInverseNormalization, (method,)) for method in ("mean", "last", None)
    ]
    pairs.append((ReversibleInstanceNorm1dInput(WIDTH), ReversibleInstanceNorm1dOutput, ()))
    for norm, inverse, arguments in pairs:
        y = norm(padded, lengths)
        back = inverse(*arguments, norm)(y)
        for i, n in enumerate(lengths.tolist()):
            close(back[i, :n], x[i, :n], 1e-12)
            close(y[i, :n], norm(x[i : i + 1, :n])[0], 1e-12)


def test_constant_series_have_finite_gradients() -> None:
    x = torch.ones(2, 5, WIDTH, requires_grad=True)
    ReversibleInstanceNorm1dInput(WIDTH)(x, torch.tensor([3, 0])).sum().backward()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())


@pytest.mark.parametrize("layer", ["s4d", {"_name_": "mha", "n_head": 2}], ids=["s4d", "mha"])
def test_the_decoder_reads_neither_tokens_nor_frames_of_padding(layer: Any) -> None:
    torch.manual_seed(0)
    model = S4Decoder(11, WIDTH, n_layers=2, layer=layer, residual="R", norm="layer", dropout=0.0).double()
    tokens, lengths = torch.randint(0, 11, (3, 9)), torch.tensor([4, 9, 1])
    frames, heard = torch.randn(3, 8, WIDTH, dtype=F64), torch.tensor([8, 3, 5])
    padded = torch.where(real(lengths, 9).squeeze(-1), tokens, -1)
    noisy = torch.where(real(heard, 8), frames, float("nan"))
    scores, _ = model(noisy, heard, padded, lengths)
    loss, wanted = scores.new_zeros(()), scores.new_zeros(())
    for i, n in enumerate(lengths.tolist()):
        one, _ = model(frames[i : i + 1, : heard[i]], None, tokens[i : i + 1, :n], lengths[i : i + 1])
        close(scores[i : i + 1, :n], one, 1e-12)
        loss, wanted = loss + losses(scores[i : i + 1, :n], None), wanted + losses(one, None)
    parameters = list(model.parameters())
    got, want = (torch.autograd.grad(value, parameters, allow_unused=True) for value in (loss, wanted))
    for left, right in zip(got, want, strict=True):
        if left is not None and right is not None:
            assert float((left - right).abs().max()) <= 1e-11 * max(float(right.abs().max()), 1e-3)


def test_attention_does_not_read_a_memory_that_nobody_sees() -> None:
    module = SequenceModel(WIDTH, layer={"_name_": "mha", "n_head": 2}).double()
    x, memory = torch.randn(2, 5, WIDTH, dtype=F64), torch.randn(2, 7, WIDTH, dtype=F64)
    mask = real(torch.tensor([4, 7]), 7).mT
    want, _ = module(x, memory=memory, mask=mask)
    y, _ = module(x, memory=torch.where(mask.mT, memory, float("nan")), mask=mask)
    close(y, want, 1e-13)
    close(y[:1], module(x[:1], memory=memory[:1, :4])[0], 1e-13)


def test_an_encoder_s_state_is_that_after_the_real_elements() -> None:
    encoder = StateEncoder(SequenceModel(WIDTH, layer="s5", norm="layer", residual="R")).double()
    x, lengths = torch.randn(2, 20, WIDTH, dtype=F64), torch.tensor([5, 20])
    y = encoder(torch.where(real(lengths, 20), x, float("nan")), lengths=lengths)
    close(y[:1], encoder(x[:1, :5]), 1e-12)


def test_outputs_that_wait_are_those_of_the_last_real_element() -> None:
    module = UpPool(WIDTH, 4, 3, transposed=False).double()
    x, lengths = torch.randn(2, 6, WIDTH, dtype=F64), torch.tensor([2, 6])
    _, state = module(x, module.default_state(2), lengths=lengths)
    close(state[:1], module(x[:1, :2], module.default_state(1))[1], 1e-13)


@pytest.mark.parametrize(
    "lengths", [7, [7, 7], torch.tensor(7), torch.tensor([7, 7], dtype=torch.int32)], ids=str
)
def test_forms_of_lengths(lengths: Any) -> None:
    x = torch.randn(2, 9, WIDTH)
    for module in (
        SequenceModel(WIDTH, layer=["s4d", "gru", "conv"], norm="batch", residual="R", pool="pool"),
        DownSpectralPool(WIDTH, transposed=False),
    ):
        module.eval()
        torch.testing.assert_close(module(x, lengths=lengths)[0][:, :7], module(x[:, :7])[0])
