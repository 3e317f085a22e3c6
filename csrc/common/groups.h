// Loops in groups whose size is a constant, so that what belongs to a group stays in registers.
#pragma once

#include <cstdint>

namespace sequence_kernels {
namespace {

template <int value>
struct Count {
  static constexpr int count = value;
};

// Calls function(first, size) for groups of `most` of the total, and for what is left; size.count is a constant.
template <int most, typename Function>
inline void in_groups(int64_t total, const Function& function, int64_t first = 0) {
  for (; first + most <= total; first += most) function(first, Count<most>());
  if constexpr (most > 1)
    if (first < total) in_groups<most - 1>(total, function, first);
}

}  // namespace
}  // namespace sequence_kernels
