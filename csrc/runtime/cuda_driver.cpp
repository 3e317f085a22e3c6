#include "runtime/cuda_driver.h"

#include <dlfcn.h>
#include <unistd.h>

#include <map>
#include <mutex>

namespace sequence_kernels {
namespace {

// As in cuda.h of CUDA 12 and 13.
using Result = int;  // 0: success
using Context = void*;
using Library = void*;
using Kernel = void*;
using Stream = void*;
constexpr int max_dynamic_shared_bytes = 8;        // of CUfunction_attribute
constexpr int32_t shared_bytes_of_all = 48 << 10;  // a kernel that takes more has to ask

struct Functions {
  Result (*cuGetErrorString)(Result, const char**);
  Result (*cuInit)(unsigned);
  Result (*cuDeviceGet)(int*, int);
  Result (*cuDevicePrimaryCtxRetain)(Context*, int);
  Result (*cuCtxPushCurrent_v2)(Context);
  Result (*cuCtxPopCurrent_v2)(Context*);
  Result (*cuLibraryLoadData)(Library*, const void*, void*, void*, unsigned, void*, void*, unsigned);
  Result (*cuLibraryGetKernel)(Kernel*, Library, const char*);
  Result (*cuKernelSetAttribute)(int, int, Kernel, int);
  Result (*cuLaunchKernel)(Kernel, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                           Stream, void**, void**);
};

Functions open_driver() {
  void* const driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (!driver) throw std::runtime_error(std::string("there is no NVIDIA driver: ") + dlerror());
  const auto find = [driver](auto& function, const char* name) {
    function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(driver, name));
    if (!function)
      throw std::runtime_error(std::string("the NVIDIA driver is older than CUDA 12, update it: it lacks ") +
                               name);
  };
  Functions functions{};
#define FIND(name) find(functions.name, #name)
  FIND(cuGetErrorString), FIND(cuInit), FIND(cuDeviceGet), FIND(cuDevicePrimaryCtxRetain);
  FIND(cuCtxPushCurrent_v2), FIND(cuCtxPopCurrent_v2), FIND(cuLibraryLoadData), FIND(cuLibraryGetKernel);
  FIND(cuKernelSetAttribute), FIND(cuLaunchKernel);
#undef FIND
  return functions;
}

// The driver and what has been loaded into it by this process.
class Driver {
 public:
  Driver() : functions(open_driver()) { check(functions.cuInit(0), "cuInit"); }

  void check(Result result, const char* function) const {
    const char* text = nullptr;
    if (result == 0) return;
    if (functions.cuGetErrorString(result, &text) != 0 || !text) text = "unknown error";
    throw std::runtime_error(std::string(function) + ": " + text + " (" + std::to_string(result) + ")");
  }

  Kernel kernel(const CudaKernel& wanted) {
    const std::lock_guard<std::mutex> lock(mutex_);
    Kernel& kernel = kernels_[wanted.name];
    if (kernel) return kernel;
    Library& library = libraries_[wanted.fatbin];
    if (!library)
      check(functions.cuLibraryLoadData(&library, wanted.fatbin, nullptr, nullptr, 0, nullptr, nullptr, 0),
            "cuLibraryLoadData");
    check(functions.cuLibraryGetKernel(&kernel, library, wanted.name), "cuLibraryGetKernel");
    return kernel;
  }

  // The context that torch uses on this device.
  Context context(int device) {
    const std::lock_guard<std::mutex> lock(mutex_);
    Context& context = contexts_[device];
    if (!context) check(functions.cuDevicePrimaryCtxRetain(&context, device), "cuDevicePrimaryCtxRetain");
    return context;
  }

  const Functions functions;
  const pid_t process = getpid();

 private:
  std::mutex mutex_;
  std::map<std::string, Kernel> kernels_;
  std::map<const void*, Library> libraries_;
  std::map<int, Context> contexts_;
};

Driver& driver() {
  static Driver driver;  // a failure is tried again at the next launch
  if (driver.process != getpid())
    throw std::runtime_error(
        "this process was forked from one that had used CUDA, and CUDA does not survive a fork: start "
        "processes by "
        "torch.multiprocessing's \"spawn\"");
  return driver;
}

// Makes the device's context current: a thread may have none, or that of another device.
class CurrentContext {
 public:
  CurrentContext(Driver& driver, int device) : driver_(driver) {
    driver.check(driver.functions.cuCtxPushCurrent_v2(driver.context(device)), "cuCtxPushCurrent");
  }
  ~CurrentContext() {
    Context popped = nullptr;
    driver_.functions.cuCtxPopCurrent_v2(&popped);
  }
  CurrentContext(const CurrentContext&) = delete;

 private:
  Driver& driver_;
};

void enqueue(const CudaKernel& wanted, const Launch& rule, Device device, const void* params) {
  constexpr int64_t most_blocks = 0x7fffffff;
  if (rule.blocks > most_blocks)
    throw std::runtime_error("a grid of " + std::to_string(rule.blocks) +
                             " blocks is more than a device takes; "
                             "split the batch");
  Driver& cuda = driver();
  int ordinal = 0;
  cuda.check(cuda.functions.cuDeviceGet(&ordinal, device.index), "cuDeviceGet");
  const CurrentContext current(cuda, ordinal);
  const Kernel kernel = cuda.kernel(wanted);
  if (rule.shared_bytes > shared_bytes_of_all)
    cuda.check(
        cuda.functions.cuKernelSetAttribute(max_dynamic_shared_bytes, rule.shared_bytes, kernel, ordinal),
        "cuKernelSetAttribute");
  Stream stream = nullptr;
  SEQUENCE_KERNELS_CALL(aoti_torch_get_current_cuda_stream, device.index, &stream);
  void* arguments[] = {const_cast<void*>(params)};
  cuda.check(cuda.functions.cuLaunchKernel(
                 kernel, static_cast<unsigned>(rule.blocks), 1, 1, static_cast<unsigned>(rule.threads), 1, 1,
                 static_cast<unsigned>(rule.shared_bytes), stream, arguments, nullptr),
             "cuLaunchKernel");
}

}  // namespace

void launch(const CudaKernel& kernel, const Launch& rule, Device device, const void* params) {
  try {
    enqueue(kernel, rule, device, params);
  } catch (const std::exception& error) {
    throw std::runtime_error("sequence_kernels: cannot launch " + std::string(kernel.name) + ": " +
                             error.what());
  }
}

}  // namespace sequence_kernels
