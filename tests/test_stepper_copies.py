"""Copies of steppers, and steppers in and out of inference mode, for every module and every way of stepping."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sequence_kernels import GRU, S4D, SequenceModule, Stepper
from sequence_kernels.layers.pools import Unpool
from sequence_kernels.stepping.stages import stages_of
from sequence_kernels.trees import tensors_of

from .test_law import WIDTH, Factory, cases, close
from .test_stepper import FURTHER, WAYS, stepping


def lengthens(module: SequenceModule) -> bool:
    return any(isinstance(part, Unpool) and part.stride > 1 for part in module.modules())


def with_ways(makes: list[Any]) -> Iterator[Any]:
    """Every variant, in each way of stepping if it has a kind of stage that no earlier variant of its class has.

    The ways differ in how they run a stage, and not in the numbers that a variant of its module puts into it.
    """
    seen: dict[type, set[type]] = {}
    for make in makes:
        module = make.values[0]()
        known = seen.setdefault(type(module), set())
        found = {type(stage) for stage in stages_of(module)}
        yield pytest.param(make.values[0], WAYS[:1] if known and found <= known else WAYS, id=make.id)
        known |= found


every = pytest.mark.parametrize(
    ("make", "ways"),
    list(with_ways(cases(lambda module: module.causal and not lengthens(module)) + FURTHER[:2])),
)


def each_way(module: SequenceModule, ways: list[str | None]) -> Iterator[None]:
    """In each of the ways of stepping; a module that does not say its stages knows one."""
    for way in ways:
        with stepping(way):
            yield
        if module.stepper()._wholes():
            break


def through_a_file(stepper: Stepper) -> Stepper:
    file = io.BytesIO()
    torch.save(stepper, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES: list[Callable[[Stepper], Stepper]] = [
    copy.copy,
    copy.deepcopy,
    lambda stepper: pickle.loads(pickle.dumps(stepper)),
    through_a_file,
    lambda stepper: copy.deepcopy(copy.copy(stepper)),
]


def run(stepper: Stepper, x: Tensor) -> list[Tensor]:
    """Of two steps, then a block: what they give, and the state after them."""
    given: list[Any] = [
        stepper.step(x[:, 0]),
        stepper.step(x[:, 1]),
        stepper.forward(x[:, 2:]),
        stepper.state,
    ]
    return list(tensors_of(given))


def sequences(elements: int) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, elements, WIDTH)


@every
def test_copies_go_on_alike_and_apart(make: Factory, ways: list[str | None]) -> None:
    module, x = make(), sequences(9)
    for _ in each_way(module, ways):
        stepper = module.stepper((2,))
        run(stepper, x[:, :4])
        copies = [made(stepper) for made in COPIES[:3]]
        want = run(stepper, x[:, 4:])
        for one in copies:
            assert not one.stale
            close(run(one, x[:, 4:]), want, 1e-6)
        assert [one.module is module for one in copies] == [True, False, False]
        copies[1].reset()
        close(run(copies[1], x[:, :4]), run(module.stepper((2,)), x[:, :4]), 1e-6)


def test_copies_keep_what_a_stepper_was_made_with() -> None:
    options = {"graph": False, "rate": 2.0, "state_dtype": torch.float64}
    stepper = S4D(WIDTH, 4).stepper((2,), dtype=torch.float32, **options)
    x = sequences(4)
    for made in COPIES:
        one = made(stepper)
        assert (one.batch_shape, one.dtype, one._graph) == ((2,), torch.float32, False)
        assert one.state.dtype == torch.complex128
        close(run(one, x), run(stepper, x), 1e-6)
        stepper.reset()


@pytest.mark.parametrize("made", COPIES)
def test_copies_of_a_stale_stepper_are_stale(made: Callable[[Stepper], Stepper]) -> None:
    layer, x = S4D(WIDTH, 4), sequences(1)[:, 0]
    stepper = layer.stepper((2,))
    with torch.no_grad():
        layer.D.add_(1)
    one = made(stepper)
    with pytest.raises(RuntimeError, match="refresh"):
        one.step(x)
    one.refresh()
    stepper.refresh()
    close(one.step(x), stepper.step(x), 1e-6)
    with pytest.raises(AttributeError, match="Stepper has no attribute 'bath_shape'"):
        made(stepper).bath_shape  # noqa: B018


@pytest.mark.parametrize("make", [lambda: S4D(WIDTH, 4), lambda: GRU(WIDTH)])
def test_a_module_that_keeps_its_stepper_is_copied(make: Callable[[], SequenceModule]) -> None:
    """The copy's stepper steps the copy."""
    x = sequences(1)[:, 0]
    for keeper in (module := make(), nn.Sequential(module)):
        keeper.kept = module.stepper((2,))
        for one in (copy.deepcopy(keeper), pickle.loads(pickle.dumps(keeper))):
            assert one.kept.module is (one if keeper is module else one[0])
            close(one.kept.step(x), module.stepper((2,)).step(x), 1e-6)
            assert not one.kept.stale


@every
def test_in_and_out_of_inference_mode(make: Factory, ways: list[str | None]) -> None:
    """The modes in which the module and its stepper were made and are called make no difference."""
    x = sequences(4)
    for _ in each_way(make(), ways):
        want = run(make().stepper((2,)), x)
        for of_module, of_stepper, of_calls in ((0, 0, 1), (0, 1, 0), (1, 0, 0)):
            with torch.inference_mode(bool(of_module)):
                module = make()
            with torch.inference_mode(bool(of_stepper)):
                stepper = module.stepper((2,))
            with torch.inference_mode(bool(of_calls)):
                start = stepper.state
                given = run(stepper, x)
            close(given, want, 1e-6)
            assert not any(value.requires_grad for value in given)
            with torch.inference_mode(not of_calls):
                stepper.state = start
                close(run(stepper, x), want, 1e-6)
                stepper.reset()
            with torch.inference_mode(bool(of_calls)):
                close(run(stepper, x), want, 1e-6)
                stepper.refresh()
            close(run(copy.deepcopy(stepper), x), run(stepper, x), 1e-6)
