// What a package of AOTInductor is given. Its code takes for granted how many numbers there are and where they lie, and
// that the library is the one that it was made with: what is wrong would be read all the same.

#include "runtime/library.h"

namespace sequence_kernels {
namespace {

void copy(const char* from, const int64_t* sizes, const int64_t* strides, size_t dims, int64_t bytes,
          char*& to) {
  if (dims == 0) {
    std::memcpy(to, from, static_cast<size_t>(bytes));
    to += bytes;
  }
  for (int64_t i = 0; dims > 0 && i < sizes[0]; ++i)
    copy(from + i * strides[0] * bytes, sizes + 1, strides + 1, dims - 1, bytes, to);
}

std::string said(const std::vector<int64_t>& sizes) {
  std::string text;
  for (int64_t size : sizes) text += (text.empty() ? "" : ", ") + (size > 0 ? std::to_string(size) : "any");
  return "(" + text + ")";
}

// A copy of `given` in one piece, if it has the dtype and the sizes of `like`, or any from 1 on where those are 0, and
// as many sequences as x. `build`: of the library that the package was made with.
Tensor received(const Tensor& given, const Tensor& like, const Tensor& x, int64_t build) {
  if (build != SEQUENCE_KERNELS_BUILD)
    fail("the package was made with another build of _native_cpu.so, " + std::to_string(build) +
         ", than this one, " + std::to_string(SEQUENCE_KERNELS_BUILD) +
         ": make it again, or load that library");
  if (given.dtype() != like.dtype())
    fail("x and the state must have the dtype that the package was made for");
  const auto sizes = given.sizes(), wanted = like.sizes(), all = x.sizes();
  bool fits = sizes.size() == wanted.size() && !sizes.empty() && !all.empty() && sizes[0] == all[0];
  for (size_t i = 0; fits && i < sizes.size(); ++i)
    fits = wanted[i] == 0 ? sizes[i] > 0 : sizes[i] == wanted[i];
  if (!fits) fail("expected " + said(wanted) + ", as many sequences as x has, got " + said(sizes));
  Tensor copied = Tensor::empty(sizes, given.dtype());
  char* to = copied.mutable_data<char>();
  copy(given.data<char>(), sizes.data(), given.strides().data(), sizes.size(),
       bytes_of(element_of(given.dtype())), to);
  return copied;
}

const Op op("received(Tensor given, Tensor like, Tensor x, int build) -> Tensor", boxed<received>);

}  // namespace
}  // namespace sequence_kernels
