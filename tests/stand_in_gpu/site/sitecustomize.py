"""Python runs this first, where environment() says so: torch wants the guard when it is loaded."""

import ctypes
import importlib.util
import os
from pathlib import Path

libraries = Path(importlib.util.find_spec("torch").origin).parent / "lib"
for name in ("libc10.so", "libtorch_cpu.so"):
    ctypes.CDLL(str(libraries / name), mode=os.RTLD_GLOBAL | os.RTLD_NOW)
ctypes.CDLL(os.environ["STAND_IN_GPU"])

from tests.stand_in_gpu.gpu import GPU  # noqa: E402

GPU.plug_in(triton=bool(os.environ["STAND_IN_TRITON"]))
