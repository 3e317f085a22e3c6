// libFuzzer's place where there is no clang: mutates files, keeps those that open, and leaves what ends it in a file.
//
//     loop RUNS SECONDS SEED FINDING FILE...

#include <sanitizer/common_interface_defs.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>

#include "mutate.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
extern long fuzz_opened;

namespace {

fuzz::Bytes input;
const char* finding;

void keep_input() {
  if (std::FILE* file = std::fopen(finding, "wb")) {
    std::fwrite(input.data(), 1, input.size(), file);
    std::fclose(file);
  }
}

}  // namespace

int main(int count, char** arguments) {
  const long runs = std::atol(arguments[1]);
  const double seconds = std::atof(arguments[2]);
  std::mt19937_64 random(std::strtoull(arguments[3], nullptr, 10));
  finding = arguments[4];
  std::vector<fuzz::Bytes> pool;
  for (int i = 5; i < count; ++i) {
    std::ifstream file(arguments[i], std::ios::binary);
    pool.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  const size_t given = pool.size();
  __sanitizer_set_death_callback(keep_input);
  const auto begin = std::chrono::steady_clock::now();
  long run = 0;
  for (; run < runs; ++run) {
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
    if (taken.count() > seconds) break;
    if (run < static_cast<long>(given)) {
      input = pool[static_cast<size_t>(run)];
    } else {  // half of the time one of ours: what opens drifts towards what does nothing
      const size_t among = random() % 2 ? given : pool.size();
      input = fuzz::Mutation(pool[random() % among], random()).made();
    }
    const long before = fuzz_opened;
    LLVMFuzzerTestOneInput(input.data(), input.size());
    if (fuzz_opened == before || input.size() > 20000 || run < static_cast<long>(given)) continue;
    if (pool.size() < 1000)
      pool.push_back(input);
    else
      pool[given + random() % (pool.size() - given)] = input;
  }
  std::printf("%ld runs, %ld opened, no finding\n", run, fuzz_opened);
  return 0;
}
