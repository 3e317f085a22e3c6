// What a torch with CUDA has and one without lacks: the current stream of a device, here 0x1000 + its number.
// And in front of torch's own functions those by which the CUDA library allocates and frees: while a thread is
// watched, a new tensor is filled with NaN, and known until it is freed.
#include <dlfcn.h>

#include <algorithm>
#include <cstring>

#include "buffers.h"
#include "runtime/torch_shim.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

struct Watch {
  bool on = false, checked = false;
  int allocations = 0, shortened = -1;
  size_t elements = 0;
  std::vector<Buffer> buffers;
};
thread_local Watch watch;

template <class Function>
Function of_torch(const char* name) {
  static void* const torch = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
  return reinterpret_cast<Function>(dlsym(torch, name));
}
#define OF_TORCH(function) of_torch<decltype(&function)>(#function)

void remember(AtenTensorHandle tensor, int64_t dim, const int64_t* sizes) {
  int64_t bytes = 0, elements = 1;
  void* data = nullptr;
  of_torch<AOTITorchError (*)(AtenTensorHandle, int64_t*)>("aoti_torch_get_storage_size")(tensor, &bytes);
  OF_TORCH(torch_get_mutable_data_ptr)(tensor, &data);
  for (int64_t i = 0; i < dim; ++i) elements *= sizes[i];
  if (elements == 0) return;
  const int which = watch.allocations++;
  memset(data, 0xFF, bytes);
  const size_t element = bytes / elements;
  if (which == watch.shortened) bytes -= std::min<int64_t>(bytes, watch.elements * element);
  watch.buffers.push_back({tensor, "allocation " + std::to_string(which), data, static_cast<size_t>(bytes),
                           element < 4 ? element : 4});
}

}  // namespace

EXPORT int32_t aoti_torch_get_current_cuda_stream(int32_t device, void** stream) {
  *stream = reinterpret_cast<void*>(static_cast<intptr_t>(0x1000 + device));
  return 0;
}
EXPORT AOTITorchError aoti_torch_empty_strided(int64_t dim, const int64_t* sizes, const int64_t* strides,
                                               int32_t dtype, int32_t device_type, int32_t device,
                                               AtenTensorHandle* tensor) {
  static const auto original = OF_TORCH(aoti_torch_empty_strided);
  const AOTITorchError error = original(dim, sizes, strides, dtype, device_type, device, tensor);
  if (error == 0 && watch.on) remember(*tensor, dim, sizes);
  return error;
}
EXPORT AOTITorchError aoti_torch_delete_tensor_object(AtenTensorHandle tensor) {
  static const auto original = OF_TORCH(aoti_torch_delete_tensor_object);
  for (size_t i = 0; i < watch.buffers.size(); ++i)
    if (watch.buffers[i].owner == tensor) watch.buffers.erase(watch.buffers.begin() + i--);
  return original(tensor);
}

EXPORT const std::vector<Buffer>& stand_in_buffers() {
  static const std::vector<Buffer> none;
  return watch.checked ? watch.buffers : none;
}
// For the test: one of the buffers whose accesses are checked; false beyond the last one.
EXPORT bool stand_in_buffer(size_t index, const char** name, void** data, size_t* bytes,
                            size_t* element_bytes) {
  const std::vector<Buffer>& all = stand_in_buffers();
  if (index >= all.size()) return false;
  const Buffer& found = all[index];
  *name = found.name.c_str(), *data = found.data, *bytes = found.bytes, *element_bytes = found.element_bytes;
  return true;
}
// For the test: watch this thread's op and let its accesses be checked, or not; an argument of the op; let an allocation of the op seem to
// have so many elements fewer; how many there were.
EXPORT void stand_in_watch(bool on, bool checked) {
  const Watch before = std::move(watch);
  watch = {};
  watch.on = on, watch.checked = checked;
  if (on) watch.shortened = before.shortened, watch.elements = before.elements;
}
EXPORT void stand_in_argument(const char* name, void* data, size_t bytes, size_t element_bytes) {
  watch.buffers.push_back({nullptr, name, data, bytes, element_bytes});
}
EXPORT void stand_in_shorten(int allocation, size_t elements) {
  watch.shortened = allocation, watch.elements = elements;
}
EXPORT int stand_in_allocations() {
  return watch.allocations;
}
