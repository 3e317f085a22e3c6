// The backward pass of the chunked convolution: see ssm_conv.h.
#include "ssm_conv/backward.h"

namespace sequence_kernels {

template <typename Real, Isa isa>
int64_t ssm_conv_backward_scratch(const SsmConvArguments<Real>& arguments) {
  return Backward<Real>(arguments, nullptr).used;
}

template <typename Real, Isa isa>
void ssm_conv_backward(const SsmConvArguments<Real>& arguments, int64_t begin, int64_t end, Real* scratch) {
  Backward<Real> backward(arguments, scratch);
  for (int64_t group = begin; group < end; ++group) backward.run(group);
}

template int64_t ssm_conv_backward_scratch<float, kIsa>(const SsmConvArguments<float>&);
template int64_t ssm_conv_backward_scratch<double, kIsa>(const SsmConvArguments<double>&);
template void ssm_conv_backward<float, kIsa>(const SsmConvArguments<float>&, int64_t, int64_t, float*);
template void ssm_conv_backward<double, kIsa>(const SsmConvArguments<double>&, int64_t, int64_t, double*);

}  // namespace sequence_kernels
