// Stands in for libcuda.so.1: records the calls, refuses what a device would refuse, runs kernels in the
// emulator or on another machine, and where the thread's buffers are watched checks each access.
#include <mutex>
#include <set>

#include "buffers.h"
#include "launch.h"
#include "tensor_cores.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using Result = int;
using Context = void*;
enum {
  success = 0,
  invalid_value = 1,
  no_device = 100,
  invalid_device = 101,
  invalid_context = 201,
  not_found = 500,
  launch_failed = 719
};
constexpr int devices = 2, max_dynamic_shared_bytes = 8;

struct Kernel {
  std::string name;
  std::map<int, int> shared_bytes;  // that a device was asked to allow
};

std::recursive_mutex mutex;
std::string record, failing, fault;
emu::Order order = emu::Order::forward;
unsigned seed = 0;
// What runs kernels instead of the emulator; writes what is wrong into a buffer of so many bytes.
using Machine = int (*)(const char* kernel, const void* params, unsigned blocks, unsigned threads,
                        unsigned shared_bytes, char* message, unsigned bytes);
Machine machine = nullptr;
Result failure = success;
std::map<std::string, Kernel> loaded;
thread_local std::vector<Context> contexts;

std::string number(const void* p) {
  return std::to_string(reinterpret_cast<intptr_t>(p));
}

// Records a call; its result, if it is to fail.
Result call(const std::string& function, const std::string& arguments = "") {
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  record += function + (arguments.empty() ? "" : " " + arguments) + "\n";
  return function == failing ? failure : success;
}

void check_accesses() {
  const auto buffers = reinterpret_cast<BuffersOfThread>(dlsym(RTLD_DEFAULT, "stand_in_buffers"));
  for (const Buffer& each : buffers())
    emu::add_region(each.name, each.data, each.bytes, each.element_bytes, false);
}

}  // namespace

// For the test: fail a function from now on ("": none), and what was called since the last time.
EXPORT void stand_in_fail(const char* function, Result result) {
  failing = function;
  failure = result;
}
EXPORT const char* stand_in_record() {
  static std::string last;
  last.swap(record);
  record.clear();
  return last.c_str();
}
EXPORT void stand_in_schedule(int of_threads, unsigned from) {
  order = static_cast<emu::Order>(of_threads);
  seed = from;
}
EXPORT void stand_in_machine(Machine other) {
  machine = other;
}
EXPORT int stand_in_contexts() {
  return static_cast<int>(contexts.size());
}

EXPORT Result cuGetErrorString(Result result, const char** text) {
  *text = result == launch_failed ? fault.c_str()
          : result == 209         ? "no kernel image is available for execution on the device"
          : result == 700         ? "an illegal memory access was encountered"
                                  : "another error";
  return success;
}
EXPORT Result cuInit(unsigned) {
  return call("cuInit");
}
EXPORT Result cuDriverGetVersion(int* version) {
  *version = 13000;
  return success;
}
EXPORT Result cuDeviceGet(int* device, int ordinal) {
  *device = ordinal;
  return ordinal < devices ? success : invalid_device;
}
EXPORT Result cuDevicePrimaryCtxRetain(Context* context, int device) {
  *context = reinterpret_cast<Context>(static_cast<intptr_t>(100 + device));
  return call("cuDevicePrimaryCtxRetain", std::to_string(device));
}
EXPORT Result cuCtxPushCurrent_v2(Context context) {
  contexts.push_back(context);
  return success;
}
EXPORT Result cuCtxPopCurrent_v2(Context* context) {
  if (contexts.empty()) return invalid_context;
  *context = contexts.back();
  contexts.pop_back();
  return success;
}
EXPORT Result cuLibraryLoadData(const char** library, const char* image, void*, void*, unsigned, void*, void*,
                                unsigned) {
  *library = image;
  return call("cuLibraryLoadData", number(image));
}
EXPORT Result cuLibraryGetKernel(Kernel** kernel, const char* library, const char* name) {
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  if (std::string(library).find(std::string("\n") + name + "\n") == std::string::npos) return not_found;
  *kernel = &loaded.emplace(name, Kernel{name, {}}).first->second;
  return call("cuLibraryGetKernel", name);
}
EXPORT Result cuKernelSetAttribute(int attribute, int value, Kernel* kernel, int device) {
  if (attribute != max_dynamic_shared_bytes || value > static_cast<int>(emu::max_shared_bytes))
    return invalid_value;
  kernel->shared_bytes[device] = value;
  return call("cuKernelSetAttribute", kernel->name + " " + std::to_string(value));
}
EXPORT Result cuLaunchKernel(Kernel* kernel, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                             unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,
                             void* stream, void** params, void** extra) {
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  if (contexts.empty()) return invalid_context;
  const int device = static_cast<int>(reinterpret_cast<intptr_t>(contexts.back())) - 100;
  const unsigned allowed = std::max(48 << 10, kernel->shared_bytes[device]);
  const emu::Kernel& emulated = emu::kernels().at(kernel->name);
  const emu::Launch rule = emulated.launch(params[0]);
  const bool by_rule = grid_x == rule.grid.x && block_x == rule.block.x && shared_bytes == rule.shared_bytes;
  if (extra || grid_y * grid_z * block_y * block_z != 1 || !by_rule || shared_bytes > allowed)
    return invalid_value;
  const Result result =
      call("cuLaunchKernel", kernel->name + " grid " + std::to_string(grid_x) + " block " +
                                 std::to_string(block_x) + " shared " + std::to_string(shared_bytes) +
                                 " stream " + number(stream) + " device " + std::to_string(device));
  if (result != success) return result;
  if (machine) {
    char message[4096] = "";
    const int done =
        machine(kernel->name.c_str(), params[0], grid_x, block_x, shared_bytes, message, sizeof message);
    fault = message;
    return done == 0 ? success : launch_failed;
  }
  try {
    check_accesses();
    emu::launch(emulated, params[0], order, seed);
  } catch (const std::exception& error) {
    fault = error.what();
    return launch_failed;
  }
  return success;
}
