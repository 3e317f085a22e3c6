// ld and st.
#include "access.h"
#include "table.h"
#include "traffic.h"

namespace ptx {
namespace {

template <class Address>
uint64_t address_of(const Warp& w, const Instruction& i, int operand, int lane) {
  return static_cast<uint64_t>(w.values<Address>(i.operands[operand])[lane] + static_cast<Address>(i.number));
}

template <class Address>
void count(Warp& w, const Instruction& i, int operand, Space space, Touch touch, uint32_t bytes) {
  uint64_t addresses[lanes];
  for (int lane = 0; lane < lanes; ++lane) addresses[lane] = address_of<Address>(w, i, operand, lane);
  count(*w.launch->traffic, space, touch, addresses, w.exec, bytes);
}
template <Space space, class T, int n, class Address, class To = T>
void load(Warp& w, const Instruction& i) {
  if (w.launch->traffic) count<Address>(w, i, n, space, Touch::read, n * sizeof(T));
  for (Mask rest = w.exec; rest; rest &= rest - 1) {
    const unsigned lane = first_lane(rest);
    T found[n];
    memcpy(found, bytes_at(w, i, lane, space, Touch::read, address_of<Address>(w, i, n, lane), sizeof found),
           sizeof found);
    for (int k = 0; k < n; ++k) w.values<To>(i.operands[k])[lane] = found[k];
  }
}
template <Space space, class T, int n, class Address, class From = T>
void store(Warp& w, const Instruction& i) {
  if (w.launch->traffic) count<Address>(w, i, 0, space, Touch::write, n * sizeof(T));
  for (Mask rest = w.exec; rest; rest &= rest - 1) {
    const unsigned lane = first_lane(rest);
    T given[n];
    for (int k = 0; k < n; ++k) given[k] = static_cast<T>(w.values<From>(i.operands[1 + k])[lane]);
    const uint64_t address = address_of<Address>(w, i, 0, lane);
    memcpy(bytes_at(w, i, lane, space, Touch::write, address, sizeof given, given), given, sizeof given);
  }
}
template <class T, int n, class To>
void load_parameter(Warp& w, const Instruction& i) {
  const uint32_t size = w.launch->program->params_bytes;
  for (Mask rest = w.exec; rest; rest &= rest - 1) {
    const unsigned lane = first_lane(rest);
    T found[n];
    const uint64_t offset = address_of<uint64_t>(w, i, n, lane);
    if (offset >= size || offset + sizeof found > size)
      fault(w, lane, "reads beyond the parameters at " + w.launch->program->source(i));
    memcpy(found, w.launch->params + offset, sizeof found);
    for (int k = 0; k < n; ++k) w.values<To>(i.operands[k])[lane] = static_cast<To>(found[k]);
  }
}

template <Space space, class T, int n>
[[gnu::cold]] void add_load_and_store(Table& table, const std::string& suffix) {
  const std::string values(n, letter<T>());
  table["ld" + suffix] = {load<space, T, n, uint32_t>, values + "a", load<space, T, n, uint64_t>};
  table["st" + suffix] = {store<space, T, n, uint32_t>, "a" + values, store<space, T, n, uint64_t>};
}
template <class T, int n>
[[gnu::cold]] void add_accesses(Table& table, const std::string& vector) {
  for (const char* kind : {"b", "u", "s", "f"}) {
    const std::string type = kind + std::to_string(8 * sizeof(T)), suffix = vector + "." + type;
    add_load_and_store<Space::global, T, n>(table, ".global" + suffix);
    add_load_and_store<Space::shared, T, n>(table, ".shared" + suffix);
    table["ld.param" + suffix] = {nullptr, std::string(n, letter<T>()) + "a", load_parameter<T, n, T>};
  }
}

}  // namespace

[[gnu::cold]] void add_memory(Table& table) {
  add_accesses<uint16_t, 1>(table, "");
  add_accesses<uint16_t, 2>(table, ".v2");
  add_accesses<uint16_t, 4>(table, ".v4");
  add_accesses<uint32_t, 1>(table, "");
  add_accesses<uint32_t, 2>(table, ".v2");
  add_accesses<uint32_t, 4>(table, ".v4");
  add_accesses<uint64_t, 1>(table, "");
  add_accesses<uint64_t, 2>(table, ".v2");
  table["ld.shared.b16:wide"] = {load<Space::shared, uint16_t, 1, uint32_t, uint32_t>, "wa",
                                 load<Space::shared, uint16_t, 1, uint64_t, uint32_t>};
  table["ld.global.u16:wide"] = {load<Space::global, uint16_t, 1, uint32_t, uint32_t>, "wa",
                                 load<Space::global, uint16_t, 1, uint64_t, uint32_t>};
  table["ld.shared.b32:wide"] = {load<Space::shared, uint32_t, 1, uint32_t, uint64_t>, "da",
                                 load<Space::shared, uint32_t, 1, uint64_t, uint64_t>};
  table["st.shared.b16:low"] = {store<Space::shared, uint16_t, 1, uint32_t, uint64_t>, "ad",
                                store<Space::shared, uint16_t, 1, uint64_t, uint64_t>};
  table["ld.shared.b8"] = {load<Space::shared, uint8_t, 1, uint32_t, uint16_t>, "ha",
                           load<Space::shared, uint8_t, 1, uint64_t, uint16_t>};
  table["st.shared.b8"] = {store<Space::shared, uint8_t, 1, uint32_t, uint16_t>, "ah",
                           store<Space::shared, uint8_t, 1, uint64_t, uint16_t>};
  table["ld.param.s32:wide"] = {nullptr, "da", load_parameter<int32_t, 1, int64_t>};
}

}  // namespace ptx
