"""What happens in a process with a stand-in GPU: `python -m tests.proofs.scenarios NAME` prints a JSON object."""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import os
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from sequence_kernels import S4, S4D, ops, proofs, prove, tune
from sequence_kernels.ops import dispatch
from sequence_kernels.proofs import judge
from tests.stand_in_gpu.gpu import GPU

DEVICE = torch.device("cuda", 0)
OP, TENSOR = "vandermonde", torch.ones(1, 2, dtype=torch.complex64)
UNIT = proofs.Unit(OP, "cuda", "float32", DEVICE)


def choose() -> dict[str, Any]:
    """Which backend serves, the warnings, how many kernels were launched for it, and what is on record."""
    GPU.launches.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        chosen = dispatch.choose(OP, None, TENSOR.to(DEVICE))
    said = [str(w.message) for w in caught]
    return {"chosen": chosen, "warnings": said, "launches": launches(), "explained": explained()}


def explained() -> str:
    return ops.explain(OP, DEVICE, TENSOR.dtype).splitlines()[0]


def launches() -> int:
    return sum(count for name, count in GPU.launches.items() if not name.startswith("torch "))


def forget() -> None:
    """As a process that has just begun."""
    judge._known.clear()
    dispatch.forget()
    dispatch._warn_once.cache_clear()


def plant(op: str, backend: str, kernel: Callable[..., Any]) -> None:
    dispatch._implementations[op][backend] = dispatch.Implementation(kernel, lambda device, dtype: None)


@contextlib.contextmanager
def planted(kernel: Callable[..., Any], backend: str = "cuda") -> Iterator[None]:
    """With other kernels, and nothing on record."""
    transpose = f"{OP}_transpose"
    before = {op: dict(dispatch._implementations[op]) for op in (OP, transpose)}
    cache = os.environ["XDG_CACHE_HOME"]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        judge._ledger.cache_clear()
        plant(OP, backend, kernel)
        plant(transpose, backend, dispatch.implementation(transpose, "torch"))
        forget()
        try:
            yield
        finally:
            for op, implementations in before.items():
                dispatch._implementations[op].update(implementations)
            os.environ["XDG_CACHE_HOME"] = cache
            judge._ledger.cache_clear()
            forget()


def right(*args: Any) -> Any:
    """Stands for the next backend's kernels."""
    return dispatch.implementation(OP, "torch")(*args)


def wrong(*args: Any) -> Any:
    return 1.001 * right(*args)


def writes_into_an_argument(*args: Any) -> Any:
    out = right(*args)
    args[0].mul_(2)
    return out


def slow(*args: Any) -> Any:
    time.sleep(0.6)
    return right(*args)


def kills(*args: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def hangs(*args: Any) -> Any:
    time.sleep(1000)


def by_default() -> dict[str, Any]:
    """A layer on a CUDA device, by CUDA kernels, as on a CPU."""
    found = choose()
    torch.manual_seed(0)
    layer = S4D(4, 8).eval()
    x = torch.randn(2, 4, 50)
    want = layer(x)[0]
    there = S4D(4, 8).eval().to("cuda")
    there.load_state_dict(layer.state_dict())
    there(x.to("cuda"))
    GPU.launches.clear()
    got = there(x.to("cuda"))[0]
    loss = got.square().sum()
    loss.backward()
    found["device"] = str(got.device)
    found["error"] = float((got.cpu() - want).detach().norm() / want.norm().detach())
    found["kernels"] = sorted(k.rpartition("_")[0] for k in GPU.launches if not k.startswith("torch "))
    want.square().sum().backward()
    gradients = zip(there.parameters(), layer.parameters(), strict=True)
    errors = [(a.grad.cpu() - b.grad).norm() / b.grad.norm() for a, b in gradients]
    found["gradient"] = float(torch.stack(errors).max())
    return found


def layers() -> dict[str, Any]:
    """What a layer's forward pass asks a GPU to run, once its kernels are proven."""
    found = {}
    for layer in (S4D, S4):
        module, x = layer(4, 8).eval().to("cuda"), torch.randn(2, 4, 64).to("cuda")
        with torch.no_grad():
            module(x)
            GPU.launches.clear()
            module(x)
        found[layer.__name__] = dict(GPU.launches)
    return found


def faults() -> dict[str, Any]:
    """Each planted fault ends in the next backend, for later processes too."""
    found = {}
    with planted(right, "triton"):
        for name, kernel in (("wrong", wrong), ("writes", writes_into_an_argument), ("slow", slow)):
            judge.SLOW = 0.5 if name == "slow" else 60.0
            with planted(kernel):
                found[name] = choose()
                forget()
                found[f"{name} later"] = choose()
                found[f"{name} again"] = choose()
    judge.SLOW = 60.0
    real = dispatch.implementation(OP, "cuda")
    with planted(right, "triton"), planted(real):
        GPU.driver.fail("cuLaunchKernel", 700)
        found["launch"] = choose()
        GPU.driver.fail("", 0)
        forget()
        found["launch later"] = choose()
    return found


def lost() -> dict[str, Any]:
    """A kernel after which the device does not work: no other backend is blamed."""
    ones = torch.ones

    def fatal(*args: Any) -> Any:
        def dead(*shape: Any, **options: Any) -> Any:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

        torch.ones = dead
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with planted(right, "triton"), planted(fatal):
        try:
            choose()
            error = ""
        except proofs.LostDeviceError as raised:
            error = str(raised)
        torch.ones = ones
        forget()
        return {"error": error, "later": choose()}


def not_now() -> dict[str, Any]:
    """No proof during capture, and none in the caller's trace, transform, autocast or fake mode."""
    found: dict[str, Any] = {}
    kernel = dispatch.implementation(OP, "cuda")
    with planted(kernel):
        GPU.capturing = True
        found["capturing"] = choose()
        GPU.capturing = False
        found["after"] = choose()
        GPU.capturing = True
        forget()
        found["capturing later"] = choose()
        GPU.capturing = False

    def without_memory(*args: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with planted(without_memory):
        found["without memory"] = choose()
        plant(OP, "cuda", kernel)
        found["with memory"] = choose()
    seen = []

    def watched(*args: Any) -> Any:
        seen.append(
            [torch.is_autocast_enabled("cuda"), torch.is_grad_enabled(), torch._C._len_torch_dispatch_stack()]
        )
        return kernel(*args)

    with planted(watched):
        x = TENSOR.to(DEVICE)

        def traced(x: torch.Tensor) -> torch.Tensor:
            assert dispatch.choose(OP, None, x) == "cuda"
            return x + 1

        with torch.autocast("cuda", torch.bfloat16):
            graph = make_fx(torch.func.vmap(traced))(x)
        found["traced"] = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
        found["seen"] = [list(each) for each in {tuple(s) for s in seen}]
    with planted(kernel), FakeTensorMode():
        found["fake"] = dispatch.choose(OP, None, torch.empty(2, dtype=torch.complex64, device=DEVICE))
    return found


def together() -> dict[str, Any]:
    """Threads and processes that want the same proof: one carries it out."""
    proven = tempfile.NamedTemporaryFile("a+")  # noqa: SIM115

    def counted(*args: Any) -> Any:
        """No CUDA kernel: CUDA does not survive a fork."""
        proven.write(f"{os.getpid()}\n")
        proven.flush()
        return right(*args)

    def count() -> int:
        return len(Path(proven.name).read_text().splitlines())

    def child() -> int:
        pid = os.fork()
        if pid == 0:
            os._exit(0 if choose()["chosen"] == "cuda" else 1)
        return pid

    found: dict[str, Any] = {"cases": sum(case.op == OP for case in dispatch.proof_cases(OP, "float32"))}
    with planted(counted):
        chosen: list[str] = []
        threads = [threading.Thread(target=lambda: chosen.append(choose()["chosen"])) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found["threads"], found["calls of threads"] = chosen, count()
    with planted(counted):
        found["processes"] = [os.waitpid(pid, 0)[1] for pid in [child() for _ in range(3)]]
        found["parent"] = choose()["chosen"]
        found["calls of processes"] = count() - found["calls of threads"]
    return found


def killed() -> dict[str, Any]:
    """A kernel that kills its process, and what the next process does."""
    with planted(right, "triton"), planted(kills):
        if (child := os.fork()) == 0:
            choose()
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        return {"killed by": os.WTERMSIG(status), **choose()}


def command() -> dict[str, Any]:
    """What `prove` finds with a kernel that kills its process, one that hangs and one that is right."""
    prove.CHILD = (sys.executable, "-m", "tests.proofs.scenarios", "child")
    plant(OP, "triton", right)
    plant(f"{OP}_transpose", "triton", dispatch.implementation(f"{OP}_transpose", "torch"))
    wanted = [
        u for u in dispatch.units(DEVICE) if u.backend == "cuda" and u.family in ("vandermonde", "cauchy")
    ]
    found = {u.name: v.passed or v.said for u, v in prove.in_children(wanted, patience=5.0)}
    forget()
    return {"found": found, "after": choose()}


def child() -> None:
    """A process of `prove`: float32 Vandermonde products kill it, in float64 they hang."""

    def kernel(v: torch.Tensor, *args: Any) -> Any:
        return (kills if v.dtype == torch.complex64 else hangs)()

    plant(OP, "cuda", kernel)
    sys.exit(prove.as_child(sys.argv[2:]))


def tuned() -> dict[str, Any]:
    """`tune`, and what is chosen after it, where CUDA's kernels are slow for few elements, Triton's for many."""
    exact = dispatch.implementation(OP, "torch")
    workloads = dispatch.workloads

    def paced(seconds: Callable[[int], float]) -> Callable[..., Any]:
        def kernel(v: torch.Tensor, *args: Any) -> Any:
            time.sleep(seconds(v.numel()))
            return exact(v, *args)

        return kernel

    def small(op: str, kind: str) -> list[proofs.Workload]:
        def make(pairs: int) -> tuple[Any, ...]:
            return torch.ones(1, 1, pairs, dtype=torch.complex64), -torch.ones(1, pairs) + 0j, 4, True, 0

        sizes = (4, 64) if kind == "float32" else ()
        return [proofs.Workload(f"N={n}", OP, n, functools.partial(make, n)) for n in sizes]

    def run() -> list[str]:
        given = argparse.Namespace(device=0, ops=(OP,), again=False, out=None)
        with contextlib.redirect_stdout(io.StringIO()) as said:
            assert tune.command(given) == 0
        return said.getvalue().splitlines()

    def chosen(pairs: int) -> str:
        return dispatch.choose(OP, None, torch.ones(1, pairs, dtype=torch.complex64, device=DEVICE))

    tune.SAMPLES = 3  # the best of them, where other programs take a core for a while
    dispatch.workloads = small
    found: dict[str, Any] = {}
    with (
        planted(paced(lambda elements: 0.1 if elements > 16 else 0), "triton"),
        planted(paced(lambda elements: 0 if elements > 16 else 0.1)),
    ):
        plant(OP, "torch", paced(lambda elements: 0.04))
        found["before"] = choose()
        found["said"], found["after"] = run(), choose()
        found["by size"] = [chosen(pairs) for pairs in (1, 15, 17, 1000)]
        forget()
        found["later"] = [chosen(pairs) for pairs in (1, 1000)]
        timed, tune.timed = tune.timed, None
        found["again"] = run()
        tune.timed = timed
    with planted(right, "triton"), planted(wrong):
        found["wrong"] = sorted({job.backend for job in tune.jobs(DEVICE, (OP,))})
        dispatch.choose(OP, None, TENSOR.to(DEVICE))
        found["without a table"] = len(dispatch._sizes)
    dispatch.workloads = workloads
    return found


def every_kernel() -> dict[str, Any]:
    """All proofs of the CUDA kernels, anew."""
    GPU.launches.clear()
    found, elements = {}, 0

    def counted(cases: Callable[[], Iterable[proofs.Case]]) -> Iterator[proofs.Case]:
        nonlocal elements
        for case in cases():
            elements += sum(a.numel() for a in case.args if isinstance(a, torch.Tensor))
            yield case

    for unit, proof in dispatch.units(DEVICE).items():
        if unit.backend == "cuda":
            prove.allow_tf32(unit.precision)
            verdict = proofs.prove(unit, proof._replace(cases=functools.partial(counted, proof.cases)))
            found[unit.name] = [verdict.passed, verdict.said]
    return {"verdicts": found, "launches": dict(GPU.launches), "elements": elements}


def in_one_process() -> dict[str, Any]:
    """Those that need no process of their own."""
    return {
        "by_default": by_default(),
        "layers": layers(),
        "faults": faults(),
        "lost": lost(),
        "not_now": not_now(),
        "together": together(),
        "killed": killed(),
        "tuned": tuned(),
        "every_kernel": every_kernel(),
    }


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]]()))
