// How the matrices of a head lie as rows of inputs and states are multiplied by them.
#pragma once

#include <type_traits>

#include "common/register_tile.h"
#ifdef __AVX512BF16__
#  include "common/pairs.h"
#endif

namespace sequence_kernels {
namespace {

// A matrix is of numbers of the rows' own type, row behind row.
template <typename Row>
struct Operand {
  using Factor = Row;
  static constexpr int64_t terms = 1;
};

// tile += a b over `depth` terms, for the vectors from `first` to before `last`, where that is given.
template <int first = 0, int last = 0, typename Real, int rows, int vectors>
inline void add(RegisterTile<Real, rows, vectors>& tile, int64_t depth, const Real* a, int64_t a_row,
                const Real* b, int64_t b_row) {
  tile.template add<first, last ? last : vectors>(depth, a, a_row, 1, b, b_row);
}
// The same with a transposed: of `depth` rows of both.
template <int first = 0, typename Real, int rows, int vectors>
inline void add_outer(RegisterTile<Real, rows, vectors>& tile, int64_t depth, const Real* a, int64_t a_row,
                      const Real* b, int64_t b_row) {
  tile.template add<first>(depth, a, 1, a_row, b, b_row);
}
template <typename Real, int rows, int vectors>
inline void put(const RegisterTile<Real, rows, vectors>& tile, Real* c, int64_t c_row) {
  tile.put(c, c_row);
}

#ifdef __AVX512BF16__
template <>
struct Operand<Bfloat16> {
  using Factor = Pair;
  static constexpr int64_t terms = 2;
};
#endif

}  // namespace
}  // namespace sequence_kernels
