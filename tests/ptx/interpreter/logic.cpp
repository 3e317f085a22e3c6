// Bits, shifts, comparisons and selections. A shift counts in 32 bits whatever it shifts, and one by more than the
// width is one by the width.
#include <algorithm>
#include <cstring>

#include "table.h"

namespace ptx {
namespace {

template <class T>
T bitwise_and(T a, T b) {
  return a & b;
}
template <class T>
T bitwise_or(T a, T b) {
  return a | b;
}
template <class T>
T bitwise_xor(T a, T b) {
  return a ^ b;
}
template <class T>
T bitwise_not(T a) {
  return static_cast<T>(~a);
}
template <class T>
T shift_left(T a, uint32_t count) {
  constexpr uint32_t width = 8 * sizeof(T);
  return count < width ? static_cast<T>(a << (count & (width - 1))) : T{0};
}
template <class T>
T shift_right(T a, uint32_t count) {
  constexpr uint32_t width = 8 * sizeof(T);
  const T beyond = a < 0 ? static_cast<T>(-1) : T{0};
  return count < width ? static_cast<T>(a >> (count & (width - 1))) : beyond;
}
uint32_t leading_zeros(uint32_t a) {
  return a ? __builtin_clz(a) : 32;
}
uint32_t leading_zeros_64(uint64_t a) {
  return a ? __builtin_clzll(a) : 64;
}
// The bits [position, position + length) of a; what lies beyond its width is 0 or its sign.
template <class T>
T extract(T a, uint32_t position, uint32_t length) {
  position &= 0xFF, length &= 0xFF;
  if (length == 0) return 0;
  constexpr uint32_t top = 8 * sizeof(T) - 1;
  const uint32_t last = std::min(position + length - 1, top);
  const T sign = std::is_signed_v<T> ? a >> last & 1 : 0;
  T found = sign ? T(-1) : T(0);
  for (uint32_t i = 0; i < length && i <= top; ++i) {
    const T bit = position + i <= top ? a >> (position + i) & 1 : sign;
    found = (found & ~(T(1) << i)) | (bit << i);
  }
  return found;
}
// b with the lowest bits of a at a position.
template <class T>
T insert(T a, T b, uint32_t position, uint32_t length) {
  position &= 0xFF, length &= 0xFF;
  constexpr uint32_t width = 8 * sizeof(T);
  if (position >= width || length == 0) return b;
  const T ones = length >= width ? ~T{0} : (T{1} << length) - 1;
  return (b & ~(ones << position)) | (a & ones) << position;
}
// Bytes picked from b:a by the four nibbles of a selector; a nibble's top bit repeats the byte's sign instead.
uint32_t permute(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = uint64_t{b} << 32 | a;
  uint32_t found = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t nibble = selector >> (4 * i) & 0xF;
    uint32_t byte = bytes >> (8 * (nibble & 7)) & 0xFF;
    if (nibble & 8) byte = byte & 0x80 ? 0xFF : 0;
    found |= byte << (8 * i);
  }
  return found;
}
template <class T>
T copy(T a) {
  return a;
}
template <class T>
T select(T a, T b, bool first) {
  return first ? a : b;
}

enum class Is { eq, ne, lt, le, gt, ge, number, nan };

struct BrainFloat {
  uint16_t bits;
  operator float() const {
    const uint32_t wide = uint32_t{bits} << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
  }
};

// A comparison with a NaN is false; the unordered ones are true.
template <class T, Is is, bool unordered = false>
bool compare(T a, T b) {
  if constexpr (is == Is::number) return a == a && b == b;
  if constexpr (is == Is::nan) return a != a || b != b;
  if (unordered && (a != a || b != b)) return true;
  if constexpr (is == Is::eq) return a == b;
  if constexpr (is == Is::ne) return a == a && b == b && a != b;
  if constexpr (is == Is::lt) return a < b;
  if constexpr (is == Is::le) return a <= b;
  if constexpr (is == Is::gt) return a > b;
  return a >= b;
}

template <class T, bool unordered>
[[gnu::cold]] void add_comparisons(Table& table, const std::string& type) {
  const std::string suffix = (unordered ? "u." : ".") + type;
  table["setp.eq" + suffix] = each<compare<T, Is::eq, unordered>>();
  table["setp.ne" + suffix] = each<compare<T, Is::ne, unordered>>();
  table["setp.lt" + suffix] = each<compare<T, Is::lt, unordered>>();
  table["setp.le" + suffix] = each<compare<T, Is::le, unordered>>();
  table["setp.gt" + suffix] = each<compare<T, Is::gt, unordered>>();
  table["setp.ge" + suffix] = each<compare<T, Is::ge, unordered>>();
  if constexpr (unordered) {
    table["setp.num." + type] = each<compare<T, Is::number>>();
    table["setp.nan." + type] = each<compare<T, Is::nan>>();
  }
}
template <class T, class Signed>
[[gnu::cold]] void add_bits(Table& table, const std::string& width) {
  const std::string b = ".b" + width;
  table["and" + b] = each<bitwise_and<T>>();
  table["or" + b] = each<bitwise_or<T>>();
  table["xor" + b] = each<bitwise_xor<T>>();
  table["not" + b] = each<bitwise_not<T>>();
  table["shl" + b] = each<shift_left<T>>();
  table["shr.u" + width] = each<shift_right<T>>();
  table["shr.s" + width] = each<shift_right<Signed>>();
  for (const char* kind : {"b", "u", "s", "f"}) {
    table["mov." + (kind + width)] = each<copy<T>>();
    table["selp." + (kind + width)] = each<select<T>>();
  }
  table["setp.eq" + b] = each<compare<T, Is::eq>>();
  table["setp.ne" + b] = each<compare<T, Is::ne>>();
  add_comparisons<T, false>(table, "u" + width);
  add_comparisons<Signed, false>(table, "s" + width);
}

// mov between a register and a list of its parts, the lowest first.
template <class Part, class Whole>
void pack(Warp& w, const Instruction& i) {
  constexpr int parts = sizeof(Whole) / sizeof(Part);
  Whole* const d = w.values<Whole>(i.operands[0]);
  for (int lane = 0; lane < lanes; ++lane) {
    Part found[parts];
    for (int k = 0; k < parts; ++k) found[k] = w.values<Part>(i.operands[1 + k])[lane];
    if (w.exec >> lane & 1) memcpy(d + lane, found, sizeof(Whole));
  }
}
template <class Part, class Whole>
void unpack(Warp& w, const Instruction& i) {
  constexpr int parts = sizeof(Whole) / sizeof(Part);
  const Whole* const s = w.values<Whole>(i.operands[parts]);
  for (int lane = 0; lane < lanes; ++lane) {
    if (!(w.exec >> lane & 1)) continue;
    Part found[parts];
    memcpy(found, s + lane, sizeof(Whole));
    for (int k = 0; k < parts; ++k) w.values<Part>(i.operands[k])[lane] = found[k];
  }
}
template <class Part, class Whole>
[[gnu::cold]] void add_parts(Table& table, const std::string& mov) {
  constexpr int parts = sizeof(Whole) / sizeof(Part);
  const std::string p(parts, letter<Part>()), whole(1, letter<Whole>()), count = std::to_string(parts);
  table[mov + ":pack" + count] = {pack<Part, Whole>, whole + p};
  table[mov + ":unpack" + count] = {unpack<Part, Whole>, p + whole};
}

Mask both(Mask a, Mask b) {
  return a & b;
}
Mask either(Mask a, Mask b) {
  return a | b;
}
Mask one(Mask a, Mask b) {
  return a ^ b;
}
bool opposite(bool a) {
  return !a;
}

}  // namespace

[[gnu::cold]] void add_logic(Table& table) {
  add_bits<uint16_t, int16_t>(table, "16");
  add_bits<uint32_t, int32_t>(table, "32");
  add_bits<uint64_t, int64_t>(table, "64");
  add_comparisons<_Float16, false>(table, "f16");
  add_comparisons<_Float16, true>(table, "f16");
  add_comparisons<BrainFloat, false>(table, "bf16");
  add_comparisons<BrainFloat, true>(table, "bf16");
  add_comparisons<float, false>(table, "f32");
  add_comparisons<float, true>(table, "f32");
  add_comparisons<double, false>(table, "f64");
  add_comparisons<double, true>(table, "f64");
  add_parts<uint16_t, uint32_t>(table, "mov.b32");
  add_parts<uint32_t, uint64_t>(table, "mov.b64");
  add_parts<uint16_t, uint64_t>(table, "mov.b64");
  table["and.pred"] = {masks<both>, "ppp"};
  table["or.pred"] = {masks<either>, "ppp"};
  table["xor.pred"] = {masks<one>, "ppp"};
  table["not.pred"] = each<opposite>();
  table["mov.pred"] = each<copy<bool>>();
  table["clz.b32"] = each<leading_zeros>();
  table["clz.b64"] = each<leading_zeros_64>();
  table["bfe.u32"] = each<extract<uint32_t>>();
  table["bfe.s32"] = each<extract<int32_t>>();
  table["bfi.b32"] = each<insert<uint32_t>>();
  table["bfi.b64"] = each<insert<uint64_t>>();
  table["prmt.b32"] = each<permute>();
}

}  // namespace ptx
