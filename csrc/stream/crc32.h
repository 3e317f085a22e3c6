// The checksum of files: CRC-32 as zlib has it, eight bytes at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace sequence_kernels {

struct CrcTables {
  uint32_t of[8][256] = {};

  constexpr CrcTables() {
    for (uint32_t byte = 0; byte < 256; ++byte) {
      uint32_t crc = byte;
      for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
      of[0][byte] = crc;
    }
    for (int i = 1; i < 8; ++i)
      for (int byte = 0; byte < 256; ++byte)
        of[i][byte] = of[i - 1][byte] >> 8 ^ of[0][of[i - 1][byte] & 0xFF];
  }
};

inline uint32_t crc32(const unsigned char* bytes, size_t size) {
  static constexpr CrcTables tables;
  uint32_t crc = ~0u;
  for (; size >= 8; size -= 8, bytes += 8) {
    uint64_t word;
    std::memcpy(&word, bytes, 8);
    word ^= crc;
    crc = 0;
    for (int i = 0; i < 8; ++i) crc ^= tables.of[7 - i][word >> 8 * i & 0xFF];
  }
  for (; size > 0; --size, ++bytes) crc = crc >> 8 ^ tables.of[0][(crc ^ *bytes) & 0xFF];
  return ~crc;
}

}  // namespace sequence_kernels
