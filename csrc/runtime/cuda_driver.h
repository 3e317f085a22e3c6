// Launches CUDA kernels through the driver's API, which is opened at the first launch: the library that holds
// them needs no CUDA runtime and loads on a machine without a driver.
//
//   EMBEDDED_KERNELS(vandermonde);  // the fat binary of csrc/vandermonde/cuda.cu; cuda_x.cu: vandermonde_x
//   const CudaKernel kernel{vandermonde_fatbin, "vandermonde_pairs_f32"};
//   launch(kernel, tensor.device(), VandermondeParams{...});
#pragma once

#include "common/launch.h"
#include "runtime/library.h"

namespace sequence_kernels {

// A fat binary that embed.S has put in this library.
#define EMBEDDED_KERNELS(name) \
  extern "C" __attribute__((visibility("hidden"))) const unsigned char name##_fatbin[]

struct CudaKernel {
  const void* fatbin;
  const char* name;
};

// Enqueue a kernel on torch's current stream of the device. Throws an error that names the kernel and the
// cause.
void launch(const CudaKernel& kernel, const Launch& rule, Device device, const void* params);

// The same where the kernel's own launch rule says. Params of an empty result launch nothing.
template <typename Params>
void launch(const CudaKernel& kernel, Device device, const Params& params) {
  const Launch rule = launch(params);
  if (rule.blocks > 0) launch(kernel, rule, device, &params);
}

}  // namespace sequence_kernels
