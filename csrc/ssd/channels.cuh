// The two products by which a chunk makes a tile of channels, of outputs or of gradients of inputs.
#pragma once
#include "ssd/chunk.cuh"

namespace ssd {

// Over all states: the sums of an element's row of `left` with the rows of `states`, (t, channel), to `sum`; and with
// those of `right`, (t, s), weight(t, s, product), which stays in shared memory.
template <class Math, class Block, class Real, class Weight>
__device__ __forceinline__ void by_states(const Block& block, const Sequence& left, const Sequence& right,
                                          const void* states, Real (&sum)[Block::groups][4],
                                          const Weight& weight) {
  constexpr int32_t terms = Block::terms;
  const int64_t first = block.tile * Block::columns;
  Real *const rows = block.tiles, *const others = rows + chunk * terms,
              *const matrix = others + chunk * terms;
  Real products[chunk / 8][4] = {};
#pragma unroll 1
  for (int32_t from = 0; from < block.p.size; from += Block::step) {
    const auto staged = [&](const Sequence& of, Real* to) {
      Block::template stage<chunk, Block::step>(
          to, terms, of.data, block.element(),
          [&](int32_t t, int32_t k) { return block.in_group(of, t, from + k); });
    };
    staged(left, rows), staged(right, others);
    Block::template stage<Block::columns, Block::step>(
        matrix, terms, states, own_element<Real>,
        [&](int32_t i, int32_t k) { return block.in_states(first + i, from + k); });
    __syncthreads();
    const auto own = block.own(rows, terms);
    Math::multiply_add(products, own, DepthContiguous<Real>{others, terms}, Block::step);
    Math::multiply_add(sum, own, DepthContiguous<Real>{matrix, terms}, Block::step);
    __syncthreads();
  }
  each(products, [&](int32_t t, int32_t s, Real product, int32_t, int32_t) {
    block.tiles[t * Block::of_weights + s] = weight(t, s, product);
  });
}

// Adds what these weights make of a sequence's elements.
template <class Math, class Block, class Real>
__device__ __forceinline__ void by_elements(const Block& block, const Sequence& of,
                                            Real (&sum)[Block::groups][4]) {
  const int64_t first = block.tile * Block::columns;
  Real* const inputs = block.tiles + chunk * Block::of_weights;
#pragma unroll 1
  for (int32_t from = 0; from < chunk; from += Block::step) {
    Block::template stage<Block::step, Block::columns>(
        inputs, Block::of_columns, of.data, block.element(),
        [&](int32_t k, int32_t i) { return block.in_head(of, from + k, first + i); });
    __syncthreads();
    Math::multiply_add(sum, block.own(block.tiles + from, Block::of_weights),
                       DepthStrided<Real>{inputs, Block::of_columns}, Block::step);
    __syncthreads();
  }
}

}  // namespace ssd
