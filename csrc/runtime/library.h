// A thin typed layer over torch_shim.h: tensors, registration of ops, parallel loops.
//
//   Tensor twice(const Tensor& x) { ... }
//   const Op op("twice(Tensor x) -> Tensor", boxed<twice>);   // sequence_kernels_native::twice, on CPU
//   tensors
#pragma once

#include <cstring>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "common/element.h"
#include "runtime/torch_shim.h"

namespace sequence_kernels {

[[noreturn]] inline void fail(const std::string& message) {
  throw std::runtime_error("sequence_kernels: " + message);
}
inline void check(bool condition, const char* message) {
  if (!condition) fail(message);
}

inline void checked(AOTITorchError error, const char* function) {
  if (error != 0) throw std::runtime_error(std::string("sequence_kernels: torch's ") + function + " failed");
}
#define SEQUENCE_KERNELS_CALL(function, ...) ::sequence_kernels::checked(function(__VA_ARGS__), #function)

enum class Dtype { float16, bfloat16, float32, float64, complex64, complex128, int64 };

inline Dtype complex_of(Dtype real) {
  return real == Dtype::float32 ? Dtype::complex64 : Dtype::complex128;
}
inline bool is_complex(Dtype dtype) {
  return dtype == Dtype::complex64 || dtype == Dtype::complex128;
}
inline bool is_double(Dtype dtype) {
  return dtype == Dtype::float64 || dtype == Dtype::complex128;
}
inline Dtype real_of(Dtype dtype) {
  return is_double(dtype) ? Dtype::float64 : Dtype::float32;
}

struct Device {
  int32_t type, index;  // as torch numbers them
};
inline bool operator==(Device a, Device b) {
  return a.type == b.type && a.index == b.index;
}

// Owns one reference to a tensor of torch.
class Tensor {
 public:
  explicit Tensor(AtenTensorHandle handle) : handle_(handle) {}

  // A new uninitialised, contiguous tensor, on the CPU if no device is named.
  static Tensor empty(const std::vector<int64_t>& sizes, Dtype dtype) {
    return empty(sizes, dtype, {aoti_torch_device_type_cpu(), 0});
  }
  static Tensor empty(const std::vector<int64_t>& sizes, Dtype dtype, Device device) {
    return empty_strided(sizes, contiguous_strides(sizes), dtype, device);
  }
  static Tensor empty_strided(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides,
                              Dtype dtype) {
    return empty_strided(sizes, strides, dtype, {aoti_torch_device_type_cpu(), 0});
  }
  static std::vector<int64_t> contiguous_strides(const std::vector<int64_t>& sizes) {
    std::vector<int64_t> strides(sizes.size(), 1);
    for (size_t i = sizes.size(); i-- > 1;) strides[i - 1] = strides[i] * (sizes[i] > 0 ? sizes[i] : 1);
    return strides;
  }
  static Tensor empty_strided(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides,
                              Dtype dtype, Device device) {
    AtenTensorHandle handle = nullptr;
    SEQUENCE_KERNELS_CALL(aoti_torch_empty_strided, static_cast<int64_t>(sizes.size()), sizes.data(),
                          strides.data(), torch_dtype(dtype), device.type, device.index, &handle);
    return Tensor(handle);
  }

  std::vector<int64_t> sizes() const {
    int64_t dim = 0;
    int64_t* sizes = nullptr;
    SEQUENCE_KERNELS_CALL(aoti_torch_get_dim, handle_.get(), &dim);
    SEQUENCE_KERNELS_CALL(aoti_torch_get_sizes, handle_.get(), &sizes);
    return std::vector<int64_t>(sizes, sizes + dim);
  }

  std::vector<int64_t> strides() const {
    int64_t* strides = nullptr;
    SEQUENCE_KERNELS_CALL(aoti_torch_get_strides, handle_.get(), &strides);
    return std::vector<int64_t>(strides, strides + sizes().size());
  }

  Dtype dtype() const {
    int32_t dtype = 0;
    SEQUENCE_KERNELS_CALL(aoti_torch_get_dtype, handle_.get(), &dtype);
    for (Dtype known : {Dtype::float16, Dtype::bfloat16, Dtype::float32, Dtype::float64, Dtype::complex64,
                        Dtype::complex128, Dtype::int64})
      if (dtype == torch_dtype(known)) return known;
    throw std::runtime_error("sequence_kernels: expected a floating-point, complex or int64 tensor");
  }

  Device device() const {
    Device device{};
    SEQUENCE_KERNELS_CALL(aoti_torch_get_device_type, handle_.get(), &device.type);
    SEQUENCE_KERNELS_CALL(aoti_torch_get_device_index, handle_.get(), &device.index);
    return device;
  }

  bool is_contiguous() const {
    bool contiguous = false;
    SEQUENCE_KERNELS_CALL(aoti_torch_is_contiguous, handle_.get(), &contiguous);
    return contiguous;
  }

  // The elements; a complex tensor's as interleaved real and imaginary parts.
  template <typename T>
  const T* data() const {
    const void* data = nullptr;
    SEQUENCE_KERNELS_CALL(torch_get_const_data_ptr, handle_.get(), &data);
    return static_cast<const T*>(data);
  }

  template <typename Real>
  Real* mutable_data() {
    void* data = nullptr;
    SEQUENCE_KERNELS_CALL(torch_get_mutable_data_ptr, handle_.get(), &data);
    return static_cast<Real*>(data);
  }

  AtenTensorHandle release() { return handle_.release(); }

 private:
  struct Delete {
    void operator()(AtenTensorHandle handle) const { aoti_torch_delete_tensor_object(handle); }
  };

  static int32_t torch_dtype(Dtype dtype) {
    switch (dtype) {
      case Dtype::float16:
        return aoti_torch_dtype_float16();
      case Dtype::bfloat16:
        return aoti_torch_dtype_bfloat16();
      case Dtype::float32:
        return aoti_torch_dtype_float32();
      case Dtype::float64:
        return aoti_torch_dtype_float64();
      case Dtype::complex64:
        return aoti_torch_dtype_complex64();
      case Dtype::complex128:
        return aoti_torch_dtype_complex128();
      default:
        return aoti_torch_dtype_int64();
    }
  }

  std::unique_ptr<AtenTensorOpaque, Delete> handle_;
};

// What a kernel is told of the elements of a sequence.
inline Element element_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::float16:
      return Element::float16;
    case Dtype::bfloat16:
      return Element::bfloat16;
    case Dtype::float32:
      return Element::float32;
    case Dtype::float64:
      return Element::float64;
    default:
      fail("expected a sequence of float16, bfloat16, float32 or float64");
  }
}

// Bytes of one.
inline int64_t bytes_of(Element element) {
  return element == Element::float64 ? 8 : element == Element::float32 ? 4 : 2;
}

// Its elements, or null.
template <typename T>
const T* data_of(const std::optional<Tensor>& tensor) {
  return tensor ? tensor->data<T>() : nullptr;
}

namespace detail {

// An optional tensor comes as a pointer to its handle, which the callee deletes, or null.
template <typename T>
T unbox(StableIValue value) {
  if constexpr (std::is_same_v<T, Tensor>) {
    return Tensor(reinterpret_cast<AtenTensorHandle>(value));
  } else if constexpr (std::is_same_v<T, std::optional<Tensor>>) {
    const std::unique_ptr<StableIValue> inner(reinterpret_cast<StableIValue*>(value));
    return inner ? std::optional<Tensor>(unbox<Tensor>(*inner)) : std::nullopt;
  } else {
    static_assert(std::is_same_v<T, int64_t> || std::is_same_v<T, double> || std::is_same_v<T, bool>);
    T result;
    std::memcpy(&result, &value, sizeof(T));
    return result;
  }
}

template <typename T, typename = void>
struct IsStruct : std::false_type {};
template <typename T>
struct IsStruct<T, std::void_t<decltype(T::schema)>> : std::true_type {};

}  // namespace detail

// The arguments of a call, one after the other. A struct of several, which ops share, has their schema and
// says in which order to take them:
//
//   struct Pair {
//     Tensor x, y;
//     static constexpr const char* schema = "Tensor x, Tensor y";
//     static Pair take(Stack& stack) { return {stack.take<Tensor>(), stack.take<Tensor>()}; }
//   };
class Stack {
 public:
  explicit Stack(const StableIValue* next) : next_(next) {}

  template <typename T>
  T take() {
    if constexpr (detail::IsStruct<T>::value)
      return T::take(*this);
    else
      return detail::unbox<T>(*next_++);
  }

 private:
  const StableIValue* next_;
};

namespace detail {

inline void box(Tensor&& value, StableIValue* to) {
  *to = reinterpret_cast<StableIValue>(value.release());
}
inline void box(int64_t value, StableIValue* to) {
  *to = static_cast<StableIValue>(value);
}
inline void box(std::vector<Tensor>&& values, StableIValue* to) {
  for (Tensor& value : values) box(std::move(value), to++);
}

// Braces, so that the arguments are taken in their order.
template <auto function, typename Result, typename... Arguments>
void call(Result (*)(Arguments...), StableIValue* values) {
  Stack stack(values);
  std::tuple<std::decay_t<Arguments>...> arguments{stack.take<std::decay_t<Arguments>>()...};
  if constexpr (std::is_void_v<Result>)
    std::apply(function, arguments);
  else
    box(std::apply(function, arguments), values);
}

}  // namespace detail

// A C++ function of tensors, optional tensors and numbers in torch's calling convention: it takes over the
// references in its arguments. Several results are a vector.
template <auto function>
void boxed(StableIValue* stack, uint64_t, uint64_t) {
  detail::call<function>(function, stack);
}

constexpr const char* name_space = "sequence_kernels_native";

// Implements an op for a dispatch key, as a static object of the library. Torch's handles live as long as the
// process.
struct Implementation {
  Implementation(const std::string& name, void (*function)(StableIValue*, uint64_t, uint64_t),
                 const char* dispatch_key) {
    const uint64_t torch_2_10 = 0x020a000000000000;  // whose calling convention is used
    TorchLibraryHandle library = nullptr;
    SEQUENCE_KERNELS_CALL(aoti_torch_library_init_impl, name_space, dispatch_key, __FILE__, __LINE__,
                          &library);
    SEQUENCE_KERNELS_CALL(torch_library_impl, library, name.c_str(), function, torch_2_10);
  }
};

// Defines an op and implements it, by default for CPU tensors.
struct Op {
  Op(const std::string& schema, void (*function)(StableIValue*, uint64_t, uint64_t),
     const char* dispatch_key = "CPU") {
    TorchLibraryHandle library = nullptr;
    SEQUENCE_KERNELS_CALL(aoti_torch_library_init_fragment, name_space, __FILE__, __LINE__, &library);
    SEQUENCE_KERNELS_CALL(aoti_torch_library_def, library, schema.c_str());
    const Implementation implementation(schema.substr(0, schema.find('(')), function, dispatch_key);
  }
};

// That work is shared out to.
inline int64_t thread_count() {
  uint32_t count = 1;
  SEQUENCE_KERNELS_CALL(torch_get_num_threads, &count);
  return count;
}

// Run function(begin, end, scratch) over parts of [0, count) on torch's threads; each part has its own
// scratch memory, aligned to 64 bytes, for as many elements as asked. A part has at least `grain` items.
template <typename Real, typename Function>
void parallel_for(int64_t count, int64_t scratch_elements, const Function& function, int64_t grain = 1) {
  struct Context {
    const Function& function;
    size_t bytes;
  } context{function, sizeof(Real) * static_cast<size_t>(scratch_elements)};
  const auto part = [](int64_t begin, int64_t end, void* opaque) {
    const auto& context = *static_cast<const Context*>(opaque);
    const std::align_val_t alignment{64};
    void* scratch = ::operator new(context.bytes, alignment);
    context.function(begin, end, static_cast<Real*>(scratch));
    ::operator delete(scratch, alignment);
  };
  if (count > 0) SEQUENCE_KERNELS_CALL(torch_parallel_for, 0, count, grain, part, &context);
}

}  // namespace sequence_kernels
