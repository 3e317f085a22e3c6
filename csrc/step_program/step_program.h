// One time step of a whole stack of layers on the CPU: a list of instructions over the channels of each
// sequence.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/isa.h"

namespace sequence_kernels {

// Arrays in the weights are padded to multiples of this many elements; a linear map's panels are as wide.
constexpr int64_t kPanel = 64;
constexpr int64_t kRowsAtOnce = 16, kTileRows = 8;

// These numbers, and what they mean, are those of saved files: add behind the last, or give csrc/stream/file.h
// another version.
enum class Code : int64_t {
  save,      // keep the channels for a residual, on a stack
  residual,  // alpha * the kept ones + beta * the channels; weights: alpha, beta
  norm,      // over the channels; weights: [eps, least, shift], gamma, beta
  linear,  // channels [size2, size2 + size0) to size1; size3: instead of all channels (0) or behind them (1)
           // weights: bias, panels (ceil(size1 / kPanel), size0, kPanel)
  glu,     // 2 size0 to size0 channels
  activation,   // size0: an Activation
  recurrence,   // size0 heads, size1 pairs, size2 channels, rank size3; weights: a - 1, b, c, d, p, q
  convolution,  // of size0 channels from size2 on, by size1 taps; size3: 1 + an Activation, or 0
                // weights: bias, taps (size1, size0); state: the last inputs (size1 - 1, size0)
  selective,    // a Selective; weights: [least, most], a, d, bias; state (heads, width, size)
  rms_norm,     // a RootMeanSquare; weights: [eps], gamma
  keep,         // size0 channels from size1 on, and no other
  // The others work on what was kept, size0 below what was kept last.
  drop,      // the last kept is forgotten
  put,       // keep the channels there, instead of what is
  affine,    // not on that: x * scale + shift of each channel; weights: scale, shift
  take,      // the size1 channels kept there, and no other
  append,    // the size1 channels kept there come behind those there are
  combine,   // alpha * the kept ones + beta * the channels; weights: alpha, beta
  multiply,  // the kept ones times the channels
  // On the state again.
  recall,  // size0 numbers of the state come behind the channels
  modes,   // x = (1 + (a - 1)) x + u of size0 complex x; channels: u, then x: real parts, imaginary parts
           // weights: a - 1, in pairs; state: x, in pairs
  gru,  // size0 numbers h = n + z (h - n), z = sigmoid(z'), n = tanh(n' + sigmoid(r') n''), from the channels
        // r', z', n', n'' from size1 on; the channels are then h; state: h
  lstm,  // size0 numbers c = sigmoid(f) c + sigmoid(i) tanh(g), h = sigmoid(o) tanh(c), from the channels
         // i, f, o, g from size1 on; the channels are then h; state: h, c
};
enum class Activation : int64_t { gelu, relu, tanh, silu, sigmoid };

// A row of the program. Offsets are in elements: of the weights, and of the state within that of a sequence.
struct Instruction {
  Code code;
  int64_t size[12];
  int64_t weights, state;
};

// The sizes of two kinds. The outputs are where u was, and the channels; `z` is -1 where there is no gate.
struct Selective {
  int64_t heads, width, size, groups;
  int64_t u, delta, b, c, z;                // the channel where each begins
  int64_t scalar, softplus, skip_of_heads;  // 0 or 1, as in SelectiveModel
};
struct RootMeanSquare {
  int64_t channels, groups;  // the norm is over each group
  int64_t begin, z;          // the channel where each begins
  int64_t gate_first;        // whether silu(z) comes before the norm
};

// The sizes of an instruction by their names.
template <typename Sizes>
Sizes named(const Instruction& instruction) {
  static_assert(sizeof(Sizes) <= sizeof(instruction.size));
  Sizes sizes;
  std::memcpy(&sizes, instruction.size, sizeof(sizes));
  return sizes;
}

template <typename Real>
struct ProgramArguments {
  int64_t instructions, rows;
  int64_t input, output;         // channels
  int64_t width, levels;         // most channels, padded; most kept for residuals at a time
  int64_t state_size, max_rank;  // of a sequence, of any recurrence
  const Instruction* program;
  const Real* weights;
  Real* state;                   // (slots, state_size)
  const int64_t* state_indices;  // (rows): where each row's state is, negative: nowhere; null: in row order
  const Real* x;                 // (rows, input)
  Real* y;                       // (rows, output)
};

// Sequences that go through the program together, and room for them in whole tiles.
template <typename Real>
int64_t rows_at_once(const ProgramArguments<Real>& arguments) {
  const int64_t rows = arguments.rows < kRowsAtOnce ? arguments.rows : kRowsAtOnce;
  return rows > 1 ? (rows + kTileRows - 1) / kTileRows * kTileRows : rows;
}
template <typename Real>
int64_t program_scratch(const ProgramArguments<Real>& arguments) {
  return (arguments.levels + 2) * rows_at_once(arguments) * arguments.width + arguments.max_rank;
}

// A linear map's weights (outputs, inputs) as panels: (ceil(outputs / kPanel), inputs, kPanel), with zeros
// after the last output.
template <typename Real, Isa isa>
void pack_panels(const Real* weights, int64_t outputs, int64_t inputs, Real* panels);

// Rows [begin, end); scratch for program_scratch elements.
template <typename Real, Isa isa>
void step_program(const ProgramArguments<Real>& arguments, int64_t begin, int64_t end, Real* scratch);

}  // namespace sequence_kernels
