// The C functions of torch that this library calls, as torch >= 2.10 exports them from libtorch.so: its
// stable ABI.
//
// Declared here, so that building needs no torch. tests/test_native.py compiles this file against the headers
// of the installed torch, which refuses any declaration that differs.
#pragma once

#include <cstdint>

#pragma GCC visibility push(default)
extern "C" {

using AOTITorchError = int32_t;  // 0: success
using StableIValue = uint64_t;   // an argument or result of an op: a number, or a handle
struct AtenTensorOpaque;
using AtenTensorHandle = AtenTensorOpaque*;
class TorchLibraryOpaque;
using TorchLibraryHandle = TorchLibraryOpaque*;
typedef void (*ParallelFunc)(int64_t begin, int64_t end, void* context);

// dtypes and devices
int32_t aoti_torch_dtype_float16();
int32_t aoti_torch_dtype_bfloat16();
int32_t aoti_torch_dtype_float32();
int32_t aoti_torch_dtype_float64();
int32_t aoti_torch_dtype_complex64();
int32_t aoti_torch_dtype_complex128();
int32_t aoti_torch_dtype_int64();
int32_t aoti_torch_device_type_cpu();

// tensors
AOTITorchError aoti_torch_get_dim(AtenTensorHandle tensor, int64_t* dim);
AOTITorchError aoti_torch_get_sizes(AtenTensorHandle tensor, int64_t** sizes);
AOTITorchError aoti_torch_get_strides(AtenTensorHandle tensor, int64_t** strides);
AOTITorchError aoti_torch_get_dtype(AtenTensorHandle tensor, int32_t* dtype);
AOTITorchError aoti_torch_get_device_type(AtenTensorHandle tensor, int32_t* device_type);
AOTITorchError aoti_torch_get_device_index(AtenTensorHandle tensor, int32_t* device_index);
AOTITorchError aoti_torch_is_contiguous(AtenTensorHandle tensor, bool* contiguous);
AOTITorchError torch_get_const_data_ptr(AtenTensorHandle tensor, const void** data);
AOTITorchError torch_get_mutable_data_ptr(AtenTensorHandle tensor, void** data);
AOTITorchError aoti_torch_empty_strided(int64_t dim, const int64_t* sizes, const int64_t* strides,
                                        int32_t dtype, int32_t device_type, int32_t device_index,
                                        AtenTensorHandle* tensor);
AOTITorchError aoti_torch_delete_tensor_object(AtenTensorHandle tensor);

// registration
AOTITorchError aoti_torch_library_init_fragment(const char* name_space, const char* file, uint32_t line,
                                                TorchLibraryHandle* library);
AOTITorchError aoti_torch_library_init_impl(const char* name_space, const char* dispatch_key,
                                            const char* file, uint32_t line, TorchLibraryHandle* library);
AOTITorchError aoti_torch_library_def(TorchLibraryHandle library, const char* schema);
AOTITorchError torch_library_impl(TorchLibraryHandle library, const char* name,
                                  void (*function)(StableIValue*, uint64_t, uint64_t),
                                  uint64_t extension_build_version);

// threads
AOTITorchError torch_parallel_for(int64_t begin, int64_t end, int64_t grain, ParallelFunc function,
                                  void* context);
AOTITorchError torch_get_num_threads(uint32_t* count);

// CUDA; only a torch that was built with CUDA has it
AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);
}
#pragma GCC visibility pop
