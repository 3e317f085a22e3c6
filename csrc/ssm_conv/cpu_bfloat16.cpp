// The chunked convolution of bfloat16 sequences, multiplied as bfloat16: see ssm_conv.h.
#include "ssm_conv/backward.h"
#include "ssm_conv/forward.h"

namespace sequence_kernels {

template <>
int64_t ssm_conv_scratch<float, kIsa>(const SsmConvArguments<float>& arguments) {
  return Forward<float, Bfloat16>(arguments, nullptr).used;
}

template <>
void ssm_conv<float, kIsa>(const SsmConvArguments<float>& arguments, int64_t begin, int64_t end,
                           float* scratch) {
  Forward<float, Bfloat16> forward(arguments, scratch);
  for (int64_t item = begin; item < end; ++item) forward.run(item);
}

template <>
int64_t ssm_conv_backward_scratch<float, kIsa>(const SsmConvArguments<float>& arguments) {
  return Backward<float, Bfloat16>(arguments, nullptr).used;
}

template <>
void ssm_conv_backward<float, kIsa>(const SsmConvArguments<float>& arguments, int64_t begin, int64_t end,
                                    float* scratch) {
  Backward<float, Bfloat16> backward(arguments, scratch);
  for (int64_t group = begin; group < end; ++group) backward.run(group);
}

}  // namespace sequence_kernels
