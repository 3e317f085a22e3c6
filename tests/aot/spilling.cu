// More numbers alive at a time than a thread of 1024 can have registers: the gate must see the spills.
struct Params {
  float* y;
  int n;
};
extern "C" __global__ void __launch_bounds__(1024) spilling(const __grid_constant__ Params p) {
  float kept[128];
#pragma unroll
  for (int i = 0; i < 128; ++i) kept[i] = p.y[i * p.n + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 128; ++i) p.y[i * p.n + threadIdx.x] = kept[127 - i] * kept[i];
}
