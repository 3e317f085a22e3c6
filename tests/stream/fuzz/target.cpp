// What is fuzzed: any bytes are opened, and what opens is run. Made for libFuzzer and for loop.cpp alike.

#include <memory>

#include "mutate.h"
#include "stream/sequence_stream.h"

namespace {

using fuzz::Bytes;
using namespace sequence_kernels;

// What would take longer than finding faults is worth: to run, and but for one in so many to open.
constexpr int64_t kMostRun = 1 << 16, kMostOpened = 1 << 18;
constexpr int kGreedy = 256;

// Exactly so many numbers, so that the sanitizers see the ends.
std::unique_ptr<float[]> rows(int64_t numbers) {
  std::unique_ptr<float[]> made(new float[static_cast<size_t>(numbers)]);
  for (int64_t i = 0; i < numbers; ++i) made[static_cast<size_t>(i)] = 0.25f * static_cast<float>(i % 7 - 3);
  return made;
}

void demand(bool condition) {
  if (!condition) __builtin_trap();
}

void run(sequence_stream* model, unsigned char choice) {
  const int64_t inputs = sequence_stream_size(model, SEQUENCE_STREAM_INPUTS);
  const int64_t outputs = sequence_stream_size(model, SEQUENCE_STREAM_OUTPUTS);
  const int64_t state = sequence_stream_size(model, SEQUENCE_STREAM_STATE_BYTES);
  if (inputs > kMostRun || outputs > kMostRun || state > kMostRun) return;
  const auto x = rows(3 * inputs), y = rows(3 * outputs);
  const int64_t streams[] = {2, -1, 0}, one = sequence_stream_size(model, SEQUENCE_STREAM_VOCABULARY) - 1;
  demand(sequence_stream_step(model, 3, choice & 1 ? streams : nullptr, x.get(), y.get()) == 0);
  demand(sequence_stream_block(model, 1, 2, x.get(), y.get()) == 0);
  demand(sequence_stream_step_tokens(model, 1, nullptr, &one, y.get()) ==
         (one < 0 ? SEQUENCE_STREAM_ARGUMENT : SEQUENCE_STREAM_OK));
  const auto copy = std::make_unique<unsigned char[]>(static_cast<size_t>(state));
  demand(sequence_stream_read_state(model, 1, copy.get(), static_cast<size_t>(state)) == 0);
  demand(sequence_stream_reset(model, -1) == 0);
  demand(sequence_stream_write_state(model, 2, copy.get(), static_cast<size_t>(state)) == 0);
}

}  // namespace

// How many inputs were opened and run.
long fuzz_opened = 0;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size >= sizeof(FileHeader) && (data[size / 3] + size) % kGreedy != 0) {
    const FileHeader header = header_of(data);
    if (header.inputs > kMostOpened || header.state > kMostOpened) return 0;
  }
  sequence_stream* model = nullptr;
  const int status = sequence_stream_open_bytes(data, size, 3, &model);
  demand((status == SEQUENCE_STREAM_OK) == (model != nullptr));
  if (!model) return 0;
  ++fuzz_opened;
  sequence_stream_limit_instruction_set(data[size - 1] % 3);
  run(model, data[size / 2]);
  sequence_stream_close(model);
  return 0;
}

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t most);

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t most, unsigned seed) {
  const Bytes made = fuzz::Mutation(Bytes(data, data + size), seed).made();
  if (made.size() > most) return size;
  std::copy(made.begin(), made.end(), data);
  return made.size();
}
