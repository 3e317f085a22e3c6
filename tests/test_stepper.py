"""Steppers obey the law of their modules: steps and blocks in any order equal ``step`` and ``forward``."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from sequence_kernels import (
    S4,
    S4D,
    SequenceModel,
    SequenceModule,
    SequenceResidualBlock,
    Stepper,
    use_backend,
)
from sequence_kernels.layers.activations import ACTIVATIONS, activation_module
from sequence_kernels.layers.components import TransposedLinear
from sequence_kernels.ops import dispatch
from sequence_kernels.stepping.graphs import cuda_graph
from sequence_kernels.stepping.stages import Pointwise, Stage

from .ops.devices import gpu_backends
from .tape import taped
from .test_law import WIDTH, Factory, cases, close, forward, keeps_length

NATIVE = dispatch._unavailable("ssm_step_", "cpu", "cpu", torch.float32) is None
native = pytest.mark.skipif(not NATIVE, reason="needs the native library")
BACKENDS = ["torch", None] if NATIVE else ["torch"]  # None: the interpreter, where it can
WAYS = [*BACKENDS, "graph"]  # what a CUDA graph does, by a stand-in


def stepping(how: str | None) -> AbstractContextManager[None]:
    return taped() if how == "graph" else use_backend(how)


def model(**arguments: Any) -> SequenceModel:
    """A stack whose every kind of part the C++ interpreter knows."""
    torch.manual_seed(0)
    layers = [
        {"_name_": "s4d", "d_state": 8, "channels": 2},
        {"_name_": "ff", "activation": "tanh"},
        {"_name_": "s4", "d_state": 8, "measure": "legt", "rank": 2, "activation": "silu"},
        {"_name_": "s4", "d_state": 4, "activation": "relu", "postact": "sigmoid"},
    ]
    made = SequenceModel(WIDTH, **{"layer": layers, "residual": "R", "norm": "layer"} | arguments).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "norm" in name:  # ones and zeros at first, which would hide a mistake
                parameter.add_(0.5 * torch.randn_like(parameter))
    return made


def stepped(module: SequenceModule, x: Tensor, batch_shape: tuple[int, ...]) -> tuple[Tensor, Any]:
    """Outputs (..., length, d_output) by the module's own step, and its last state."""
    state, outputs = module.default_state(*batch_shape), []
    with torch.no_grad():
        for t in range(x.shape[-2]):
            y, state = module.step(x[..., t, :], state)
            outputs.append(y)
    return torch.stack(outputs, -2), state


FURTHER = [
    pytest.param(model, id="every-native-part"),
    pytest.param(lambda: model(transposed=True, residual="D"), id="transposed-decay"),
    pytest.param(
        lambda: model(prenorm=False, residual={"_name_": "R", "alpha": 0.5, "beta": 2.0}), id="postnorm"
    ),
    pytest.param(lambda: model(norm={"_name_": "batch"}, residual="H"), id="batch-norm-highway"),
    pytest.param(
        lambda: model(norm={"_name_": "layer", "scalar": False}, transposed=True, residual="A"), id="affine"
    ),
    pytest.param(lambda: model(residual="N", norm=None), id="no-residual"),
]
#: Those that change the length of a sequence are in tests/layers/test_pools.py.
every = pytest.mark.parametrize(
    "make", cases(lambda module: module.causal and keeps_length(module)) + FURTHER
)


@every
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("dtype", "tolerance", "batch_shape"),
    [(torch.float64, 1e-9, ()), (torch.float32, 1e-4, (3,)), (torch.float64, 1e-9, (2, 9))],
)
def test_the_law(
    make: Factory, backend: str | None, dtype: torch.dtype, tolerance: float, batch_shape: tuple[int, ...]
) -> None:
    module = make().to(dtype)
    torch.manual_seed(1)
    x = torch.randn(*batch_shape, 45, WIDTH, dtype=dtype)
    want, last = stepped(module, x, batch_shape)
    with stepping(backend):
        stepper = module.stepper(batch_shape, dtype=dtype)
        assert isinstance(stepper, Stepper)

        close(torch.stack([stepper.step(x[..., t, :]) for t in range(45)], -2), want, tolerance)
        close(stepper.state, last, tolerance)

        stepper.reset()
        close(stepper.forward(x), want, tolerance)
        close(stepper.state, last, tolerance)

        stepper.reset()
        pieces = []
        for start, stop in ((0, 0), (0, 1), (1, 34), (34, 36)):
            pieces.append(stepper.forward(x[..., start:stop, :]))
        for t in range(36, 40):
            pieces.append(stepper.step(x[..., t, :]).unsqueeze(-2))
        middle = stepper.state
        pieces.append(stepper.forward(x[..., 40:, :]))
        close(torch.cat(pieces, -2), want, tolerance)
        close(stepper.state, last, tolerance)

        stepper.state = middle  # not changed by what came after it was taken
        close(stepper.forward(x[..., 40:, :]), want[..., 40:, :], tolerance)
    if len(batch_shape) == 1:
        with torch.no_grad():
            close(forward(module, x[..., 40:, :], middle)[0], want[..., 40:, :], tolerance)


def test_the_law_can_fail() -> None:
    class Forgetful(S4D):
        def stages(self, **kwargs: Any) -> list[Stage]:
            return super().stages(**kwargs)[:-1]

    with pytest.raises(AssertionError):
        test_the_law(
            lambda: Forgetful(WIDTH, postact=None, activation=None).eval(), "torch", torch.float64, 1e-9, (3,)
        )


@pytest.mark.parametrize("backend", WAYS)
def test_two_batches_interleaved(backend: str | None) -> None:
    module = model()
    x, z = torch.randn(3, 20, WIDTH), torch.randn(20, WIDTH)
    with stepping(backend):
        first, second = module.stepper((3,)), module.stepper()
        outputs = [(first.step(x[:, t]), second.step(z[t])) for t in range(20)]
    close(torch.stack([y for y, _ in outputs], 1), stepped(module, x, (3,))[0], 1e-5)
    close(torch.stack([y for _, y in outputs]), stepped(module, z, ())[0], 1e-5)


@pytest.mark.parametrize("backend", WAYS)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_streams_that_come_and_go(backend: str | None, dtype: torch.dtype) -> None:
    """Each of 5 streams, stepped now and then, is what it would be alone; idle ones keep their bits."""
    module = model()
    torch.manual_seed(2)
    x = torch.randn(5, 30, WIDTH)
    done, outputs = [0] * 5, [[] for _ in range(5)]
    with stepping(backend):
        stepper = module.stepper((5,))
        while min(done) < 20:
            streams = torch.randperm(5)[: torch.randint(1, 6, ())].tolist()
            streams = [s for s in streams if done[s] < 30]
            rows = [s if torch.rand(()) < 0.7 else -1 for s in streams]
            before = stepper.state
            inputs = torch.stack(
                [x[s, done[s]] if s >= 0 else torch.full((WIDTH,), torch.nan) for s in [-1, *rows]]
            )
            y = stepper.step(inputs, state_indices=torch.tensor([-1, *rows], dtype=dtype))
            after = stepper.state
            for row, s in enumerate([-1, *rows]):
                if s < 0:
                    assert torch.equal(y[row], torch.zeros(WIDTH))
                else:
                    outputs[s].append(y[row])
                    done[s] += 1
            idle = [s for s in range(5) if s not in rows]
            for old, new in zip(before, after, strict=True):
                if old is not None:
                    assert torch.equal(torch.view_as_real(old[idle]), torch.view_as_real(new[idle]))
    for s in range(5):
        close(torch.stack(outputs[s]), stepped(module, x[s, : done[s]], ())[0], 1e-5)


@pytest.mark.parametrize("backend", WAYS)
def test_blocks_of_some_streams(backend: str | None) -> None:
    """Rows drive the slots they name, block by block; idle ones are not read, and keep their bits."""
    module = model()
    torch.manual_seed(3)
    x = torch.randn(4, 20, WIDTH)
    with stepping(backend):
        stepper = module.stepper((4,))
        before = [t.clone() for t in stepper.state if t is not None]
        block = torch.full((5, 8, WIDTH), torch.nan)
        block[[1, 4]] = x[[3, 0], :8]
        y = stepper.forward(block, state_indices=torch.tensor([-1, 3, -1, -1, 0]))
        for old, new in zip(before, [t for t in stepper.state if t is not None], strict=True):
            assert torch.equal(torch.view_as_real(old[1:3]), torch.view_as_real(new[1:3]))
        assert torch.equal(y[[0, 2, 3]], torch.zeros(3, 8, WIDTH))
        rest = [stepper.step(x[[0, 3], t], state_indices=torch.tensor([0, 3])) for t in range(8, 14)]
        last = stepper.forward(x[[3, 0], 14:], state_indices=torch.tensor([3, 0]))
        assert stepper.forward(x[:0], state_indices=torch.tensor([], dtype=torch.int64)).shape == (
            0,
            20,
            WIDTH,
        )
    got = torch.cat((y[[4, 1]], torch.stack(rest, 1), last.flip(0)), 1)
    close(got, stepped(module, x[[0, 3]], (2,))[0], 1e-5)


class TestGraphs:
    """Steps that are captured once and replayed."""

    @every
    def test_the_law(self, make: Factory) -> None:
        test_the_law(make, "graph", torch.float64, 1e-9, (3,))

    def test_each_number_of_rows_is_captured_once(self) -> None:
        module = model()
        with taped():
            stepper = module.stepper((5,))
            x = torch.randn(5, WIDTH)
            first = stepper.step(x)
            again = stepper.step(x)
            assert not torch.equal(first, again)  # the result of one step is not memory of the next
            for count in (1, 2, 3, 4, 5, 3):
                stepper.step(x[:count], state_indices=torch.arange(count))
            with use_backend("torch"):
                stepper.step(x)
            assert [key[:2] for key in stepper._graphs] == [
                (5, False),
                (1, True),
                (2, True),
                (4, True),
                (8, True),
            ]
            assert stepper.step(x[:0], state_indices=torch.arange(0)).shape == (0, WIDTH)

    def test_refreshed_parameters_are_captured_anew(self) -> None:
        layer, x = S4(WIDTH, 4), torch.randn(2, WIDTH)
        with taped():
            stepper = layer.stepper((2,))
            stepper.step(x)
            state = stepper.state
            change_in_place(layer)
            with pytest.raises(RuntimeError, match="refresh"):
                stepper.step(x)
            stepper.refresh()
            with torch.no_grad():
                close(stepper.step(x), layer.eval().step(x, state)[0], 1e-6)

    def test_steps_without_a_graph(self) -> None:
        with taped():
            stepper = model().stepper((2,), graph=False)
            stepper.step(torch.randn(2, WIDTH))
            assert not stepper._graphs

    def test_what_cannot_be_captured_says_so_and_leaves_the_state(self) -> None:
        class Peeking(S4D):
            def stages(self, **kwargs: Any) -> list[Stage]:
                return [*super().stages(**kwargs), Pointwise(lambda x: x * float(x.sum() > 0))]

        module, x = Peeking(WIDTH, d_state=4), torch.randn(2, WIDTH)
        with taped():
            stepper = module.stepper((2,))
            with pytest.raises(RuntimeError, match=r"cannot be captured .*make the stepper with graph=False"):
                stepper.step(x)
            close(stepper.state, module.default_state(2), 0.0)
            module.stepper((2,), graph=False).step(x)

    def test_capturing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What is asked of torch.cuda, in order: runs on a side stream, then one inside the graph."""
        asked: list[str] = []

        class Asked:
            def __init__(self, name: str) -> None:
                self.name = name

            def wait_stream(self, other: Any) -> None:
                asked.append(f"{self.name} waits for {other.name}")

            def replay(self) -> None:
                asked.append("replay")

            def __enter__(self) -> None:
                asked.append(f"in {self.name}")

            def __exit__(self, *_: object) -> None:
                asked.append(f"out of {self.name}")

        for name, value in {
            "device": lambda device: Asked(str(device)),
            "current_stream": lambda: Asked("current"),
            "Stream": lambda: Asked("side"),
            "stream": lambda stream: stream,
            "CUDAGraph": lambda: Asked("graph"),
            "graph": lambda graph: graph,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        y = torch.zeros(1)
        replay, output = cuda_graph(lambda: asked.append("step") or y, torch.device("cuda:1"))
        assert output is y
        replay()
        warm = ["side waits for current", "in side", *["step"] * 3, "out of side", "current waits for side"]
        assert asked == ["in cuda:1", *warm, "in graph", "step", "out of graph", "out of cuda:1", "replay"]

    @pytest.mark.gpu
    @pytest.mark.parametrize("backend", ["torch", *gpu_backends("ssm_step_")])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_on_a_gpu(self, backend: str, dtype: torch.dtype) -> None:
        """A CUDA graph's steps, of all rows and of some streams, are the eager ones; streams may change between."""
        module = model().to(dtype)
        tolerance = 1e-4 if dtype == torch.float32 else 1e-9
        x = torch.randn(5, 30, WIDTH, dtype=dtype)
        with use_backend(backend):
            graph, eager = (module.stepper((5,), "cuda", graph=graph) for graph in (True, False))
            for t in range(30):
                now = x[:, t].cuda()
                if t % 3 == 0:
                    rows = torch.randperm(5, device="cuda")[: 1 + t % 5]
                    rows[0] = -1
                    pair = [s.step(now[: len(rows)], state_indices=rows) for s in (graph, eager)]
                elif t % 3 == 1:
                    torch.cuda.synchronize()
                    with torch.cuda.stream(torch.cuda.Stream()):
                        pair = [s.step(now) for s in (graph, eager)]
                    torch.cuda.synchronize()
                else:
                    pair = [s.forward(now.unsqueeze(1)) for s in (graph, eager)]
                close(*pair, tolerance)
            close(graph.state, eager.state, tolerance)
            assert graph._graphs
            whole = module.stepper((5,), "cuda")
            got = torch.stack([whole.step(x[:, t].cuda()) for t in range(30)], 1)
        close(got.cpu(), stepped(module, x, (5,))[0], tolerance)


def change_in_place(layer: S4) -> None:
    with torch.no_grad():
        layer.kernel.kernel.log_dt.add_(0.1)


def replace(layer: S4) -> None:
    layer.D = nn.Parameter(layer.D.detach() + 1)


def load(layer: S4) -> None:
    layer.load_state_dict({name: value + 0.1 for name, value in layer.state_dict().items()})


def train(layer: S4, fused: bool = False, frozen: bool = False) -> None:
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=fused)
    layer(torch.randn(1, WIDTH, 5))[0].sum().backward()
    if frozen:
        optimizer.zero_grad()
    optimizer.step()


def train_fused(layer: S4) -> None:
    train(layer, fused=True)


def swap_part(layer: S4) -> None:
    layer.output_linear = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GLU(-2))
    layer.output_linear[0] = TransposedLinear(WIDTH, 2 * WIDTH)


def parametrize_part(layer: S4) -> None:
    nn.utils.parametrizations.weight_norm(layer.output_linear[0])


def prune_part(layer: S4) -> None:
    prune.l1_unstructured(layer.output_linear[0], "weight", 0.5)


def remove_hook(layer: S4) -> None:
    layer.output_linear._forward_hooks.clear()


def give_vector(layer: S4) -> None:
    vector = nn.utils.parameters_to_vector(layer.parameters()).detach()
    nn.utils.vector_to_parameters(vector + 0.1, layer.parameters())


def give_memory(layer: S4) -> None:
    layer.D.data = layer.D.data + 1


def hook(layer: S4) -> None:
    layer.output_linear[0].register_forward_hook(lambda part, x, y: 2 * y)


def replace_forward(layer: S4) -> None:
    forward = layer.output_linear.forward
    layer.output_linear.forward = lambda x: 2 * forward(x)


def adapt(layer: S4) -> None:
    class Doubled(TransposedLinear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    layer.output_linear[0].__class__ = Doubled


def write_in_inference_mode(layer: S4) -> None:
    with torch.inference_mode():
        layer.D.add_(1)


AT_ONCE = [
    *(change_in_place, replace, load, train, train_fused),
    *(swap_part, parametrize_part, prune_part, remove_hook),
]
SOON = [give_vector, give_memory, hook, replace_forward, adapt]  # within 64 calls


def watched(change: Callable[[S4], None]) -> S4:
    """What the change is made to."""
    with torch.inference_mode(change is write_in_inference_mode):
        layer = S4(WIDTH, 4).eval()
    if change is remove_hook:
        layer.output_linear.register_forward_hook(lambda part, x, y: 2 * y)
    return layer


@pytest.mark.parametrize("change", [*AT_ONCE, *SOON, write_in_inference_mode])
def test_a_stale_stepper_refuses(change: Callable[[S4], None]) -> None:
    layer = watched(change)
    stepper = layer.stepper((2,))
    x = torch.randn(2, 8, WIDTH)
    stepper.forward(x[:, :3])
    assert not stepper.stale
    state = stepper.state
    change(layer)
    assert stepper.stale
    with pytest.raises(RuntimeError, match=r"parameters or parts of the module have changed.*refresh\(\)"):
        stepper.step(x[:, 3])
    with pytest.raises(RuntimeError, match=r"refresh"):
        stepper.forward(x[:, 3:])
    stepper.refresh()
    assert not stepper.stale
    close(stepper.state, state, 0.0)
    with torch.no_grad():
        close(stepper.forward(x[:, 3:]), forward(layer, x[:, 3:], state)[0], 1e-5)


def stepper_runs(stepper: Stepper, x: Tensor, steps: int) -> None:
    for _ in range(steps):
        stepper.step(x)


@pytest.mark.parametrize("change", [*AT_ONCE, *SOON, write_in_inference_mode])
def test_steps_find_changes_by_themselves(change: Callable[[S4], None]) -> None:
    layer = watched(change)
    stepper = layer.stepper((2,))
    x = torch.randn(2, WIDTH)
    stepper_runs(stepper, x, 70)
    change(layer)
    steps = 1 if change in AT_ONCE else 64
    with pytest.raises(RuntimeError, match="refresh"):
        stepper_runs(stepper, x, steps)


def test_optimizers_of_others_change_nothing() -> None:
    layer, other = S4(WIDTH, 4), S4(WIDTH, 4)
    stepper, others = layer.stepper((2,)), other.stepper((2,))
    train(other, fused=True)
    train(layer, fused=True, frozen=True)  # without gradients it writes nothing
    assert others.stale
    assert not stepper.stale


def test_a_compiled_fused_optimizer_is_heard() -> None:
    layer = S4(WIDTH, 4)
    stepper = layer.stepper()
    layer(torch.randn(1, WIDTH, 5))[0].sum().backward()
    torch.compile(torch.optim.AdamW(layer.parameters(), fused=True).step, backend="eager")()
    assert stepper.stale


def test_steppers_that_are_gone_are_not_kept() -> None:
    layer = S4(WIDTH, 4)
    watched = weakref.ref(layer.stepper()._watched)
    gc.collect()
    assert watched() is None


def test_the_module_is_left_alone() -> None:
    layer = S4(WIDTH, 4, dropout=0.5).train()
    x = torch.randn(2, WIDTH, requires_grad=True)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    stepper = layer.stepper((2,), dtype=torch.float64)
    y = stepper.step(x.double())
    assert layer.training
    assert not y.requires_grad
    assert layer.D.dtype == torch.float32
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    close(y, layer.double().eval().step(x.double())[0], 1e-12)


def test_a_module_in_training_is_stepped_as_in_eval_mode() -> None:
    module = model(norm="batch", dropout=0.5)
    x = torch.randn(4, 5, WIDTH)
    want, _ = stepped(module, x, (4,))
    stepper = module.train().stepper((4,))
    close(stepper.forward(x), want, 1e-5)
    assert module.training


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_precision(dtype: torch.dtype) -> None:
    module, x = model(), torch.randn(3, 10, WIDTH)
    stepper = module.stepper((3,), "cpu", dtype)
    y = torch.stack([stepper.step(x[:, t].to(dtype)) for t in range(10)], 1)
    assert y.dtype == dtype
    close(y.double(), stepped(module.double(), x.double(), (3,))[0], 1e-12 if dtype == torch.float64 else 0.1)


@every
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_wider_state(make: Factory, backend: str | None) -> None:
    """In float32 in and out it is what a stepper in float64 is, rounded, bit for bit."""
    module, x = make().float(), torch.randn(3, 20, WIDTH)
    with stepping(backend):
        stepper = module.stepper((3,), dtype=torch.float32, state_dtype=torch.float64)
        exact = copy.deepcopy(module).double().stepper((3,), dtype=torch.float64)
        for t in range(5):
            y = stepper.step(x[:, t])
            assert y.dtype == torch.float32
            assert torch.equal(y, exact.step(x[:, t].double()).float())
        assert torch.equal(stepper.forward(x[:, 5:]), exact.forward(x[:, 5:].double()).float())
        close(stepper.state, exact.state, 0)


@torch.no_grad()
def test_a_wider_state_keeps_what_a_float32_state_loses() -> None:
    """Zeros after an input, at dt = 1e-6: 5,000 small decays, which float32 rounds the same way each time."""
    layer = S4D(1, 16, dt_min=1e-6, dt_max=1e-6)
    errors = []
    for options in ({}, {"state_dtype": torch.float64}):
        stepper = layer.stepper((1,), **options)  # type: ignore[arg-type]
        stepper.state = torch.ones(1, 1, 8, dtype=torch.complex64) * complex(1.3, 0.7)
        exact = copy.deepcopy(layer).double().stepper((1,))
        exact.state = stepper.state.to(torch.complex128)
        exact.forward(torch.zeros(1, 5_000, 1, dtype=torch.float64))
        for _ in range(5_000):
            stepper.step(torch.zeros(1, 1))
        errors.append(float((stepper.state - exact.state).norm() / exact.state.norm()))
    assert errors[0] > 1e-5
    assert errors[1] < 1e-9


def test_a_narrower_state_is_refused() -> None:
    for dtype, state_dtype in ((torch.float64, torch.float32), (torch.float32, torch.bfloat16)):
        with pytest.raises(
            ValueError, match=r"state_dtype must be torch\.float32 or torch\.float64, and as wide"
        ):
            model().stepper((3,), dtype=dtype, state_dtype=state_dtype)
    assert model().stepper((3,), dtype=torch.bfloat16, state_dtype=torch.float32).dtype == torch.bfloat16


def test_another_rate() -> None:
    module, x = model(), torch.randn(3, 20, WIDTH)
    stepper = module.stepper((3,), rate=2.0)
    state, y = module.default_state(3), None
    with torch.no_grad():
        for t in range(20):
            y, state = module.step(x[:, t], state, rate=2.0)
            close(stepper.step(x[:, t]), y, 1e-5)


def test_a_module_of_ones_own() -> None:
    """It need not say its stages: the stepper steps it as it is."""

    class Mean(SequenceModule):
        def __init__(self) -> None:
            super().__init__()
            self.d_model = self.d_output = WIDTH
            self.gain = nn.Parameter(torch.tensor(2.0))

        def default_state(self, *batch_shape: int, device: Any = None) -> Any:
            return {
                "sum": torch.zeros(*batch_shape, WIDTH, device=device),
                "count": (torch.ones(*batch_shape, 1),),
            }

        def step(self, x: Tensor, state: Any = None, **kwargs: Any) -> tuple[Tensor, Any]:
            total, count = state["sum"] + x, state["count"][0]
            return self.gain * total / count, {"sum": total, "count": (count + 1,)}

    module = Mean()
    block = SequenceResidualBlock(WIDTH, layer=lambda d_model, transposed: module, residual="R").eval()
    x = torch.randn(3, 6, WIDTH)
    want, last = stepped(block, x, (3,))
    for stepper in (block.stepper((3,)), module.stepper((3,))):
        got = torch.cat(
            [stepper.forward(x[:, :4]), stepper.step(x[:, 4]).unsqueeze(1), stepper.forward(x[:, 5:])], 1
        )
        close(got if stepper.module is module else got - x, want - x, 1e-6)
        close(stepper.state, last, 1e-6)
        stepper.reset()
        close(stepper.forward(x[:, :1]), got[:, :1], 1e-6)
        with pytest.raises(ValueError, match="a module that says its stages"):
            stepper.step(x[:, 0], state_indices=torch.tensor([0, 1, 2]))


def test_errors_name_the_argument() -> None:
    stepper = model().stepper((3,))
    x = torch.randn(3, WIDTH)
    with pytest.raises(ValueError, match=r"x must have shape \(3, d_model=6\), got \(2, 6\)"):
        stepper.step(x[:2])
    with pytest.raises(ValueError, match=r"x must have shape \(3, length, d_model=6\), got \(3, 6\)"):
        stepper.forward(x)
    with pytest.raises(TypeError, match=r"x must be one of float32, got torch.float64"):
        stepper.step(x.double())
    with pytest.raises(TypeError, match=r"x must be a torch.Tensor, got list"):
        stepper.step(x.tolist())
    with pytest.raises(ValueError, match=r"x is on meta, but the stepper on cpu"):
        stepper.step(x.to("meta"))
    with pytest.raises(ValueError, match=r"state_indices must be in -1 .. 2, got values in 0 .. 3"):
        stepper.step(x, state_indices=torch.tensor([0, 1, 3]))
    with pytest.raises(ValueError, match=r"x must have shape \(B=2, d_model=6\), got \(3, 6\)"):
        stepper.step(x, state_indices=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"state must hold tensors of shapes .*got \[\]"):
        stepper.state = []
    with pytest.raises(ValueError, match=r"state_indices needs a batch_shape \(slots,\)"):
        model().stepper().step(x, state_indices=torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match=r"S4D that is not causal cannot be stepped"):
        S4D(WIDTH, bidirectional=True).stepper()


#: In a row of a program as it is written below: what follows are the places of its weights and of its state.
W = 1 << 40


def program(*rows: list[int]) -> Tensor:
    """Rows of a code, sizes and, behind W, places, filled up with zeros."""
    filled = []
    for row in rows:
        end = row.index(W) if W in row else len(row)
        sizes, places = row[:end], row[end + 1 :]
        filled.append([*sizes, *[0] * (13 - len(sizes)), *places, *[0] * (2 - len(places))])
    return torch.tensor(filled)


@native
class TestNative:
    def test_the_stack_runs_in_one_call(self) -> None:
        """The tests of the law above are tests of the interpreter."""
        assert model().stepper()._program is not None
        assert model(transposed=True).stepper()._program is not None
        assert model(norm="batch").stepper()._program is None
        assert model().stepper(dtype=torch.bfloat16)._program is None
        with use_backend("torch"):
            assert model().stepper()._program is None

    @pytest.mark.parametrize("width", [1, 64, 65, 130])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_widths_and_rows(self, instruction_set: int, width: int, dtype: torch.dtype) -> None:
        layers = [{"_name_": "s4d", "d_state": 34, "channels": 2}, {"_name_": "ff", "activation": "gelu"}]
        module = SequenceModel(width, layer=layers, residual="R", norm="layer").to(dtype).eval()
        for rows in (0, 1, 2, 3, 5, 8, 9, 17, 33):
            x = torch.randn(rows, 3, width, dtype=dtype)
            stepper = module.stepper((rows,))
            got = [stepper.step(x[:, t]) for t in range(3)]
            close(
                torch.stack(got, 1), stepped(module, x, (rows,))[0], 1e-5 if dtype == torch.float32 else 1e-12
            )

    def test_the_same_bits_for_any_number_of_threads_and_rows(self) -> None:
        module, before = (
            SequenceModel(128, layer=["s4", "ff"], residual="R", norm="layer").eval(),
            torch.get_num_threads(),
        )
        x = torch.randn(40, 128)  # enough to be shared out
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            stepper = module.stepper((40,))
            stepper.step(x)
            results.append(stepper.step(x))
        torch.set_num_threads(before)
        for count in (1, 2, 3, 7):
            stepper = module.stepper((count,))
            stepper.step(x[:count])
            results.append(stepper.step(x[:count]))
        for y in results:
            assert torch.equal(y, results[0][: len(y)])

    @pytest.mark.parametrize(
        "instructions",
        [
            [[11]],  # no such instruction
            [[1]],  # a residual without a save
            [[0]] * 17,
            [[0], [4, 3], [1]],  # another width
            [[2, W, 900]],  # weights that are not there
            [[2, W, -1]],
            [[3, 6, 65, W, 300]],
            [[3, 7, 6]],  # a linear map of other inputs
            [[3, 5, 6, 2]],
            [[3, 5, 6, -1]],
            [[3, 6, -1]],
            [[3, 6, 6, 0, 2]],
            [[4, 4]],  # a gate of 8 channels
            [[5, 5]],  # no such activation
            [[6, 5, 2, 1]],  # a recurrence of other heads
            [[6, 6, 2, 1, 0, W, 0, 1]],  # state that is not there
            [[6, 6, 2, 1, 0, W, 0, -1]],
            [[6, 6, 2, 90]],  # channels that have no weights
            [[6, 6, 2, 1, 90]],
            [[6, 6, 0, 1, 1 << 17]],  # a rank that nothing bounds
            [[7, 4, 3, 3]],  # a convolution of channels that are not there
            [[7, 4, 3, -1]],
            [[7, 4, 0]],
            [[7, 4, 3, 0, 6]],  # of no such activation
            [[7, 4, 8]],  # of state that is not there
            [[7, 4, 3, 0, 0, W, 900]],
            [[8, 2, 1, 3, 1, 0, 2, 4, 4]],  # c beyond the channels
            [[8, 2, 1, 2, 1, -1, 2, 4, 4, 0]],
            [[8, 2, 1, 2, 1, 0, 2, 4, 4, 5]],  # z beyond them
            [[8, 2, 2, 2, 1, 0, 2, 4, 4, 0]],  # a decay of each entry, of a head that is wide
            [[8, 2, 1, 2, 0, 0, 2, 4, 4, 0]],  # no groups
            [[8, 3, 1, 1, 2, 0, 0, 0, 0, 0]],  # groups that do not divide the heads
            [[8, 2, 1, 2, 1, 0, 2, 4, 4, 0, 2]],
            [[8, 2, 1, 2, 1, 0, 2, 4, 4, 0, 0, 0, 0, W, 0, 21]],  # of state that is not there
            [[8, 2, 1, 2, 1, 0, 2, 4, 4, 0, 0, 0, 0, W, 800]],
            [[9, 4, 1, 3, -1]],  # a norm of channels that are not there
            [[9, 4, 1, 0, 3]],
            [[9, 4, 3, 0, -1]],
            [[9, 4, 1, 0, -1, 0, W, 900]],
            [[10, 4, 3]],  # keeps channels that are not there
            [[10, 4, -1]],
        ],
    )
    def test_the_interpreter_refuses_what_would_leave_its_memory(self, instructions: list[list[int]]) -> None:
        run = torch.ops.sequence_kernels_native.step_program.default
        weights, state = torch.zeros(1000), torch.zeros(2, 24)
        x, state_indices = torch.zeros(2, WIDTH), torch.tensor([1, -1])
        fine = program(
            *(
                [6, 6, 2, 1, 1],
                [2],
                [7, 4, 3, 2, 4, W, 100, 3],
                [8, 2, 1, 2, 1, 0, 2, 4, 4, 0, 0, 1, 0, W, 7, 20],
            ),
            *([9, 4, 2, 2, 0, 1], [3, 5, 7, 1, 1], [10, 6, 7], [3, 6, 7]),
        )
        run(fine, weights, state, state_indices, x)
        with pytest.raises(RuntimeError):
            run(program(*instructions), weights, state, state_indices, x)
        for arguments in (
            (fine[:, :-1].contiguous(), weights, state, state_indices, x),
            (fine.float(), weights, state, state_indices, x),
            (fine, weights, state[:, :-1].contiguous(), state_indices, x),
            (fine, weights, state, state_indices[:1], x),
            (fine, weights, state[:1], state_indices[:0], x),
            (fine, weights, state, state_indices, x.double()),
            (fine, weights, state, state_indices, torch.zeros(2, WIDTH + 1)),
        ):
            with pytest.raises(RuntimeError):
                run(*arguments)
        with pytest.raises(RuntimeError, match="state_indices from -1 to below the number of states"):
            run(fine, weights, state, torch.tensor([0, 2]), x)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_panels(self, instruction_set: int, dtype: torch.dtype) -> None:
        """Every 64 outputs side by side, zeros after the last one, and nothing beyond."""
        pack = torch.ops.sequence_kernels_native.pack.default
        for outputs, inputs in ((1, 1), (64, 16), (65, 37), (130, 5), (0, 3), (3, 0)):
            weight, panels = torch.randn(outputs, inputs, dtype=dtype), -(-outputs // 64)
            packed = torch.full((7 + panels * 64 * inputs + 3,), torch.nan, dtype=dtype)
            pack(weight, 7, True, packed)
            want = nn.functional.pad(weight, (0, 0, 0, panels * 64 - outputs)).view(panels, 64, inputs).mT
            assert torch.equal(packed[7:-3], want.flatten())
            assert packed[:7].isnan().all()
            assert packed[-3:].isnan().all()
        weight, packed = torch.zeros(65, 4, dtype=dtype), torch.zeros(128 * 4, dtype=dtype)
        numbers = torch.randn(16, 16, dtype=dtype.to_complex())
        pack(numbers, 0, False, packed)
        assert torch.equal(packed, torch.view_as_real(numbers).flatten())
        pack(weight, 0, True, packed)
        for wrong in (
            (weight, 1, True, packed),
            (weight, -1, True, packed),
            (weight, 128 * 4 - 65 * 4 + 1, False, packed),
            (numbers, 1, False, packed),
            (numbers, 0, True, packed),
            (weight[:, ::2], 0, True, packed),
            (weight.long(), 0, True, packed.long()),
            (weight, 0, True, packed.bfloat16()),
            (weight.mT, 0, False, packed),
            (weight[0], 0, True, packed),
        ):
            with pytest.raises(RuntimeError, match="sequence_kernels: pack"):
                pack(*wrong)

    @pytest.mark.parametrize("name", [name for name, row in ACTIVATIONS.items() if row.code is not None])
    def test_activations(self, instruction_set: int, name: str) -> None:
        """Within 3e-7 of the function itself, everywhere and also where they are small; NaN stays."""
        from sequence_kernels.stepping.program import Program

        x = torch.cat(
            (torch.linspace(-100, 100, 20001), torch.logspace(-30, 2, 500), -torch.logspace(-30, 2, 500))
        )
        special = torch.tensor(
            [0.0, torch.inf, torch.nan, -torch.inf if name in ("relu", "tanh", "sigmoid") else 0.0]
        )
        x = torch.cat((x, special))
        for dtype in (torch.float32, torch.float64):
            program = Program(len(x), dtype)
            program.activation(ACTIVATIONS[name].code)
            program.finish()
            got = program.run(torch.empty(1, 0, dtype=dtype), x.to(dtype).unsqueeze(0))[0]
            wide = x.to(dtype).double()
            want = activation_module(name)(wide)
            tolerance = 3e-7 if dtype == torch.float32 else 1e-15
            bound = tolerance * (
                want.abs() if name == "tanh" else wide.abs().clamp(max=1) if name != "sigmoid" else 1
            )
            error = (got.double() - want).abs()
            finite = want.isfinite()
            assert bool((error <= bound + tolerance * want.abs() + 1e-37)[finite].all())
            torch.testing.assert_close(got[~finite].double(), want[~finite], equal_nan=True)
