#include "program.h"

namespace ptx {

std::vector<uint32_t> places_of_registers(const Entry& entry, uint32_t& bytes) {
  std::vector<uint32_t> places;
  bytes = 0;
  for (int width : entry.widths) {
    places.push_back(bytes);
    bytes += width == 1 ? 64 : 4 * width;
  }
  return places;
}

}  // namespace ptx
