"""Trains and streams a little with the installed package: `python tools/smoke.py`. Raises where it fails."""

from __future__ import annotations

from pathlib import Path

import torch

import sequence_kernels
from sequence_kernels import S4, S4D, SequenceModel, native, ops


def gradients(layer: type[torch.nn.Module], backend: str | None) -> list[torch.Tensor]:
    """Of a layer's parameters, computed by that backend (None: what is chosen)."""
    torch.manual_seed(0)
    module = layer(8, 8, transposed=False).double()
    u = torch.randn(2, 50, 8, dtype=torch.float64)
    with ops.use_backend(backend):
        module(u)[0].square().sum().backward()
    return [parameter.grad for parameter in module.parameters() if parameter.grad is not None]


def streams() -> None:
    """A model fed in one piece, in two, and step by step gives the same."""
    torch.manual_seed(0)
    model = SequenceModel(8, n_layers=2, layer={"_name_": "s4", "d_state": 8}).eval()
    u = torch.randn(2, 30, 8)
    with torch.no_grad():
        whole, _ = model(u, state=model.default_state(2))
        first, state = model(u[:, :13], state=model.default_state(2))
        second, _ = model(u[:, 13:], state=state)
        stepper = model.stepper((2,))
        steps = torch.stack([stepper.step(u[:, t]) for t in range(30)], 1)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(steps, whole, rtol=1e-4, atol=1e-4)


def transforms() -> None:
    """torch.func needs private names of torch: gradients of each row, and forward over reverse, against autograd."""
    torch.manual_seed(0)
    layer = S4D(8, 8, transposed=False).double()
    x = torch.randn(3, 20, 8, dtype=torch.float64)
    parameters = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(parameters: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, parameters, (x,))[0].square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x.unsqueeze(1))
    for row in range(3):
        layer.zero_grad()
        layer(x[row : row + 1])[0].square().sum().backward()
        for name, p in layer.named_parameters():
            torch.testing.assert_close(each[name][row], p.grad)
    product = torch.func.jvp(lambda x: torch.func.grad(loss, 1)(parameters, x), (x,), (x,))[1]
    _, expected = torch.autograd.functional.hvp(lambda x: loss(parameters, x), x, x)
    torch.testing.assert_close(product, expected)


def cuda_library() -> str:
    """The CUDA library's symbols are all there in a torch that has CUDA, with or without a driver."""
    path = Path(sequence_kernels.__file__).parent / "_native_cuda.so"
    if not path.exists():
        return "none"
    if torch.version.cuda is None:
        return "there, torch has no CUDA"
    torch.ops.load_library(path)
    return "loads"


def main() -> None:
    assert native.unavailable("cpu") is None, native.unavailable("cpu")
    for layer in (S4D, S4):
        for ours, exact in zip(gradients(layer, None), gradients(layer, "torch"), strict=True):
            torch.testing.assert_close(ours, exact, rtol=1e-7, atol=1e-9)
    streams()
    transforms()
    print(f"smoke: trains, streams, goes through torch.func; CUDA library: {cuda_library()}")


if __name__ == "__main__":
    main()
