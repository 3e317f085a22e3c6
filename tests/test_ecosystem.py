"""What torch and its tools do to a module, done to every class that the library exports."""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import inspect
import io
import pickle
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import sequence_kernels
from sequence_kernels import (
    DSS,
    S4,
    S4D,
    MambaLM,
    S4Decoder,
    SequenceDecoder,
    SequenceModel,
    SequenceModule,
    StateDecoder,
    StateEncoder,
    parameter_groups,
    use_backend,
)
from sequence_kernels.compat.hugging_face import Mixer
from sequence_kernels.compat.language_model import (
    Block,
    MambaConfig,
    MambaLMHeadModel,
    MixerModel,
    create_block,
)
from sequence_kernels.compat.mixers import Mamba2Simple
from sequence_kernels.compat.scans import AttenuateLayer
from sequence_kernels.layers import activations, components, norms, residuals, series_norms
from sequence_kernels.models import merge_states, select_state, split_states
from sequence_kernels.optim import CarriesOptions, parameter_options
from sequence_kernels.ssm import DPLRSSM, DiagonalSSM, FrozenSystem
from sequence_kernels.ssm.kernel import SSKernel
from sequence_kernels.ssm.parameters import SSMParameters
from tests.compat.attenuate_layers import SSMLayer
from tests.test_law import WIDTH, cases, close, forward, keeps_length, layout_of, steps, tensors

LENGTH = 36

Make = Callable[[], nn.Module]
Run = Callable[[nn.Module], Any]


def through(module: Any) -> Tensor:
    """What a map of sequences gives for the same input always."""
    x = torch.randn(2, LENGTH, WIDTH, generator=torch.Generator().manual_seed(1))
    x = x.to(next(module.parameters(), x).dtype)
    if isinstance(module, SequenceModule):
        return forward(module, x)[0]
    return module(x)


def joined(module: Any) -> Tensor:
    x = torch.randn(2, 2, LENGTH, WIDTH, generator=torch.Generator().manual_seed(1))
    x = x.to(next(module.parameters(), x).dtype)
    return module(x[0], x[1])


def kernel_of(module: Any) -> Tensor:
    model = module.kernel if isinstance(module, SSKernel) else module
    return model.system().kernel(LENGTH)


class _Reversed(nn.Module):
    """A pair of normalisations around a linear map."""

    def __init__(self, before: nn.Module, after: Callable[[Any], nn.Module]) -> None:
        super().__init__()
        self.before, self.linear, self.after = before, nn.Linear(WIDTH, WIDTH), after(before)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.linear(self.before(x)))


def _small(layer: Any = None, **arguments: Any) -> SequenceModel:
    return SequenceModel(WIDTH, layer=layer or {"_name_": "s4d", "d_state": 4}, **arguments)


class _WithStateDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = _small(track_norms=True)
        self.decoder = StateDecoder(self.model, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.model(x, self.model.default_state(len(x)))[1])


def _ones(module: nn.Module) -> Tensor:
    parameter = next(module.parameters())
    return torch.ones(2, LENGTH, WIDTH, dtype=parameter.dtype, device=parameter.device)


def _tokens(module: Any) -> Tensor:
    tokens = torch.arange(12).view(2, 6) % 5
    return module(torch.ones(2, 4, WIDTH), None, tokens, torch.tensor([6, 6]))[0]


def _hugging_face_mixer() -> Mixer:
    transformers = pytest.importorskip("transformers")
    from transformers.models.mamba.modeling_mamba import MambaMixer

    config = transformers.MambaConfig(hidden_size=WIDTH, state_size=2, time_step_rank=2)
    return Mixer(MambaMixer(config, layer_idx=0))


#: How classes that are no SequenceModule are made and run; one that is not here is made from its width alone.
PARTS: dict[type[nn.Module], tuple[Make, Run]] = {
    S4Decoder: (lambda: S4Decoder(5, WIDTH, n_layers=1, dropout=0.0), _tokens),
    MambaLM: (
        lambda: MambaLM(5, WIDTH, 1, d_state=2),
        lambda m: m((torch.arange(12).view(2, 6) % 5).to(m.backbone.embedding.weight.device))[0],
    ),
    Mixer: (_hugging_face_mixer, through),
    Mamba2Simple: (
        lambda: Mamba2Simple(WIDTH, d_state=2, headdim=WIDTH, learnable_init_states=True),
        through,
    ),
    Block: (lambda: create_block(WIDTH, ssm_cfg={"d_state": 2}, rms_norm=True), lambda m: sum(m(_ones(m)))),
    MixerModel: (
        lambda: MixerModel(WIDTH, 1, 0, 5, {"d_state": 2}),
        lambda m: m((torch.arange(12).view(2, 6) % 5).to(m.embedding.weight.device)),
    ),
    MambaLMHeadModel: (
        lambda: MambaLMHeadModel(MambaConfig(WIDTH, 0, 1, 8, {"d_state": 2}, tie_embeddings=False)),
        lambda m: m((torch.arange(12).view(2, 6) % 5).to(m.lm_head.weight.device)).logits,
    ),
    AttenuateLayer: (lambda: AttenuateLayer(SSMLayer(3, LENGTH, WIDTH)), through),  # channels come first
    SSKernel: (lambda: SSKernel(WIDTH, 4, lr={"B": 0.0}), kernel_of),
    DPLRSSM: (lambda: SSKernel(WIDTH, 4).kernel, kernel_of),
    DiagonalSSM: (lambda: SSKernel(WIDTH, 4, mode="diag", lr=1e-3).kernel, kernel_of),
    FrozenSystem: (
        lambda: FrozenSystem(S4D(WIDTH, d_state=4).double().system(), torch.ones(1, WIDTH)),
        lambda m: m.convolve(torch.linspace(-1, 1, WIDTH * LENGTH).view(1, WIDTH, LENGTH).to(m.d))[0],
    ),
    components.LinearActivation: (lambda: components.linear_activation(WIDTH, WIDTH, "glu"), through),
    StateDecoder: (_WithStateDecoder, through),
    StateEncoder: (lambda: StateEncoder(_small()), through),
    norms.TransposedLN: (lambda: norms.TransposedLN(WIDTH, dim=-1), through),
    components.TransposedLinear: (
        lambda: components.TransposedLinear(LENGTH, 3),
        lambda m: m(torch.ones(2, LENGTH, 4, dtype=m.weight.dtype)),
    ),
    components.SparedLinear: (lambda: components.SparedLinear(WIDTH, 3), through),
    components.WeightNormLinear: (
        lambda: components.WeightNormLinear(components.SparedLinear(WIDTH, 3)),
        through,
    ),
    activations.SquaredReLU: (activations.SquaredReLU, through),
    activations.GELU: (activations.GELU, through),
    activations.GLU: (activations.GLU, through),
    components.StochasticDepth: (lambda: components.StochasticDepth(0.5), through),
    components.DropoutNd: (lambda: components.DropoutNd(0.5), through),
    series_norms.TSNormalization: (lambda: series_norms.TSNormalization("last", 4), through),
    series_norms.TSInverseNormalization: (
        lambda: _Reversed(
            series_norms.TSNormalization("mean", 4), lambda m: series_norms.TSInverseNormalization("mean", m)
        ),
        through,
    ),
    series_norms.ReversibleInstanceNorm1dOutput: (
        lambda: _Reversed(
            series_norms.ReversibleInstanceNorm1dInput(WIDTH), series_norms.ReversibleInstanceNorm1dOutput
        ),
        through,
    ),
    **{
        cls: (lambda cls=cls: cls(1, WIDTH, WIDTH), joined)  # type: ignore[misc]
        for cls in dict.fromkeys(residuals.RESIDUALS.values())
    },
}
BASES = (CarriesOptions, SSMParameters)


def exported_parts() -> list[type[nn.Module]]:
    """Every public class of modules in the package that is no SequenceModule."""
    found: dict[str, type[nn.Module]] = {}
    for info in pkgutil.walk_packages(sequence_kernels.__path__, "sequence_kernels."):
        if info.name.endswith((".triton", "_native_cpu", "_native_cuda", "__main__")):
            continue
        for name, member in vars(importlib.import_module(info.name)).items():
            ours = inspect.isclass(member) and member.__module__.startswith("sequence_kernels")
            if ours and issubclass(member, nn.Module) and not name.startswith("_"):
                found[member.__qualname__] = member
    return [cls for cls in found.values() if not issubclass(cls, SequenceModule) and cls not in BASES]


def everything() -> Iterator[Any]:
    """Every exported class of modules, with what makes one and what runs it."""
    for case in cases():
        yield pytest.param(*case.values, through, id=case.id)
    for cls in exported_parts():
        make, run = PARTS.get(cls, (lambda cls=cls: cls(WIDTH), through))  # type: ignore[misc]

        def seeded(make: Make = make) -> nn.Module:
            torch.manual_seed(0)
            return make().eval()

        yield pytest.param(seeded, run, id=cls.__name__)


every_module = pytest.mark.parametrize(("make", "run"), list(everything()))


def train_once(module: nn.Module, run: Run) -> None:
    module.train()
    groups = parameter_groups(module, lr=1e-3)
    loss = run(module).square().mean()
    if groups:
        optimizer = torch.optim.SGD(groups)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    module.eval()


@every_module
def test_a_module_can_be_copied_and_pickled_after_a_training_step(make: Make, run: Run) -> None:
    module = make()
    train_once(module, run)
    saved = io.BytesIO()
    torch.save(module, saved)
    saved.seek(0)
    clones = [
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(saved, weights_only=False),
    ]
    expected = run(module)
    for clone in clones:
        close(run(clone), expected, 1e-6)


@pytest.mark.parametrize(
    "cls", [series_norms.ReversibleInstanceNorm1dOutput, series_norms.TSInverseNormalization]
)
def test_what_a_reversible_norm_remembers_has_a_gradient(cls: type[nn.Module]) -> None:
    """... although a copy of the module has not: the statistics of a call depend on its input."""
    module = PARTS[cls][0]().double()
    x = torch.randn(2, 7, WIDTH, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module, x)
    close(copy.deepcopy(module)(x), module(x), 1e-12)


def no_meta_left(module: nn.Module) -> bool:
    held = [value for part in module.modules() for value in vars(part).values() if isinstance(value, Tensor)]
    return not any(t.is_meta for t in (*module.parameters(), *module.buffers(), *held))


@every_module
def test_made_on_the_meta_device_then_loaded(make: Make, run: Run) -> None:
    original = make()
    expected = run(original)
    with torch.device("meta"):
        empty, assigned = make(), make()
    for tensor in (*empty.parameters(), *empty.buffers()):
        assert tensor.is_meta
    empty = empty.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*empty.parameters(), *empty.buffers()):
            tensor.fill_(7)  # what was in memory
    empty.load_state_dict(original.state_dict())
    assigned.load_state_dict(original.state_dict(), assign=True)
    for module in (empty, assigned):
        assert no_meta_left(module)
        assert parameter_options(module) == parameter_options(original)
        close(run(module), expected, 1e-6)


def test_made_under_a_default_device() -> None:
    torch.set_default_device("meta")
    try:
        module = S4(4, 8)
    finally:
        torch.set_default_device(None)
    assert all(p.is_meta for p in module.parameters())
    with pytest.warns(UserWarning, match="no-op"):
        module.load_state_dict(S4(4, 8).state_dict())
    assert all(p.is_meta for p in module.parameters())


# Optimizer options: what a layer asks for is kept by the module, whatever becomes of its parameters.


def asked(module: nn.Module) -> list[Any]:
    """The options of all parameters, whatever their names and order are."""
    options = parameter_options(module)
    return sorted(
        (tuple(p.shape), sorted(options.get(name, {}).items())) for name, p in module.named_parameters()
    )


@functools.cache
def with_options() -> dict[type[nn.Module], nn.Module]:
    """One module of every class whose parameters ask for something."""
    made = (case.values[0]() for case in everything())
    return {type(module): module for module in made if parameter_options(module)}


def _assigned(module: nn.Module) -> nn.Module:
    module.load_state_dict({name: value.clone() for name, value in module.state_dict().items()}, assign=True)
    return module


def _future(
    switch: Callable[[bool], None], change: Callable[[nn.Module], Any]
) -> Callable[[nn.Module], nn.Module]:
    def changed(module: nn.Module) -> nn.Module:
        switch(True)
        try:
            change(module)
        finally:
            switch(False)
        return module

    return changed


def _replaced(module: nn.Module) -> nn.Module:
    """Every parameter set anew, as by what quantises weights."""
    for part in list(module.modules()):
        for name, parameter in list(part._parameters.items()):
            if parameter is not None:
                setattr(part, name, nn.Parameter(parameter.detach().clone()))
    return module


def _parametrized(module: nn.Module) -> nn.Module:
    for part in list(module.modules()):
        for name, _ in list(part.named_parameters(recurse=False)):
            parametrize.register_parametrization(part, name, nn.Identity())
    return copy.deepcopy(module)


def _pruned(module: nn.Module) -> nn.Module:
    for part in list(module.modules()):
        for name, _ in list(part.named_parameters(recurse=False)):
            prune.identity(part, name)
    return _assigned(module)


swapping = torch.__future__.set_swap_module_params_on_conversion
overwriting = torch.__future__.set_overwrite_module_params_on_conversion

#: Ways in which torch replaces parameters, and whether the attribute ``_optim`` is put on the new ones.
WAYS: dict[str, tuple[Callable[[nn.Module], nn.Module], bool]] = {
    "as-made": (lambda m: m, True),
    "assign": (_assigned, True),
    "deepcopy": (copy.deepcopy, True),
    "pickle": (lambda m: pickle.loads(pickle.dumps(m)), True),
    "swap": (_future(swapping, lambda m: m.double()), True),
    "swap-load": (_future(swapping, _assigned), True),
    "overwrite": (_future(overwriting, lambda m: m.double()), True),
    "meta-and-back": (lambda m: m.to("meta").to_empty(device="cpu"), True),
    "replaced": (_replaced, True),
    "parametrize": (_parametrized, False),
    "prune": (_pruned, True),
    "compile": (lambda m: torch.compile(copy.deepcopy(m), backend="eager"), True),
    "data-parallel": (lambda m: nn.DataParallel(_assigned(m)), True),
    "averaged": (lambda m: torch.optim.swa_utils.AveragedModel(m), True),
}


@pytest.mark.parametrize("way", WAYS)
def test_options_survive(way: str) -> None:
    change, marked = WAYS[way]
    for made in with_options().values():
        expected = asked(made)
        module = change(copy.deepcopy(made))
        assert asked(module) == expected
        groups = parameter_groups(module, lr=1.0, weight_decay=1.0)
        found = [(tuple(p.shape), g["lr"], g["weight_decay"]) for g in groups for p in g["params"]]
        assert sorted(found) == sorted(
            (shape, dict(own).get("lr", 1.0), dict(own).get("weight_decay", 1.0)) for shape, own in expected
        )
        if marked:
            marks = [(tuple(p.shape), sorted(getattr(p, "_optim", {}).items())) for p in module.parameters()]
            assert sorted(marks) == expected


@pytest.fixture
def one_process() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*returned a view tensor")
@pytest.mark.usefixtures("one_process")
def test_options_and_training_under_fully_shard() -> None:
    """From the meta device, as models are made that fit in no single memory."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
    from torch.distributed.fsdp import fully_shard

    layers = [{"_name_": "s4", "d_state": 4, "lr": 1e-3}, {"_name_": "s4d", "d_state": 4}, "s5"]
    original = _small(layers, norm="layer", residual="R", pool="linear", transposed=True)
    expected = parameter_options(original)
    with torch.device("meta"):
        sharded = _small(layers, norm="layer", residual="R", pool="linear", transposed=True)
    for layer in sharded.layers:
        fully_shard(layer)
    fully_shard(sharded)
    sharded.to_empty(device="cpu")
    assert parameter_options(sharded) == expected
    options = StateDictOptions(full_state_dict=True)
    set_model_state_dict(sharded, copy.deepcopy(original.state_dict()), options=options)
    models = [original, sharded]
    for _ in range(2):
        for model in models:
            train_once(model, through)
        assert parameter_options(sharded) == expected
    close(through(sharded), through(original), 1e-6)


def test_options_of_a_stack_of_models() -> None:
    """By name, for parameters that belong to no module."""
    models = [S4D(4, 4, lr=1e-3) for _ in range(3)]
    stacked, _ = torch.func.stack_module_state(models)
    assert parameter_options(models[0]).keys() <= stacked.keys()
    y, _ = torch.func.functional_call(models[0], {n: p[1] for n, p in stacked.items()}, torch.ones(1, 4, 5))
    close(y, models[1](torch.ones(1, 4, 5))[0], 1e-6)
    assert asked(models[0]) == asked(models[1])
    assert models[0].kernel.kernel.log_dt._optim == {"weight_decay": 0.0, "lr": 1e-3}


def test_the_own_options_of_a_parameter_count() -> None:
    """Those that ESPnet's layers, or a user, set on a parameter; of a module of ours too. A shared one comes once."""
    model = nn.ModuleDict({"foreign": nn.Linear(2, 2), "ours": S4D(4, 4), "tied": S4D(4, 4)})
    model["foreign"].weight._optim = {"lr": 0.5}  # type: ignore[assignment]
    kernel, tied = model["ours"].kernel.kernel, model["tied"].kernel.kernel  # type: ignore[union-attr]
    kernel.log_dt._optim = {"lr": 0.25}  # type: ignore[union-attr]
    tied.A_imag = kernel.A_imag  # type: ignore[union-attr]
    groups = parameter_groups(model, lr=1.0)
    rates = {id(p): g["lr"] for g in groups for p in g["params"]}
    assert rates[id(model["foreign"].weight)] == 0.5
    assert rates[id(kernel.log_dt)] == 0.25  # type: ignore[union-attr]
    assert rates[id(tied.log_dt)] == 1.0  # type: ignore[union-attr]
    assert sum(len(g["params"]) for g in groups) == len(rates) == len(list(model.parameters()))


@every_module
def test_assigning_a_state_dict_leaves_its_tensors_alone(make: Make, run: Run) -> None:
    module = make()
    given = {name: value.clone() for name, value in module.state_dict().items()}
    for name in given:
        if name.endswith("kernel.L"):  # a checkpoint of ESPnet, which is converted
            given[name].fill_(9)
    before = {name: value.clone() for name, value in given.items()}
    copied = copy.deepcopy(module)
    copied.load_state_dict(given)
    module.load_state_dict(given, assign=True)
    assert given.keys() == before.keys()
    for name, value in before.items():
        assert torch.equal(given[name], value)
    close(list(module.state_dict().values()), list(copied.state_dict().values()), 1e-6)
    close(run(module), run(copied), 1e-6)


# Memory: parameters and states that are views of other tensors.

#: Where the numbers of a parameter may lie, which need not be where pairs of them can be seen as complex numbers.
PLACES: dict[str, Callable[[Tensor], Tensor]] = {
    "from-an-odd-place": lambda p: p.new_empty(p.numel() + 1)[1:].view(p.shape),
    "apart": lambda p: p.new_empty(*p.shape, 3)[..., 1],
}


@every_module
@pytest.mark.parametrize("place", PLACES)
def test_parameters_may_be_any_views(make: Make, run: Run, place: str) -> None:
    module = make().double()
    moved = copy.deepcopy(module)
    for parameter in moved.parameters():
        parameter.data = PLACES[place](parameter.data).copy_(parameter.data)
    expected, found = run(module), run(moved)
    close(found, expected, 1e-9)
    if expected.requires_grad:
        for result in (expected, found):
            result.square().sum().backward()
        gradients = [
            torch.cat([p.grad.flatten() for p in m.parameters() if p.grad is not None])
            for m in (moved, module)
        ]
        close(*gradients, 1e-9)


@pytest.mark.parametrize("cls", [S4, S4D])
def test_parameters_set_from_one_vector(cls: type[nn.Module]) -> None:
    """Also those that a compiled graph has seen somewhere else."""
    module = cls(7, 8)
    x = torch.randn(2, 7, 20)
    expected = module(x)[0]
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    close(compiled(x)[0], expected, 1e-6)
    vector = nn.utils.parameters_to_vector(module.parameters()).detach()
    nn.utils.vector_to_parameters(vector, module.parameters())
    assert any(p.storage_offset() % 2 for p in module.parameters())
    close(module(x)[0], expected, 1e-6)
    close(compiled(x)[0], expected, 1e-6)


def conjugates(state: Any) -> Any:
    """The same state, whose complex numbers are the pending conjugates of others."""
    if isinstance(state, (list, tuple)):
        return type(state)(conjugates(part) for part in state)
    return state.conj_physical().conj() if isinstance(state, Tensor) and state.is_complex() else state


@pytest.mark.parametrize("make", cases(lambda module: module.causal and module.d_state is not None))
def test_states_may_be_pending_conjugates(make: Make) -> None:
    module: Any = make()
    x = torch.randn(2, 9, WIDTH)
    state = forward(module, x, module.default_state(2))[1]
    same = conjugates(state)
    close(forward(module, x, same), forward(module, x, state), 1e-6)
    close(module.step(x[:, 0], same), module.step(x[:, 0], state), 1e-6)
    close(module.state_to_tensor(same), module.state_to_tensor(state), 1e-6)


# Gradients: finite wherever the value is.


@pytest.mark.parametrize(
    "layer",
    [
        lambda **steps: S4D(4, 8, disc="bilinear", measure="diag-real", **steps),
        lambda **steps: S4D(4, 8, disc="dss", l_max=5000, **steps),
        lambda **steps: DSS(4, 8, version="softmax", l_max=5000, **steps),
    ],
)
def test_gradients_of_long_steps(layer: Callable[..., SequenceModule]) -> None:
    """A pole at -2 / dt, which bilinear puts to 0; modes that decay over more than floating point has."""
    module = layer(dt_min=1.0, dt_max=1.0)
    for state in (None, module.default_state(2)):
        y, _ = module(torch.randn(2, 4, 4), state)
        y.square().sum().backward()
        for parameter in module.parameters():
            assert parameter.grad is not None
            assert parameter.grad.isfinite().all()


@every_module
@pytest.mark.parametrize("value", [0.0, 1.0, -8.0])
def test_gradients_where_all_parameters_are_equal(make: Make, run: Run, value: float) -> None:
    module = make().double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(value)
    y = run(module)
    parameters = list(module.parameters())
    if y.isfinite().all() and y.requires_grad:
        for gradient in torch.autograd.grad(y.square().sum(), parameters, allow_unused=True):
            assert gradient is None or gradient.isfinite().all()


# States: their memory, and how far they count.


def owns_its_memory(tensor: Tensor) -> bool:
    return tensor.untyped_storage().nbytes() <= tensor.numel() * tensor.element_size()


@pytest.mark.parametrize("make", cases(lambda module: module.causal))
@pytest.mark.parametrize("backend", [None, "torch"])
def test_a_state_owns_just_its_memory(make: Make, backend: str | None) -> None:
    """What is kept of a long sequence, of a step, and of one sequence of a batch."""
    module: Any = make()
    x = torch.randn(3, 35, WIDTH)
    with use_backend(backend) if backend else contextlib.nullcontext(), torch.no_grad():
        start = module.default_state(3)
        found = [start, forward(module, x, start)[1], forward(module, x[:, :1], start)[1]]
        if "lengths" in inspect.signature(module.forward).parameters and keeps_length(module):
            with contextlib.suppress(ValueError):  # a cache takes no lengths
                turned = x.mT if layout_of(module) else x
                found.append(module(turned, start, lengths=torch.tensor([0, 9, 35]))[1])
        found += steps(module, x[:, :1], start)[1:] + steps(module, x, start)[1:]
        for state in list(found):
            found += [select_state(state, 1), select_state(state, torch.tensor([1])), *split_states(state, 3)]
            found.append(merge_states(split_states(state, 3)[1:]))
            close(select_state(state, 2), split_states(state, 3)[-1], 0)
        stepper = module.stepper((3,)) if keeps_length(module) else None
        if stepper is not None:
            stepper.step(x[:, 0])
            stepper.forward(x)
            found.append(stepper.state)
    for state in found:
        for tensor in tensors(state):
            assert owns_its_memory(tensor)


@every_module
def test_a_module_owns_just_its_memory(make: Make, run: Run) -> None:
    module = make()
    run(module)
    held = [value for part in module.modules() for value in vars(part).values() if isinstance(value, Tensor)]
    for tensor in (*module.parameters(), *module.buffers(), *held):
        assert owns_its_memory(tensor)


@pytest.mark.parametrize("mode", ["pool", "sum"])
def test_a_decoder_counts_on_after_2_to_the_24(mode: str) -> None:
    decoder = SequenceDecoder(1, mode=mode)
    state, ones = decoder.default_state(1), torch.ones(1, 1 << 20, 1)
    for _ in range(17):
        y, state = decoder(ones, state)
    for _ in range(3):
        y, state = decoder.step(ones[:, 0], state)
    elements = (17 << 20) + 3
    assert int(state[1]) == elements
    assert float(state[0]) == elements
    close(y, torch.tensor([[1.0 if mode == "pool" else elements]]), 1e-7)
    three, state = decoder(torch.full((1, 3, 1), float(elements)), state)
    expected = [2 * elements / (elements + 1), 3 * elements / (elements + 2), 4 * elements / (elements + 3)]
    if mode == "pool":
        close(three.flatten(), torch.tensor(expected), 1e-7)
    assert decoder.state_to_tensor(state).dtype == torch.float32
