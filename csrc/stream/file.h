// A saved program as sequence_kernels/stepping/saved.py writes it. All numbers are little endian.
//
//   FileHeader
//   Instruction[instructions]
//   Run[runs]
//   the numbers of each run, then zeros up to a multiple of 8 bytes
#pragma once

#include <cstdint>
#include <cstring>

#include "step_program/step_program.h"
#include "stream/crc32.h"
#include "stream/sequence_stream.h"

namespace sequence_kernels {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "saved programs are little endian");

constexpr unsigned char kMagic[8] = {0x89, 'S', 'K', 'P', '\r', '\n', 0x1A, '\n'};

// Of what a file holds: the codes and sizes of instructions, how their weights lie, and this.
constexpr uint32_t kVersion = 1;
static_assert(kPanel == 64 && sizeof(Instruction) == 120, "another version of the format");

struct FileHeader {
  unsigned char magic[8];
  uint32_t version;
  uint32_t checksum;      // CRC-32 of all that follows
  uint64_t size;          // bytes of the file
  uint32_t number_bytes;  // 4 or 8: computed in float32 or float64
  uint32_t runs;
  int64_t inputs, outputs, state;  // numbers of a row and of a stream
  int64_t instructions, weights;
  int64_t vocabulary,
      embedding;  // tokens, and where their vectors lie among the weights: in panels, as a linear
                  // map's; 0: it takes rows alone
};
static_assert(sizeof(FileHeader) == 88);

enum class Storage : int64_t { float32, float64, bfloat16 };

// Weights that are stored alike, one run behind the other.
struct Run {
  Storage storage;
  int64_t count;
};

// What no model needs, so that a hostile file cannot ask for all of a machine's memory.
constexpr int64_t kMostInputs = int64_t(1) << 16, kMostState = int64_t(1) << 28;

constexpr int64_t bytes_of(Storage storage) {
  return storage == Storage::float64 ? 8 : storage == Storage::float32 ? 4 : 2;
}

inline FileHeader header_of(const unsigned char* bytes) {
  FileHeader header;
  std::memcpy(&header, bytes, sizeof(header));
  return header;
}

// Whether these bytes begin a program of this version; its other bytes may be missing yet.
inline int begins_program(const unsigned char* bytes, size_t size) {
  const size_t seen = size < sizeof(kMagic) ? size : sizeof(kMagic);
  if (size == 0 || std::memcmp(bytes, kMagic, seen) != 0) return SEQUENCE_STREAM_NOT_A_PROGRAM;
  if (size < sizeof(FileHeader)) return SEQUENCE_STREAM_CUT_OFF;
  return header_of(bytes).version == kVersion ? SEQUENCE_STREAM_OK : SEQUENCE_STREAM_OTHER_VERSION;
}

// The parts of a file.
struct File {
  FileHeader header;
  const unsigned char *program, *runs, *numbers;

  Run run(uint32_t i) const {
    Run run;
    std::memcpy(&run, runs + i * sizeof(Run), sizeof(run));
    return run;
  }
};

// Finds the parts, whose sizes then agree with each other and with the file's.
inline int find_parts(const unsigned char* bytes, size_t size, File& file) {
  if (const int status = begins_program(bytes, size)) return status;
  const FileHeader header = file.header = header_of(bytes);
  if (header.size != size) return SEQUENCE_STREAM_CUT_OFF;
  constexpr size_t checked = offsetof(FileHeader, size);
  if (crc32(bytes + checked, size - checked) != header.checksum) return SEQUENCE_STREAM_DAMAGED;

  const auto count_fits = [](int64_t count, size_t each, size_t room) {
    return count >= 0 && static_cast<uint64_t>(count) <= room / each;
  };
  size_t left = size - sizeof(header);
  if (!count_fits(header.instructions, sizeof(Instruction), left)) return SEQUENCE_STREAM_INVALID;
  left -= static_cast<size_t>(header.instructions) * sizeof(Instruction);
  if (!count_fits(header.runs, sizeof(Run), left)) return SEQUENCE_STREAM_INVALID;
  left -= header.runs * sizeof(Run);
  file.program = bytes + sizeof(header);
  file.runs = file.program + static_cast<size_t>(header.instructions) * sizeof(Instruction);
  file.numbers = file.runs + header.runs * sizeof(Run);

  int64_t numbers = 0;
  for (uint32_t i = 0; i < header.runs; ++i) {
    const Run run = file.run(i);
    const bool known = run.storage == Storage::float32 || run.storage == Storage::bfloat16 ||
                       (run.storage == Storage::float64 && header.number_bytes == 8);
    if (!known || !count_fits(run.count, static_cast<size_t>(bytes_of(run.storage)), left))
      return SEQUENCE_STREAM_INVALID;
    const size_t taken = (static_cast<size_t>(run.count * bytes_of(run.storage)) + 7) / 8 * 8;
    if (taken > left) return SEQUENCE_STREAM_INVALID;
    left -= taken, numbers += run.count;
  }
  return left == 0 && numbers == header.weights ? SEQUENCE_STREAM_OK : SEQUENCE_STREAM_INVALID;
}

// All weights, as the precision in which they are computed with.
template <typename Real>
void read_weights(const File& file, Real* to) {
  const unsigned char* from = file.numbers;
  for (uint32_t i = 0; i < file.header.runs; ++i) {
    const Run run = file.run(i);
    const int64_t each = bytes_of(run.storage);
    for (int64_t k = 0; k < run.count; ++k) {
      const unsigned char* const at = from + k * each;
      if (run.storage == Storage::float64) {
        double value;
        std::memcpy(&value, at, 8);
        to[k] = static_cast<Real>(value);
        continue;
      }
      uint32_t bits = 0;  // bfloat16 is the upper half of a float32
      std::memcpy(reinterpret_cast<unsigned char*>(&bits) + 4 - each, at, static_cast<size_t>(each));
      float value;
      std::memcpy(&value, &bits, 4);
      to[k] = value;
    }
    to += run.count;
    from += (run.count * each + 7) / 8 * 8;
  }
}

}  // namespace sequence_kernels
