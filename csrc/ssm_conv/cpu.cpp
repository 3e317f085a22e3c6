// The forward pass of the chunked convolution: see ssm_conv.h.
#include "ssm_conv/forward.h"

namespace sequence_kernels {

template <typename Real, Isa isa>
int64_t ssm_conv_scratch(const SsmConvArguments<Real>& arguments) {
  return Forward<Real>(arguments, nullptr).used;
}

template <typename Real, Isa isa>
void ssm_conv(const SsmConvArguments<Real>& arguments, int64_t begin, int64_t end, Real* scratch) {
  Forward<Real> forward(arguments, scratch);
  for (int64_t item = begin; item < end; ++item) forward.run(item);
}

template int64_t ssm_conv_scratch<float, kIsa>(const SsmConvArguments<float>&);
template int64_t ssm_conv_scratch<double, kIsa>(const SsmConvArguments<double>&);
template void ssm_conv<float, kIsa>(const SsmConvArguments<float>&, int64_t, int64_t, float*);
template void ssm_conv<double, kIsa>(const SsmConvArguments<double>&, int64_t, int64_t, double*);

}  // namespace sequence_kernels
