"""What modules do with what they are called with by mistake: refused, in words that a user knows."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import Any

import pytest
import torch
from torch import Tensor

import sequence_kernels
from sequence_kernels import (
    GRU,
    LSTM,
    S4,
    S4D,
    CausalConv,
    FeedForward,
    S4Decoder,
    SequenceModel,
    SequenceModule,
    SequenceResidualBlock,
    StateEncoder,
)
from sequence_kernels.arguments import keywords, values
from sequence_kernels.layers.pools import UpPool
from sequence_kernels.layers.s4 import SSKernel
from sequence_kernels.layers.series_norms import ReversibleInstanceNorm1dInput, TSNormalization

from .test_law import VARIANTS, WIDTH, Factory, all_cases, causal_cases, exported_modules, layout_of

WRONG = ("lenghts", "sate", "seq_idx", "padding_mask", "step_scale")


def sequence(module: SequenceModule, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(2, 12, WIDTH).to(dtype)
    return x.mT if layout_of(module) else x


@all_cases
@pytest.mark.parametrize("name", WRONG)
def test_unknown_keywords_are_refused(make: Factory, name: str) -> None:
    module = make()
    expected = rf"{name}.*it takes .*x"
    with pytest.raises(TypeError, match=expected):
        module(sequence(module), **{name: 1})
    if not module.causal:
        return
    element = None if isinstance(module, UpPool) else torch.randn(2, WIDTH)
    with pytest.raises(TypeError, match=expected):
        module.step(element, **{name: 1})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=rf"{name}.*it takes .*batch_shape"):
        module.stepper((2,), **{name: 1})


def test_the_nearest_keyword_is_named() -> None:
    x, layer = torch.randn(2, 12, WIDTH), S4D(WIDTH, 4, transposed=False)
    model = SequenceModel(WIDTH, layer=[{"_name_": "s4d", "d_state": 4}, "ff"])
    for module in (layer, model, StateEncoder(layer)):
        with pytest.raises(TypeError, match=r"'lenghts'; did you mean 'lengths'\?"):
            module(x, lenghts=torch.tensor([3, 4]))
    for one in (layer, model):
        with pytest.raises(TypeError, match=r"'sate'; did you mean 'state'\?"):
            one.step(x[:, 0], sate=None)
        with pytest.raises(TypeError, match=r"'rat'; did you mean 'rate'\?"):
            one.stepper((2,), rat=2.0)
    with pytest.raises(TypeError, match=r"'hlen'; did you mean 'hlens'\?"):
        S4Decoder(5, 4, n_layers=1)(None, hlen=None)


@pytest.mark.parametrize("fullgraph", [False, True])
def test_keywords_under_compile(fullgraph: bool) -> None:
    torch._dynamo.reset()
    x = torch.randn(2, 12, WIDTH)
    model = SequenceModel(WIDTH, layer=[{"_name_": "s4d", "d_state": 4}, "ff"])
    compiled = torch.compile(model, backend="eager", fullgraph=fullgraph)
    for rate in (1.0, 2.0, 0.5, torch.tensor(3.0)):
        torch.testing.assert_close(compiled(x, rate=rate)[0], model(x, rate=rate)[0])
    refused = (TypeError, torch._dynamo.exc.Unsupported) if fullgraph else TypeError
    with pytest.raises(refused, match=r"'lenghts'; did you mean 'lengths'\?"):
        compiled(x, lenghts=torch.tensor([3, 4]))
    refused = (ValueError, torch._dynamo.exc.Unsupported) if fullgraph else ValueError
    with pytest.raises(refused, match="rate must be finite and above 0"):
        compiled(x, rate=-2.0)


@all_cases
def test_what_callers_hand_to_all_layers_is_accepted(make: Factory) -> None:
    """A single layer accepts it, whether it reads it or not; a model wants a part that reads it."""
    module = make()
    x = sequence(module)
    rate = {} if "rate" in (module.takes() or ()) else {"rate": 1.0}
    if isinstance(module, (SequenceModel, SequenceResidualBlock)):
        for name in ("memory", "mask", "rate", "return_output"):
            if name not in (module.takes() or ()):
                with pytest.raises(TypeError, match=name):
                    module(x, **{name: None})
        rate = {}
    else:
        module(x, return_output=True)
    torch.testing.assert_close(module(x, lengths=torch.tensor([12, 12]), **rate)[0], module(x)[0])


@all_cases
def test_setup_step_is_accepted(make: Factory) -> None:
    """ESPnet and s4 call it on every part that has it."""
    for part in make().modules():
        if isinstance(part, SequenceModule):
            part.setup_step()
            part.setup_step(mode="linear")
            with pytest.raises(TypeError, match="mod"):
                part.setup_step(mod="linear")


def test_a_block_hands_each_layer_what_it_takes() -> None:
    class Anything(SequenceModule):
        def __init__(self, d_model: int) -> None:
            super().__init__()
            self.d_model = self.d_output = d_model

        def forward(self, x: Tensor, state: Any = None, **kwargs: Any) -> tuple[Tensor, Any]:
            seen.append(kwargs)
            return x, state

        def step(self, x: Tensor, state: Any = None, **kwargs: Any) -> tuple[Tensor, Any]:
            seen.append(kwargs)
            return x, state

    class Gained(FeedForward):
        def forward(self, x: Tensor, state: Any = None, gain: float = 1.0) -> tuple[Tensor, Any]:
            return gain * super().forward(x, state)[0], state

    seen: list[dict[str, Any]] = []
    x = torch.randn(2, 12, WIDTH)
    model = SequenceModel(WIDTH, layer=[Anything(WIDTH), Gained(WIDTH)])
    model(x, gain=3.0, other=1)
    model.step(x[:, 0], other=2)
    model.stepper((2,), other=3).step(x[:, 0])
    assert seen == [{"gain": 3.0, "other": 1}, {"other": 2}, {"other": 3}]
    model = SequenceModel(WIDTH, layer=[Gained(WIDTH), FeedForward(WIDTH)])
    torch.testing.assert_close(model(x, gain=2.0)[0], model.layers[1](2 * model.layers[0](x)[0])[0])
    with pytest.raises(TypeError, match=r"'gian'; did you mean 'gain'\?"):
        model(x, gian=2.0)
    with pytest.raises(TypeError, match="gain"):
        model.step(x[:, 0], gain=2.0)


def test_espnets_searches_may_give_a_language_model_an_encoders_output() -> None:
    decoder = S4Decoder(5, 4, n_layers=1, layer={"_name_": "s4d", "d_state": 4}).eval()
    tokens, memory, lengths = torch.zeros(1, 3, dtype=torch.int64), torch.randn(1, 7, 4), torch.tensor([3])
    assert torch.equal(
        decoder(memory, torch.tensor([5]), tokens, lengths)[0], decoder(None, None, tokens, lengths)[0]
    )
    decoder.batch_score(tokens, [decoder.init_state()], memory)
    decoder.search(1, 2, memory[0])


@pytest.mark.parametrize("cls", [GRU, LSTM, CausalConv])
def test_layers_that_count_elements_refuse_another_rate(cls: type[SequenceModule]) -> None:
    layer = cls(WIDTH)
    x = sequence(layer)
    for call in (lambda m: m(x, rate=2.0), lambda m: m.step(x[:, 0], rate=2.0)):
        for module in (layer, SequenceModel(WIDTH, layer=[{"_name_": "s4d", "d_state": 4}, layer])):
            with pytest.raises(ValueError, match=r"rate must be 1, got 2\.0"):
                call(module)
    layer(x, rate=1.0)


BAD_RATES = [
    0,
    0.0,
    -1,
    float("nan"),
    float("inf"),
    True,
    "1",
    None,
    torch.ones(WIDTH),
    torch.ones(3),
    torch.ones(1),
    torch.tensor(0.0),
    torch.tensor(float("nan")),
    torch.tensor(True),
]


@causal_cases
def test_rates_that_mean_nothing_are_refused(make: Factory) -> None:
    module = make()
    if "rate" not in (module.takes() or ()):
        return
    x = sequence(module)
    element = (x.mT if layout_of(module) else x)[:, 0]
    for rate in BAD_RATES:
        for call in (
            lambda rate=rate: module(x, rate=rate),
            lambda rate=rate: module(x, module.default_state(2), rate=rate),
            lambda rate=rate: module.step(element, rate=rate),
            lambda rate=rate: module.stepper((2,), rate=rate).step(element),
        ):
            with pytest.raises((TypeError, ValueError), match="rate must be"):
                call()
    for one in (1, torch.tensor(1.0), torch.tensor(1)):
        torch.testing.assert_close(module(x, rate=one)[0], module(x)[0])


def test_the_accepted_keywords_are_listed_once() -> None:
    """Every option that changes nothing is one of the table's, and every entry of the table is in use."""
    options = set()
    for cls in exported_modules():
        options |= set(inspect.signature(cls).parameters)
    options |= set(inspect.signature(SSKernel).parameters)
    assert options >= keywords.UNUSED_OPTIONS.keys()
    S4D(WIDTH, 4, keops=True, verbose=True)
    for shared in keywords.SHARED.values():
        assert set(shared.methods) <= set(keywords.METHODS)


def made_classes() -> list[type[torch.nn.Module]]:
    """Every public module class of the package, but those that are given tensors."""
    found: dict[str, type[torch.nn.Module]] = {}
    for info in pkgutil.walk_packages(sequence_kernels.__path__, "sequence_kernels."):
        if ".layers." in info.name or ".models." in info.name or info.name.endswith(".module"):
            for name, member in vars(importlib.import_module(info.name)).items():
                ours = inspect.isclass(member) and member.__module__.startswith("sequence_kernels.")
                if ours and issubclass(member, torch.nn.Module) and not name.startswith("_"):
                    found[member.__qualname__] = member
    # made by layers only
    plain = {"FrozenSystem", "SquaredReLU", "ModReLU", "SparedLinear", "TransposedLinear", "WeightNormLinear"}
    bases = {"SequenceModule", "Pool", "Unpool", "SSMParameters", "DPLRSSM", "DiagonalSSM", "CarriesOptions"}
    return [cls for name, cls in found.items() if name not in plain | bases]


def needed(cls: type) -> dict[str, Any]:
    """Values for the arguments without a default."""
    given = {"int": 4, "int | None": 1, "float": 0.5, "str | None": None, "SequenceModule": S4D(4, 4)}
    given["TSNormalization"] = TSNormalization(None, 1)
    given["ReversibleInstanceNorm1dInput"] = ReversibleInstanceNorm1dInput(4)
    parameters = inspect.signature(cls).parameters.values()
    return {
        p.name: given[str(p.annotation)]
        for p in parameters
        if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
    }


WRONG_VALUES: dict[str, list[Any]] = {
    "int": [-1, 0, 2.5, 8.0, True, "x", float("nan")],
    "float": [float("nan"), float("inf"), float("-inf"), True, "x"],
    "bool": ["yes", 2.0, 3],
    "str": [3, True],
}


@pytest.mark.parametrize("cls", made_classes(), ids=lambda cls: cls.__name__)
def test_constructors_name_what_is_wrong(cls: type[torch.nn.Module]) -> None:
    arguments = needed(cls) | next(iter(VARIANTS.get(cls, {"": {}}).values()))  # type: ignore[call-overload]
    cls(**arguments)
    for name, parameter in inspect.signature(cls).parameters.items():
        kinds = str(parameter.annotation).split(" | ")
        if len(set(kinds) - {"None"}) != 1:
            continue
        wrong = list(WRONG_VALUES.get(kinds[0], []))
        least = values.LEAST.get(name, 1)
        wrong = [value for value in wrong if type(value) is not int or value < least or "int" not in kinds]
        if name in values.POSITIVE:
            wrong += [0, -0.5]
        if name in values.FRACTIONS:
            wrong += [-0.1, 1.5]
        if wrong and "None" not in kinds:
            wrong.append(None)
        for value in wrong:
            with pytest.raises((TypeError, ValueError), match=rf"^{name} must be"):
                cls(**arguments | {name: value})
    torchs_own = cls.__init__.__module__.startswith("torch.")
    if not torchs_own and not any(
        p.kind is p.VAR_POSITIONAL for p in inspect.signature(cls).parameters.values()
    ):
        with pytest.raises(TypeError, match=r"takes no argument 'd_modle'"):
            cls(**arguments, d_modle=3)


@pytest.mark.parametrize("cls", [S4, S4D])
def test_options_of_the_kernel(cls: type[S4]) -> None:
    for name, value in (
        ("bandlimit", float("nan")),
        ("dt_max", float("inf")),
        ("dt_min", 0),
        ("rank", 0),
        ("real_type", 3),
        ("n_ssm", 2.0),
        ("lr", {"dtt": 0}),
        ("lr", float("nan")),
        ("lr", {"A": -1.0}),
        ("measure", 3),
        ("deterministic", "no"),
        ("d_state", 7),
    ):
        with pytest.raises((TypeError, ValueError), match=name):
            cls(WIDTH, **{name: value})
    with pytest.raises(TypeError, match=r"lr takes no argument 'dtt'; did you mean 'dt'\?"):
        cls(WIDTH, lr={"dtt": 0})
    with pytest.raises(TypeError, match=r"'d_stat'; did you mean 'd_state'\?"):
        cls(WIDTH, d_stat=8)
    with pytest.raises(TypeError, match=r"S4 with mode='nplr' takes no argument 'disc'"):
        S4(WIDTH, disc="zoh")
    with pytest.raises(TypeError, match="S4D takes no argument 'mode'"):
        S4D(WIDTH, mode="nplr")
    with pytest.raises(ValueError, match="real_scale must be finite"):
        S4D(WIDTH, measure_args={"real_scale": float("nan")})
    cls(WIDTH, 4, lr={"dt": 0, "A": None, "B": 1e-3})


def test_configurations_name_what_is_wrong() -> None:
    for arguments, wanted in (
        ({"layer": {"_name_": "s4d", "d_stat": 8}}, r"'d_stat'; did you mean 'd_state'\?"),
        ({"layer": {"_name_": "id", "droput": 0.1}}, r"'droput'; did you mean 'dropout'\?"),
        ({"layer": {"_name_": "ff", "expnad": 2}}, r"'expnad'; did you mean 'expand'\?"),
        (
            {"norm": {"_name_": "layer", "epss": 1e-3}},
            r"norm='layer' takes no argument 'epss'; did you mean 'eps'",
        ),
        ({"norm": {"_name_": "none", "eps": 1e-3}}, "norm='none' takes no argument 'eps'"),
        ({"norm": {"_name_": "layer", "eps": float("nan")}}, "eps must be finite"),
        ({"pool": {"_name_": "pool", "strid": 2}}, r"'strid'; did you mean 'stride'\?"),
        ({"residual": {"_name_": "D", "powr": 2}}, r"'powr'; did you mean 'power'\?"),
        ({"prenrom": True}, r"'prenrom'; did you mean 'prenorm'\?"),
    ):
        with pytest.raises((TypeError, ValueError), match=wanted):
            SequenceModel(WIDTH, **arguments)  # type: ignore[arg-type]
