// Calls the native ops of a _native_cpu.so without Python and torch: what torch would be to it is here.
//
//     calls LIBRARY CALLS RESULTS
//
// __main__.py writes the calls and reads the results. All numbers are little endian int64, but for data.

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "runtime/torch_shim.h"

struct AtenTensorOpaque {
  int64_t references, dtype;
  std::vector<int64_t> sizes, strides;
  void* data;
  size_t bytes;
};
class TorchLibraryOpaque {};

namespace {

using Tensor = AtenTensorOpaque;
using Boxed = void (*)(StableIValue*, uint64_t, uint64_t);

std::map<std::string, Boxed> implementations;
TorchLibraryOpaque library;
constexpr size_t kBytes[] = {2, 2, 4, 8, 8, 16, 8};  // of the dtypes below

// For `elements` numbers, NaN or huge, right before the end of what malloc gives.
Tensor* made(int64_t dtype, std::vector<int64_t> sizes, std::vector<int64_t> strides) {
  int64_t span = 1;
  for (size_t i = 0; i < sizes.size(); ++i)
    span = sizes[i] == 0 ? 0 : span + (sizes[i] - 1) * strides[i] * (span > 0);
  const size_t bytes = static_cast<size_t>(span) * kBytes[dtype];
  void* data = std::aligned_alloc(64, (bytes + 127) / 64 * 64);
  std::memset(data, 0xFF, bytes);
  return new Tensor{1, dtype, std::move(sizes), std::move(strides), data, bytes};
}

void release(Tensor* tensor) {
  if (--tensor->references > 0) return;
  std::free(tensor->data);
  delete tensor;
}

int64_t number(std::istream& from) {
  int64_t value = 0;
  if (!from.read(reinterpret_cast<char*>(&value), sizeof(value))) std::exit(3);
  return value;
}

std::vector<int64_t> numbers(std::istream& from, int64_t count) {
  std::vector<int64_t> values;
  while (count-- > 0) values.push_back(number(from));
  return values;
}

Tensor* tensor(std::istream& from) {
  const int64_t dtype = number(from), dims = number(from);
  auto sizes = numbers(from, dims);
  auto strides = numbers(from, dims);
  Tensor* const read = made(dtype, std::move(sizes), std::move(strides));
  from.read(static_cast<char*>(read->data), static_cast<std::streamsize>(read->bytes));
  return read;
}

void write(std::ostream& to, const Tensor& tensor) {
  to.write(static_cast<const char*>(tensor.data), static_cast<std::streamsize>(tensor.bytes));
}

enum Kind : int64_t { value, required, present, absent };  // tensors: required or of an optional argument

// One call: its arguments as torch's stack has them, then the bytes of those it may write to and of its results.
void call(std::istream& from, std::ostream& to) {
  std::string name(static_cast<size_t>(number(from)), ' ');
  from.read(name.data(), static_cast<std::streamsize>(name.size()));
  const int64_t results = number(from), count = number(from);
  std::vector<StableIValue> stack;
  std::vector<Tensor*> written;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t kind = number(from), is_written = number(from);
    if (kind == value) {
      stack.push_back(static_cast<StableIValue>(number(from)));
    } else if (kind == absent) {
      stack.push_back(0);
    } else {
      Tensor* const given = tensor(from);
      const auto handle = reinterpret_cast<StableIValue>(given);
      stack.push_back(kind == required ? handle : reinterpret_cast<StableIValue>(new StableIValue(handle)));
      if (is_written) written.push_back(given), ++given->references;
    }
  }
  stack.resize(stack.size() + static_cast<size_t>(results));
  const auto found = implementations.find(name);
  if (found == implementations.end()) std::exit(4);
  found->second(stack.data(), static_cast<uint64_t>(count), static_cast<uint64_t>(results));
  for (Tensor* one : written) write(to, *one), release(one);
  for (int64_t i = 0; i < results; ++i) {
    auto* const one = reinterpret_cast<Tensor*>(stack[static_cast<size_t>(i)]);
    write(to, *one);
    release(one);
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 4) return 2;
  if (!dlopen(arguments[1], RTLD_NOW | RTLD_GLOBAL)) {
    std::fprintf(stderr, "%s\n", dlerror());
    return 1;
  }
  std::ifstream from(arguments[2], std::ios::binary);
  std::ofstream to(arguments[3], std::ios::binary);
  for (int64_t left = number(from); left > 0; --left) call(from, to);
  return 0;
}

int32_t aoti_torch_dtype_float16() {
  return 0;
}
int32_t aoti_torch_dtype_bfloat16() {
  return 1;
}
int32_t aoti_torch_dtype_float32() {
  return 2;
}
int32_t aoti_torch_dtype_float64() {
  return 3;
}
int32_t aoti_torch_dtype_complex64() {
  return 4;
}
int32_t aoti_torch_dtype_complex128() {
  return 5;
}
int32_t aoti_torch_dtype_int64() {
  return 6;
}
int32_t aoti_torch_device_type_cpu() {
  return 0;
}

AOTITorchError aoti_torch_get_dim(AtenTensorHandle tensor, int64_t* dim) {
  *dim = static_cast<int64_t>(tensor->sizes.size());
  return 0;
}
AOTITorchError aoti_torch_get_sizes(AtenTensorHandle tensor, int64_t** sizes) {
  *sizes = tensor->sizes.data();
  return 0;
}
AOTITorchError aoti_torch_get_strides(AtenTensorHandle tensor, int64_t** strides) {
  *strides = tensor->strides.data();
  return 0;
}
AOTITorchError aoti_torch_get_dtype(AtenTensorHandle tensor, int32_t* dtype) {
  *dtype = static_cast<int32_t>(tensor->dtype);
  return 0;
}
AOTITorchError aoti_torch_get_device_type(AtenTensorHandle, int32_t* device_type) {
  *device_type = 0;
  return 0;
}
AOTITorchError aoti_torch_get_device_index(AtenTensorHandle, int32_t* device_index) {
  *device_index = -1;
  return 0;
}
AOTITorchError aoti_torch_is_contiguous(AtenTensorHandle tensor, bool* contiguous) {
  int64_t stride = 1;
  *contiguous = true;
  for (size_t i = tensor->sizes.size(); i-- > 0; stride *= tensor->sizes[i])
    if (tensor->sizes[i] > 1 && tensor->strides[i] != stride) *contiguous = false;
  for (int64_t size : tensor->sizes)
    if (size == 0) *contiguous = true;
  return 0;
}
AOTITorchError torch_get_const_data_ptr(AtenTensorHandle tensor, const void** data) {
  *data = tensor->data;
  return 0;
}
AOTITorchError torch_get_mutable_data_ptr(AtenTensorHandle tensor, void** data) {
  *data = tensor->data;
  return 0;
}
AOTITorchError aoti_torch_empty_strided(int64_t dim, const int64_t* sizes, const int64_t* strides,
                                        int32_t dtype, int32_t, int32_t, AtenTensorHandle* tensor) {
  *tensor = made(dtype, {sizes, sizes + dim}, {strides, strides + dim});
  return 0;
}
AOTITorchError aoti_torch_delete_tensor_object(AtenTensorHandle tensor) {
  release(tensor);
  return 0;
}
AOTITorchError aoti_torch_library_init_fragment(const char*, const char*, uint32_t, TorchLibraryHandle* to) {
  *to = &library;
  return 0;
}
AOTITorchError aoti_torch_library_init_impl(const char*, const char*, const char*, uint32_t,
                                            TorchLibraryHandle* to) {
  *to = &library;
  return 0;
}
AOTITorchError aoti_torch_library_def(TorchLibraryHandle, const char*) {
  return 0;
}
AOTITorchError torch_library_impl(TorchLibraryHandle, const char* name, Boxed function, uint64_t) {
  implementations[name] = function;
  return 0;
}
AOTITorchError torch_parallel_for(int64_t begin, int64_t end, int64_t, ParallelFunc function, void* context) {
  const int64_t middle = (begin + end) / 2;  // two parts, as on two threads
  if (begin < middle) function(begin, middle, context);
  function(middle, end, context);
  return 0;
}
AOTITorchError torch_get_num_threads(uint32_t* count) {
  *count = 2;
  return 0;
}
AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void**) {
  return 1;
}
