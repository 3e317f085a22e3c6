from tests.triton_kernels import interpret_without_gpu

interpret_without_gpu()
