// Activations whose gradient torch's own kernels take long for, on the CPU: what the kernels in cpu.cpp take.
//
// With Phi and phi the distribution function and the density of the normal distribution, and sigma the logistic function:
//
//   gelu:  y = x Phi(x),                        dx = g (Phi(x) + x phi(x))
//   glu:   y = a sigma(b), with rows [a b],     da = g sigma(b),  db = g a sigma(b) (1 - sigma(b))
//
// of x + bias, where there is one, a number a channel of each head, rows being of one head after the other; its gradient
// is the sum of dx over the rows of its head, which each work item leaves of its own.
#pragma once

#include <cstdint>

#include "common/element.h"
#include "common/isa.h"

namespace sequence_kernels {

constexpr int64_t kActivationBlock = 8192;  // elements of y that a work item has at least, but for the last
constexpr int64_t kActivationSums = 4 * 8192;  // where it leaves sums

// `rows` of `channels` elements of y, one behind the other; x has as many channels, or twice as many of a gate.
struct ActivationArguments {
  int64_t rows, heads, channels;
  bool gate;
  Element element;
  const void* x;
  const void* bias;  // (heads, channels of x), Real; or null
  const void* g;     // backward only
  void* result;      // y, or the gradient of x
  void* parts;       // backward only, of a bias: (items, heads, channels of x), Real

  int64_t width() const { return gate ? 2 * channels : channels; }
  int64_t rows_of_item() const {
    return ((bias ? kActivationSums : kActivationBlock) + channels - 1) / channels;
  }
  int64_t items() const { return rows > 0 ? (rows + rows_of_item() - 1) / rows_of_item() : 0; }
};

// Work items [begin, end).
template <typename Real, Isa isa>
void activation(const ActivationArguments& arguments, int64_t begin, int64_t end);
template <typename Real, Isa isa>
void activation_backward(const ActivationArguments& arguments, int64_t begin, int64_t end);

}  // namespace sequence_kernels
