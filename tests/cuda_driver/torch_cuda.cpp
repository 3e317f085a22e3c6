// What a torch with CUDA has and one without lacks: the current stream of a device, here 0x1000 + its number.
#include <cstdint>

extern "C" __attribute__((visibility("default"))) int32_t aoti_torch_get_current_cuda_stream(int32_t device,
                                                                                             void** stream) {
  *stream = reinterpret_cast<void*>(static_cast<intptr_t>(0x1000 + device));
  return 0;
}
