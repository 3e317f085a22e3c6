// Loops in groups whose size is a constant, so that what belongs to a group stays in registers.
#pragma once

#include <cstdint>

namespace sequence_kernels {
namespace {

template <int value>
struct Count {
  static constexpr int count = value;
};

// Calls function(first, size) for groups of `most` <= 4 of the total, and for what is left; size.count is a
// constant.
template <int most, typename Function>
inline void in_groups(int64_t total, const Function& function) {
  static_assert(most <= 4);
  int64_t first = 0;
  for (; first + most <= total; first += most) function(first, Count<most>());
  switch (total - first) {
    case 3:
      return function(first, Count<3>());
    case 2:
      return function(first, Count<2>());
    case 1:
      return function(first, Count<1>());
  }
}

}  // namespace
}  // namespace sequence_kernels
