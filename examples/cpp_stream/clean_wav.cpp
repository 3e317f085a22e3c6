// Cleans a WAV file (16 bits, one channel) 10 ms at a time, as it would come from a microphone: libtorch, no Python.
//
//     python -c "..."      # sequence_kernels.export.package(model, "denoiser.pt2"); docs/export.md
//     ./clean_wav denoiser.pt2 .../sequence_kernels/_native_cpu.so noisy.wav cleaned.wav
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/torch.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

namespace {

int fail(const std::string& what, const std::string& why) {
  std::cerr << what << ": " << why << '\n';
  return 1;
}

uint32_t number(const char* bytes, int count) {
  uint32_t value = 0;
  while (count-- > 0) value = value << 8 | static_cast<unsigned char>(bytes[count]);
  return value;
}

// The state before the first element: the package says which shapes its tensors have.
std::vector<at::Tensor> first_state(torch::inductor::AOTIModelPackageLoader& model) {
  auto said = model.get_metadata();
  std::vector<at::Tensor> state;
  for (int i = 0; said.count("state_" + std::to_string(i)); ++i) {
    std::vector<int64_t> shape{1};
    std::stringstream sizes(said["state_" + std::to_string(i)]);
    for (std::string size; std::getline(sizes, size, ',');) shape.push_back(std::stoll(size));
    state.push_back(torch::zeros(shape));
  }
  return state;
}

int run(char** arguments) {
  if (!dlopen(arguments[2], RTLD_NOW | RTLD_GLOBAL)) return fail(arguments[2], dlerror());
  torch::inductor::AOTIModelPackageLoader model(arguments[1], "model");
  std::vector<at::Tensor> state = first_state(model);

  constexpr int kHeader = 44;
  std::ifstream noisy(arguments[3], std::ios::binary);
  char header[kHeader];
  if (!noisy.read(header, kHeader) || std::memcmp(header, "RIFF", 4) || std::memcmp(header + 36, "data", 4) ||
      number(header + 22, 2) != 1 || number(header + 34, 2) != 16)
    return fail(arguments[3], "is not a plain WAV file of 16 bits and one channel");
  std::ofstream cleaned(arguments[4], std::ios::binary);
  cleaned.write(header, kHeader);

  const int64_t block = std::max<int64_t>(1, number(header + 24, 4) / 100);
  std::vector<int16_t> pcm(block);
  int64_t samples = 0;
  for (;;) {
    noisy.read(reinterpret_cast<char*>(pcm.data()), 2 * block);
    const int64_t length = noisy.gcount() / 2;
    if (length == 0) break;
    std::vector<at::Tensor> inputs{torch::from_blob(pcm.data(), {1, length, 1}, torch::kInt16).to(torch::kFloat) / 32768};
    inputs.insert(inputs.end(), state.begin(), state.end());
    std::vector<at::Tensor> outputs = model.run(inputs);
    const at::Tensor y = (outputs[0].clamp(-1, 1) * 32767).to(torch::kInt16).contiguous();
    state.assign(outputs.begin() + 1, outputs.end());
    cleaned.write(reinterpret_cast<const char*>(y.data_ptr<int16_t>()), 2 * length);
    samples += length;
  }
  if (!cleaned.flush()) return fail(arguments[4], "cannot be written");
  std::cout << samples << " samples in blocks of " << block << '\n';
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 5) return fail("usage", "clean_wav model.pt2 _native_cpu.so noisy.wav cleaned.wav");
  c10::InferenceMode guard;
  try {
    return run(arguments);
  } catch (const std::exception& error) {
    return fail(arguments[1], error.what());
  }
}
