// Makes other saved programs of saved programs: their sizes, instructions and weights changed, and most of them then made
// consistent again, so that they reach what an ordinary mutation of bytes would not.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "step_program/checks.h"
#include "stream/file.h"

namespace fuzz {

using namespace sequence_kernels;
using Bytes = std::vector<unsigned char>;
constexpr int64_t kInstruction = sizeof(Instruction), kHeader = sizeof(FileHeader);

class Mutation {
 public:
  Mutation(Bytes bytes, uint64_t seed) : bytes_(std::move(bytes)), random_(seed) {}

  Bytes made() {
    for (int64_t i = below(6); i >= 0; --i) change();
    if (bytes_.size() >= kHeader && below(16) != 0) {
      if (below(8) != 0) fit();
      seal();
    }
    return bytes_;
  }

 private:
  int64_t below(int64_t bound) {
    return bound > 0 ? static_cast<int64_t>(random_() % static_cast<uint64_t>(bound)) : 0;
  }

  template <typename T>
  T get(size_t at) const {
    T value;
    std::memcpy(&value, bytes_.data() + at, sizeof(T));
    return value;
  }
  template <typename T>
  void put(size_t at, T value) {
    std::memcpy(bytes_.data() + at, &value, sizeof(T));
  }

  FileHeader header() const { return get<FileHeader>(0); }

  // As many instructions as the file says and has.
  int64_t instructions() const {
    const auto room = static_cast<int64_t>(bytes_.size() - kHeader) / kInstruction;
    return std::clamp<int64_t>(header().instructions, 0, room);
  }

  // A number near the old one, or one that is often wrong.
  int64_t number(int64_t old) {
    static const int64_t telling[] = {0,
                                      1,
                                      2,
                                      3,
                                      7,
                                      8,
                                      15,
                                      16,
                                      17,
                                      31,
                                      63,
                                      64,
                                      65,
                                      127,
                                      128,
                                      1000,
                                      1 << 16,
                                      1 << 20,
                                      (1 << 30) - 1,
                                      1 << 30,
                                      int64_t(1) << 31,
                                      int64_t(1) << 32,
                                      int64_t(1) << 62,
                                      std::numeric_limits<int64_t>::max()};
    const int64_t chosen = telling[below(std::size(telling))];
    switch (below(8)) {
      case 0:
        return static_cast<int64_t>(static_cast<uint64_t>(old) + static_cast<uint64_t>(below(5) - 2));
      case 1:
        return old / 2;
      case 2:
        return static_cast<int64_t>(static_cast<uint64_t>(old) * 2);
      case 3:
        return -chosen;
      case 4:
        return below(12);
      case 5:
        return static_cast<int64_t>(static_cast<uint64_t>(old) + static_cast<uint64_t>(chosen));
      case 6:  // a number from elsewhere in the file
        return bytes_.size() < 8
                   ? chosen
                   : get<int64_t>(static_cast<size_t>(below(static_cast<int64_t>(bytes_.size()) / 8) * 8));
      default:
        return chosen;
    }
  }

  void change() {
    if (bytes_.size() < kHeader + 8) return bytes_.resize(bytes_.size() + static_cast<size_t>(below(200)));
    const int64_t count = instructions();
    const auto size = static_cast<int64_t>(bytes_.size());
    switch (below(10)) {
      case 0: {  // a field of the header, but for the magic number
        const auto at = static_cast<size_t>(24 + 8 * below((kHeader - 24) / 8));
        return put<int64_t>(at, number(get<int64_t>(at)));
      }
      case 1:
        return put<uint32_t>(8 + 4 * static_cast<size_t>(below(6)), static_cast<uint32_t>(number(4)));
      case 2:
      case 3:
      case 4:  // a field of an instruction
        if (count > 0) {
          const auto at =
              static_cast<size_t>(kHeader + kInstruction * below(count) + 8 * below(kInstruction / 8));
          put<int64_t>(at, number(get<int64_t>(at)));
        }
        return;
      case 5: {  // another instruction: a copy, or one of any kind
        const auto at = bytes_.begin() + kHeader + kInstruction * below(count + 1);
        Bytes made(static_cast<size_t>(kInstruction));
        if (count > 0)
          std::memcpy(made.data(), bytes_.data() + kHeader + kInstruction * below(count), made.size());
        if (count == 0 || below(2) == 0) {
          const int64_t code = below(static_cast<int64_t>(Code::lstm) + 1);
          std::memcpy(made.data(), &code, sizeof(code));
        }
        bytes_.insert(at, made.begin(), made.end());
        return put<int64_t>(offsetof(FileHeader, instructions), count + 1);
      }
      case 6:
        if (count > 0) {
          const auto at = bytes_.begin() + kHeader + kInstruction * below(count);
          bytes_.erase(at, at + kInstruction);
          put<int64_t>(offsetof(FileHeader, instructions), count - 1);
        }
        return;
      case 7:  // any bytes
        for (int64_t i = below(8); i >= 0; --i)
          bytes_[static_cast<size_t>(below(size))] = static_cast<unsigned char>(below(256));
        return;
      case 8: {  // a weight that is no number, or huge
        static const float odd[] = {std::numeric_limits<float>::quiet_NaN(),
                                    std::numeric_limits<float>::infinity(), -3e38f, 1e-45f, 1e9f};
        return put<float>(static_cast<size_t>(kHeader + below((size - kHeader) / 4) * 4), odd[below(5)]);
      }
      default:  // shorter or longer
        return bytes_.resize(static_cast<size_t>(
            below(2) ? size - below(std::min<int64_t>(size - kHeader, 300)) : size + 8 * below(64)));
    }
  }

  // The sizes that follow from others set to what they must be.
  void fit() {
    const int64_t count = instructions();
    put<int64_t>(offsetof(FileHeader, instructions), count);
    const auto left = static_cast<int64_t>(bytes_.size()) - kHeader - count * kInstruction;
    const auto first = static_cast<size_t>(kHeader + count * kInstruction);
    if (left >= 16 && below(4) != 0) {  // all weights in one run
      const int64_t each = get<int64_t>(first) == 2 ? 2 : get<int64_t>(first) == 1 ? 8 : 4;
      bytes_.resize(bytes_.size() - static_cast<size_t>(left % 8));
      const int64_t numbers = (left / 8 * 8 - 16) / each;
      put<uint32_t>(offsetof(FileHeader, runs), 1);
      put<int64_t>(first + 8, numbers);
      put<int64_t>(offsetof(FileHeader, weights), numbers);
    }
    if (below(8) == 0) put<uint32_t>(offsetof(FileHeader, number_bytes), below(2) ? 4 : 8);
    std::vector<Instruction> program(static_cast<size_t>(count));
    if (count > 0) std::memcpy(program.data(), bytes_.data() + kHeader, program.size() * kInstruction);
    const FileHeader sizes = header();
    if (sizes.inputs < 0 || sizes.inputs > kMostInputs || sizes.weights < 0) return;
    Examination found(sizes.inputs, sizes.weights, kMostState);
    if (found.fault(program.data(), count)) return;
    put<int64_t>(offsetof(FileHeader, outputs), found.channels);
    put<int64_t>(offsetof(FileHeader, state), found.carried);
  }

  void seal() {
    put<uint64_t>(offsetof(FileHeader, size), bytes_.size());
    constexpr size_t checked = offsetof(FileHeader, size);
    put<uint32_t>(offsetof(FileHeader, checksum), crc32(bytes_.data() + checked, bytes_.size() - checked));
  }

  Bytes bytes_;
  std::mt19937_64 random_;
};

}  // namespace fuzz
