"""The residual block and the backbone: the streaming law through mixed stacks, configuration, and faults put right."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from sequence_kernels import (
    S4D,
    FeedForward,
    SequenceIdentity,
    SequenceModel,
    SequenceModule,
    SequenceResidualBlock,
)
from sequence_kernels.layers.components import TransposedLinear
from sequence_kernels.layers.norms import Normalization, TransposedLN
from sequence_kernels.layers.residuals import make_residual

D, LENGTH, BATCH = 8, 11, 2
S4D_SMALL = {"_name_": "s4d", "d_state": 4}
S4_SMALL = {"_name_": "s4", "d_state": 4}
MIXED = [S4D_SMALL, "ff", S4_SMALL, "id"]


def carried(module: SequenceModule, x: Tensor, *cuts: int) -> Tensor:
    """Outputs of forward over the pieces of x between the cuts, carrying the state."""
    state = module.default_state(x.shape[0])
    outputs = []
    for piece in x.tensor_split(cuts, dim=1):
        y, state = module(piece, state)
        outputs.append(y)
    return torch.cat(outputs, dim=1)


def stepped(module: SequenceModule, x: Tensor) -> Tensor:
    state = module.default_state(x.shape[0])
    outputs = []
    for element in x.unbind(1):
        y, state = module.step(element, state)
        outputs.append(y)
    return torch.stack(outputs, dim=1)


def assert_law(model: SequenceModule, x: Tensor) -> None:
    with torch.no_grad():
        whole, state = model(x)
        assert state is None
        torch.testing.assert_close(carried(model, x, 1, 5), whole, rtol=0, atol=1e-9)
        torch.testing.assert_close(stepped(model, x), whole, rtol=0, atol=1e-9)


def sequence(d: int = D) -> Tensor:
    return torch.randn(BATCH, LENGTH, d, dtype=torch.float64)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# --- the law ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("prenorm", [False, True])
@pytest.mark.parametrize("norm", [None, "layer", "batch", "none", {"_name_": "layer", "eps": 1e-3}])
def test_forward_chunks_and_steps_agree(norm: Any, prenorm: bool, transposed: bool) -> None:
    model = SequenceModel(
        D,
        transposed=transposed,
        prenorm=prenorm,
        layer=MIXED,
        norm=norm,
        residual="R",
        dropout=0.3,
        tie_dropout=True,
        dropinp=0.2,
        drop_path=0.5,
    ).double()
    model(sequence())  # in training: moves the running statistics of a batch norm
    assert_law(model.eval(), sequence())


RESIDUALS = [
    None,
    "F",
    "N",
    "none",
    "ff",
    "feedforward",
    "R",
    "residual",
    {"_name_": "R", "alpha": 0.5, "beta": 2.0},
    "D",
    "decay",
    {"_name_": "D", "power": 1.0, "l2": False},
    "A",
    {"_name_": "affine", "scalar": False, "gamma": 0.5},
    "H",
    {"_name_": "highway", "elemwise": True, "scaling_correction": True},
]


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("residual", RESIDUALS, ids=str)
def test_every_residual_obeys_the_law(residual: Any, transposed: bool) -> None:
    model = SequenceModel(D, 2, transposed, layer=[S4D_SMALL, "ff"], norm="layer", residual=residual).double()
    assert_law(model.eval(), sequence())


def test_a_residual_of_weight_one_is_one_addition() -> None:
    x, y = torch.randn(2, 3, 4, requires_grad=True), torch.randn(2, 3, 4, requires_grad=True)
    joined = make_residual("R", 1, 4, 4)(x, y)
    assert torch.equal(joined, x + y)
    assert [edge.name() for edge, _ in joined.grad_fn.next_functions] == [
        "torch::autograd::AccumulateGrad"
    ] * 2


def test_layout_inside_changes_nothing_outside() -> None:
    """With residual and norm that have the same parameters in both layouts."""
    models = [
        SequenceModel(D, transposed=transposed, layer=MIXED, residual="A", norm="batch").double().eval()
        for transposed in (False, True)
    ]
    models[1].load_state_dict(models[0].state_dict())
    x = sequence()
    torch.testing.assert_close(models[1](x)[0], models[0](x)[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("transposed", [False, True])
def test_block_obeys_the_law(transposed: bool) -> None:
    block = SequenceResidualBlock(
        D, transposed=transposed, layer=S4D_SMALL, residual="R", norm="layer"
    ).double()
    block.eval()
    x = sequence()
    whole, state = block(x.mT if transposed else x)
    assert state is None
    whole = whole.mT if transposed else whole
    torch.testing.assert_close(stepped(block, x), whole, rtol=0, atol=1e-9)
    first, state = block(x[:, :4].mT if transposed else x[:, :4], block.default_state(BATCH))
    assert not torch.equal(state, block.default_state(BATCH)), "forward must return the new state"
    last, _ = block(x[:, 4:].mT if transposed else x[:, 4:], state)
    pieces = [piece.mT if transposed else piece for piece in (first, last)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=0, atol=1e-9)


def test_gradients_flow_through_a_carried_state() -> None:
    model = SequenceModel(D, 2, layer=S4D_SMALL, residual="R", norm="layer").double()
    x = sequence().requires_grad_()
    (whole,) = torch.autograd.grad(model(x)[0][:, -1].sum(), x)
    (split,) = torch.autograd.grad(carried(model, x, 4, 9)[:, -1].sum(), x)
    torch.testing.assert_close(split, whole, rtol=0, atol=1e-9)


# --- the state --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_shape", [(), (3,), (2, 3)])
def test_state_of_a_stack(batch_shape: tuple[int, ...]) -> None:
    model = SequenceModel(D, 2, layer=["ff", S4D_SMALL, "id"])
    state = model.default_state(*batch_shape)
    assert isinstance(state, list)
    assert len(state) == 6
    assert state[0] is None
    assert state[2] is None
    assert model.d_state == 2 * D * 4
    assert model.state_to_tensor(state).shape == (*batch_shape, model.d_state)
    y, state = model.step(torch.randn(*batch_shape, D), state)
    assert y.shape == (*batch_shape, D)
    assert model.state_to_tensor(state).abs().sum() > 0


def test_state_to_tensor_is_the_layers_in_order() -> None:
    model = SequenceModel(D, 1, layer=MIXED).double()
    _, state = model(sequence(), model.default_state(BATCH))
    parts = [model.layers[i].state_to_tensor(state[i]) for i in (0, 2)]
    assert torch.equal(model.state_to_tensor(state), torch.cat(parts, dim=-1))


def test_stateless_stack() -> None:
    model = SequenceModel(D, 2, layer=["ff", "id"], norm="layer", residual="R").double().eval()
    assert model.d_state is None
    assert model.default_state(4) == [None] * 4
    assert model.state_to_tensor(model.default_state(4)) is None
    assert_law(model, sequence())


def test_step_without_a_state_starts_from_the_default_one() -> None:
    model = SequenceModel(D, 2, layer=S4D_SMALL)
    x = torch.randn(BATCH, D)
    assert torch.equal(model.step(x)[0], model.step(x, model.default_state(BATCH))[0])


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (torch.zeros(BATCH, 3), "must be a list .* 2 blocks.* got Tensor"),
        ([None], "must be a list .* 2 blocks.* got a list of 1"),
        ([None, None], r"state\[1\] is None"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(state: Any, message: str) -> None:
    model = SequenceModel(D, layer=["ff", S4D_SMALL])
    for call in (partial(model, sequence().float()), partial(model.step, torch.randn(BATCH, D))):
        with pytest.raises(ValueError, match=message):
            call(state)


@pytest.mark.parametrize("norm", ["group", "instance"])
@pytest.mark.parametrize("transposed", [False, True])
def test_norms_over_the_length_make_a_model_not_causal(norm: str, transposed: bool) -> None:
    for layer in (S4D_SMALL, "ff"):
        model = SequenceModel(D, layer=layer, norm=norm, transposed=transposed)
        x = torch.randn(BATCH, LENGTH, D)
        assert not model.causal
        assert not model.layers[0].causal
        assert model(x)[0].shape == x.shape
        with pytest.raises(ValueError, match="whole sequence"):
            model(x, model.default_state(BATCH))
        with pytest.raises(ValueError, match="whole sequence"):
            model.step(x[:, 0])
        with pytest.raises(ValueError, match="whole sequence"):
            model.layers[0].step(x[:, 0])
    block = SequenceResidualBlock(D, layer=S4D_SMALL, norm=norm)
    with pytest.raises(ValueError, match="whole sequence"):
        block(x, block.default_state(BATCH))


def test_one_bidirectional_layer_makes_a_model_not_causal() -> None:
    model = SequenceModel(D, layer=[S4D_SMALL, {**S4D_SMALL, "bidirectional": True}], norm="layer")
    x = torch.randn(BATCH, LENGTH, D)
    assert not model.causal
    assert model(x)[0].shape == x.shape
    with pytest.raises(ValueError, match=r"not causal|whole sequence"):
        model.step(x[:, 0])
    with pytest.raises(ValueError, match="whole sequence"):
        model(x, [None, None])


@pytest.mark.thorough
@pytest.mark.parametrize("transposed", [False, True])
def test_a_stack_compiles_to_one_graph_for_all_lengths(transposed: bool) -> None:
    model = SequenceModel(
        D, transposed=transposed, layer=[S4D_SMALL, "ff"], residual="R", norm="layer"
    ).eval()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    x, state = torch.randn(BATCH, 40, D), model.default_state(BATCH)
    compiled(x), compiled(x, state)
    with torch.compiler.set_stance("fail_on_recompile"):
        for length in (40, 33, 7):
            piece = x[:, :length].contiguous()
            torch.testing.assert_close(compiled(piece)[0], model(piece)[0])
            torch.testing.assert_close(compiled(piece, state), model(piece, state))


# --- configuration ----------------------------------------------------------------------------------------------


def test_repetition_order_and_parameter_names() -> None:
    model = SequenceModel(D, 2, n_repeat=2, layer=["s4d", "ff"], norm="layer", residual="D")
    assert [type(block.layer) for block in model.layers] == [S4D, FeedForward] * 4
    assert [block.i_layer for block in model.layers] == list(range(1, 9))
    names = set(model.state_dict())
    assert {
        "layers.0.layer.D",
        "layers.0.norm.norm.weight",
        "layers.1.layer.ff.0.0.weight",
        "layers.1.layer.ff.2.weight",
        "norm.norm.bias",
    } <= names
    transposed = set(SequenceModel(D, layer="ff", norm="layer", transposed=True).state_dict())
    assert transposed == {
        "layers.0.layer.ff.0.0.weight",
        "layers.0.layer.ff.0.0.bias",
        "layers.0.layer.ff.2.weight",
        "layers.0.layer.ff.2.bias",
        "layers.0.norm.norm.m",
        "layers.0.norm.norm.s",
        "norm.norm.m",
        "norm.norm.s",
    }
    assert not any(
        name.startswith("norm.") for name in SequenceModel(D, norm="layer", prenorm=False).state_dict()
    )


def test_no_configuration_is_changed() -> None:
    arguments: dict[str, Any] = {
        "layer": [{"_name_": "s4d", "dropout": None}, {"_name_": "ff"}],
        "norm": {"_name_": "layer", "eps": 1e-3},
        "residual": {"_name_": "A", "gamma": 0.5},
    }
    before = copy.deepcopy(arguments)
    SequenceModel(D, 2, transposed=True, dropout=0.1, **arguments)
    assert arguments == before


def test_dropout_reaches_every_layer_that_does_not_set_its_own() -> None:
    layers: list[Any] = [S4D_SMALL, {"_name_": "s4", "dropout": None}, "ff", {"_name_": "ff", "dropout": 0.5}]
    model = SequenceModel(D, layer=layers, dropout=0.1, tie_dropout=True)
    rates = [model.layers[i].layer.dropout.p for i in (0, 1)] + [
        model.layers[i].layer.ff[1].p for i in (2, 3)
    ]
    assert rates == [0.1, 0.1, 0.1, 0.5]
    assert {type(model.layers[i].layer.dropout).__name__ for i in (0, 1)} == {"DropoutNd"}


class Scaled(SequenceIdentity):
    """A layer of a user's own, which takes no dropout."""

    def __init__(self, d_model: int, transposed: bool = False, factor: float = 1.0) -> None:
        super().__init__(d_model)
        self.transposed = transposed
        self.factor = factor

    def forward(self, x: Tensor, state: Any = None, **kwargs: Any) -> tuple[Tensor, Any]:
        return self.factor * x, state


@pytest.mark.parametrize(
    "layer", [partial(Scaled, factor=3.0), {"_name_": Scaled, "factor": 3.0}], ids=["function", "dict"]
)
def test_a_layer_of_the_users_own(layer: Any) -> None:
    model = SequenceModel(D, 2, transposed=True, layer=layer, dropout=0.5)
    assert model.layers[0].layer is not model.layers[1].layer
    assert model.layers[0].layer.transposed
    x = sequence()
    torch.testing.assert_close(model(x)[0], 9 * x)


def test_a_model_of_layers_that_exist() -> None:
    modules = [S4D(D, 4, transposed=False), FeedForward(D), SequenceIdentity(D)]
    model = SequenceModel(D, layer=[*modules, "ff"], residual="R", norm="layer").double().eval()
    assert [block.layer for block in model.layers][:3] == modules
    assert_law(model, sequence())
    with pytest.raises(ValueError, match="a module cannot be used twice"):
        SequenceModel(D, layer=[modules[1], modules[1]])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"layer": "mlp"}, ValueError, "layer must be one of dss, .*, s4d, .*, ff, .*, mha, id; got 'mlp'"),
        ({"layer": {"d_state": 4}}, TypeError, "layer must be a name"),
        ({"layer": None}, TypeError, "layer must be a name"),
        ({"layer": SequenceIdentity(D), "n_layers": 2}, ValueError, "a module cannot be used twice"),
        (
            {"layer": FeedForward(D + 1)},
            ValueError,
            "layer must have d_model=8 and transposed=False, got d_model=9",
        ),
        ({"layer": FeedForward(D, transposed=True)}, ValueError, "d_model=8 and transposed=True"),
        ({"pool": "max"}, ValueError, "pool must be one of sample, pool, linear, spectral; got 'max'"),
        ({"residual": "Z"}, ValueError, "residual must be one of"),
        ({"norm": "rms"}, ValueError, "norm must be layer, batch, .* got 'rms'"),
        ({"layer": {"_name_": "ff", "d_output": 4}, "residual": "R"}, ValueError, "d_model=8, d_output=4"),
        ({"layer": {"_name_": "ff", "activation": "tanhh"}}, ValueError, "activation must be"),
    ],
)
def test_wrong_configuration_is_named(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SequenceModel(D, **arguments)


def test_widths_follow_the_layers() -> None:
    widen = {"_name_": "ff", "d_output": 12}
    model = SequenceModel(D, layer=[widen, S4D_SMALL], norm="layer").double().eval()
    assert (model.d_model, model.d_output) == (D, 12)
    assert [(block.d_model, block.d_output) for block in model.layers] == [(D, 12), (12, 12)]
    assert_law(model, sequence())


# --- parts ------------------------------------------------------------------------------------------------------


def test_transposed_layer_norm() -> None:
    norm = TransposedLN(D).double()
    with torch.no_grad():
        norm.m.fill_(0.25)
        norm.s.fill_(2.0)
    x = torch.randn(BATCH, D, LENGTH, dtype=torch.float64)
    expected = 2 * (x - x.mean(1, keepdim=True) + 0.25) / x.std(1, correction=0, keepdim=True)
    torch.testing.assert_close(norm(x), expected)
    matching = Normalization(D, transposed=True, scalar=False).double()
    torch.testing.assert_close(matching(x), torch.nn.functional.layer_norm(x.mT, (D,)).mT)


def test_transposed_layer_norm_of_a_constant_column_is_not_nan() -> None:
    x = torch.randn(BATCH, D, LENGTH)
    x[:, :, 3] = 5.0
    x[:, :, 4] = 0.0
    x.requires_grad_()
    y = TransposedLN(D)(x)
    y.square().sum().backward()
    assert y.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert torch.equal(y[:, :, 3:5], torch.zeros(BATCH, D, 2))


@pytest.mark.parametrize("bias", [False, True])
def test_transposed_linear(bias: bool) -> None:
    linear = TransposedLinear(D, 5, bias=bias)
    x = torch.randn(BATCH, D, LENGTH)
    expected = torch.nn.functional.linear(x.mT, linear.weight, linear.bias).mT
    torch.testing.assert_close(linear(x), expected)


@pytest.mark.parametrize("activation", [None, "glu", "relu", "sqrelu", "swish"])
def test_feed_forward_is_the_same_in_both_layouts(activation: str | None) -> None:
    layers = [
        FeedForward(D, 3, 5, transposed=transposed, activation=activation) for transposed in (False, True)
    ]
    layers[1].load_state_dict(layers[0].state_dict())
    x = torch.randn(BATCH, LENGTH, D)
    y, state = layers[0](x)
    assert state is None
    assert y.shape == (BATCH, LENGTH, layers[0].d_output)
    torch.testing.assert_close(layers[1](x.mT)[0].mT, y)
    torch.testing.assert_close(layers[1].step(x[:, 0])[0], y[:, 0])


def test_residuals_by_hand() -> None:
    x, y = torch.randn(2, BATCH, LENGTH, D)
    root = 0.5**0.5
    torch.testing.assert_close(make_residual("D", 2, D, D)(x, y), root * x + root * y)
    linear = make_residual({"_name_": "D", "power": 2.0, "l2": False}, 2, D, D)
    torch.testing.assert_close(linear(x, y), 0.75 * x + 0.25 * y)
    affine = make_residual({"_name_": "A", "gamma": 1.0, "beta": 3.0, "scalar": False}, 2, D, D)
    assert torch.equal(affine.affine, torch.full((D,), 1.5))
    assert torch.equal(make_residual("N", 1, 3, D)(x[..., :3], y), y)
    with pytest.raises(ValueError, match="i_layer"):
        make_residual("D", None, D, D)


def test_tied_dropout_and_stochastic_depth() -> None:
    x = torch.ones(64, LENGTH, D)
    tied = SequenceModel(D, layer="id", dropinp=0.5, tie_dropout=True)(x)[0]
    assert (tied == tied[:, :1]).all(), "one mask for all positions"
    assert set(tied.unique().tolist()) == {0.0, 2.0}
    rows = SequenceModel(D, layer="id", residual="R", drop_path=0.5)(x)[0]
    assert (rows == rows[:, :1, :1]).all(), "a row is dropped as a whole"
    assert set(rows.unique().tolist()) == {1.0, 3.0}
