#include "common/pointwise.h"
#include "selective_step/recurrence.h"
#include "ssm_step/recurrence.h"
#include "step_program/step_program.h"

namespace sequence_kernels {
namespace {

// Up to kRowsAtOnce sequences on their way through the program.
template <typename Real>
struct Rows {
  int64_t count, width;  // sequences; elements from one to the next
  Real *x, *spare;       // the channels, and room for the next ones
  Real* kept;            // a stack
  Real* pulls;
  const int64_t* state_indices;

  void swap() {
    Real* const other = spare;
    spare = x, x = other;
  }
};

constexpr int64_t padded(int64_t size) {
  return round_up(size, kPanel);
}

// Function of vectors over `size` channels, and of what is left of a vector after them: rows are padded.
template <typename Real, typename Function>
inline void over_channels(const Rows<Real>& rows, int64_t size, const Function& function) {
  for (int64_t row = 0; row < rows.count; ++row)
    for (int64_t i = 0; i < size; i += kLanes<Real>) function(row * rows.width + i, i);
}

// Call use with the activation as a function of vectors.
template <typename Real, typename Use>
inline void with_activation(Activation kind, const Use& use) {
  switch (kind) {
    case Activation::gelu:
      return use([](Vector<Real> v) { return gelu<Real>(v); });
    case Activation::relu:
      return use([](Vector<Real> v) { return v < 0 ? Vector<Real>{} : v; });
    case Activation::tanh:
      return use([](Vector<Real> v) { return hyperbolic_tangent(v); });
    case Activation::silu:
      return use([](Vector<Real> v) { return v * logistic(v); });
    case Activation::sigmoid:
      return use([](Vector<Real> v) { return logistic(v); });
  }
}

// Of `size` channels of each row, from and to places in the first.
template <typename Real>
[[gnu::noinline]] void activate(const Rows<Real>& rows, const Real* from, Real* to, int64_t size,
                                Activation kind) {
  with_activation<Real>(kind, [&](auto function) {
    over_channels(rows, size, [&](int64_t at, int64_t) { store<Real>(to + at, function(load(from + at))); });
  });
}

template <typename Real>
inline Real total(const Real* v, int64_t size) {
  Vector<Real> sums = {};
  int64_t i = 0;
  for (; i + kLanes<Real> <= size; i += kLanes<Real>) sums += load(v + i);
  Real result = sum<Real>(sums);
  for (; i < size; ++i) result += v[i];
  return result;
}

template <typename Real>
inline void normalise(const Rows<Real>& rows, int64_t size, const Real* weights) {
  const Real eps = weights[0], least = weights[1], shift = weights[2];
  const Real *gamma = weights + kPanel, *beta = gamma + padded(size);
  for (int64_t row = 0; row < rows.count; ++row) {
    Real *x = rows.x + row * rows.width, *squares = rows.spare + row * rows.width;
    const Real mean = total(x, size) / size;
    for (int64_t i = 0; i < size; i += kLanes<Real>) {
      const Vector<Real> centred = load(x + i) - mean;
      store<Real>(x + i, centred);
      store<Real>(squares + i, centred * centred);
    }
    const Real variance = total(squares, size) / size;
    const Real scale = 1 / Real(__builtin_sqrt((variance < least ? least : variance) + eps));
    for (int64_t i = 0; i < size; i += kLanes<Real>)
      store<Real>(x + i, (load(x + i) + shift) * scale * load(gamma + i) + load(beta + i));
  }
}

// `rows` sequences times `vectors` vectors of outputs, each summed in the order of the inputs.
template <int rows, int vectors, typename Real>
inline void linear_tile(int64_t inputs, const Real* x, int64_t width, const Real* panel, const Real* bias,
                        Real* y) {
  Vector<Real> sums[rows][vectors];
  for (int j = 0; j < vectors; ++j)
    for (int i = 0; i < rows; ++i) sums[i][j] = load(bias + j * kLanes<Real>);
  for (int64_t k = 0; k < inputs; ++k) {
    Vector<Real> weights[vectors];
    for (int j = 0; j < vectors; ++j) weights[j] = load(panel + k * kPanel + j * kLanes<Real>);
    for (int i = 0; i < rows; ++i)
      for (int j = 0; j < vectors; ++j) sums[i][j] += weights[j] * x[i * width + k];
  }
  for (int i = 0; i < rows; ++i)
    for (int j = 0; j < vectors; ++j) store<Real>(y + i * width + j * kLanes<Real>, sums[i][j]);
}

template <int rows, typename Real>
inline void linear_tiles(const Rows<Real>& at, int64_t inputs, int64_t outputs, const Real* weights,
                         const Real* from, Real* to) {
  constexpr int registers = kVectorRegisters / 2 / rows, most = kPanel / kLanes<Real>;
  constexpr int vectors = registers < 1 ? 1 : registers < most ? registers : most;
  const Real* panels = weights + padded(outputs);
  for (int64_t panel = 0; panel < outputs; panel += kPanel)
    for (int64_t row = 0; row < at.count; row += rows)
      for (int64_t o = panel; o < outputs && o < panel + kPanel; o += vectors * kLanes<Real>)
        linear_tile<rows, vectors>(inputs, from + row * at.width, at.width,
                                   panels + panel * inputs + (o - panel), weights + o,
                                   to + row * at.width + o);
}

// There is room for whole tiles of sequences, whatever it holds. Returns how many channels there are then.
template <typename Real>
inline int64_t linear(Rows<Real>& at, const int64_t* size, int64_t channels, const Real* weights) {
  const auto tiles = at.count == 1   ? linear_tiles<1, Real>
                     : at.count == 2 ? linear_tiles<2, Real>
                     : at.count <= 4 ? linear_tiles<4, Real>
                                     : linear_tiles<kTileRows, Real>;
  const bool behind = size[3] != 0;
  tiles(at, size[0], size[1], weights, at.x + size[2], behind ? at.x + channels : at.spare);
  if (behind) return channels + size[1];
  at.swap();
  return size[1];
}

template <typename Real>
inline void gate(Rows<Real>& rows, int64_t size) {
  over_channels(rows, size, [&](int64_t at, int64_t) {
    store<Real>(rows.spare + at, load(rows.x + at) * logistic(load(rows.x + at + size)));
  });
  rows.swap();
}

template <typename Real>
inline void recur(Rows<Real>& rows, const Instruction& instruction, const Real* weights, Real* state,
                  int64_t state_size) {
  const int64_t heads = instruction.size[0], pairs = instruction.size[1];
  const int64_t channels = instruction.size[2], rank = instruction.size[3], poles = heads * pairs * 2;
  Recurrence<Real> system{};
  system.heads = heads, system.pairs = pairs, system.channels = channels, system.rank = rank;
  system.a_minus_one = weights, system.b = weights + padded(poles), system.c = system.b + padded(poles);
  system.d = system.c + padded(channels * poles), system.p = system.d + padded(channels * heads);
  system.q = system.p + padded(rank * poles);
  constexpr int64_t at_once = 16;  // heads whose parameters stay in the first level of cache
  for (int64_t first = 0; first < heads; first += at_once)
    for (int64_t row = 0; row < rows.count; ++row) {
      const int64_t* slot = rows.state_indices + row;
      Real* x = state + slot[0] * state_size;
      const int64_t ahead = row + 1 < rows.count ? (slot[1] - slot[0]) * state_size : 0;
      step_heads(system, first, first + at_once < heads ? first + at_once : heads, x, x,
                 rows.x + row * rows.width, rows.spare + row * rows.width, rows.pulls, ahead);
    }
  rows.swap();
}

template <typename Real>
inline void convolve(Rows<Real>& rows, const Instruction& instruction, const Real* weights, Real* state,
                     int64_t state_size) {
  const int64_t channels = instruction.size[0], taps = instruction.size[1], begin = instruction.size[2];
  const Real* const last = weights + padded(channels) + (taps - 1) * channels;
  const auto run = [&](auto function) {
    for (int64_t row = 0; row < rows.count; ++row) {
      Real* const x = rows.x + row * rows.width + begin;
      Real* const past = state + rows.state_indices[row] * state_size;
      for (int64_t i = 0; i < channels; i += kLanes<Real>) {
        const int64_t left = channels - i;
        const Vector<Real> now = load_up_to(x + i, left);
        Vector<Real> y = load_up_to(weights + i, left) + load_up_to(last + i, left) * now;
        for (int64_t k = 0; k < taps - 1; ++k) {
          Real* const at = past + k * channels + i;
          y += load_up_to(last + (k + 1 - taps) * channels + i, left) * load_up_to(at, left);
          store_up_to(at, k + 2 < taps ? load_up_to(at + channels, left) : now, left);
        }
        store_up_to<Real>(x + i, function(y), left);
      }
    }
  };
  if (instruction.size[3] == 0) return run([](Vector<Real> v) { return v; });
  with_activation<Real>(static_cast<Activation>(instruction.size[3] - 1), run);
}

template <typename Real>
inline void select(Rows<Real>& rows, const Instruction& instruction, const Real* weights, Real* state,
                   int64_t state_size) {
  const auto at = named<Selective>(instruction);
  const int64_t entries = at.heads * (at.scalar ? 1 : at.size);
  SelectiveModel<Real> model{};
  model.heads = at.heads, model.width = at.width, model.size = at.size, model.groups = at.groups;
  model.scalar = at.scalar != 0, model.softplus = at.softplus != 0,
  model.skip_of_heads = at.skip_of_heads != 0;
  model.least = weights[0], model.most = weights[1];
  model.a = weights + kPanel, model.d = model.a + padded(entries);
  model.bias = model.d + padded(at.heads * (model.skip_of_heads ? 1 : at.width));
  for (int64_t row = 0; row < rows.count; ++row) {
    Real* const x = rows.x + row * rows.width;
    Real* const h = state + rows.state_indices[row] * state_size;
    const SelectiveInputs<Real> inputs{x + at.u, at.z < 0 ? nullptr : x + at.z, x + at.delta, x + at.b,
                                       x + at.c};
    step_selective(model, 0, at.heads, inputs, h, h, x + at.u);
  }
}

// Of each group: x (silu(z) before) / sqrt(mean of squares + eps) gamma (silu(z) after).
template <typename Real>
inline void normalise_by_groups(Rows<Real>& rows, const Instruction& instruction, const Real* weights) {
  const auto at = named<RootMeanSquare>(instruction);
  const Real* const gamma = weights + kPanel;
  const int64_t size = at.groups > 0 ? at.channels / at.groups : 0;
  for (int64_t row = 0; row < rows.count; ++row) {
    Real* const channels = rows.x + row * rows.width;
    const auto gate = [&](int64_t i, int64_t left) {
      const Vector<Real> z = load_up_to(channels + at.z + i, left);
      return z * logistic(z);
    };
    for (int64_t begin = 0; begin < at.channels; begin += size) {
      Vector<Real> squares = {};
      for (int64_t i = begin; i < begin + size; i += kLanes<Real>) {
        const int64_t left = begin + size - i;
        Vector<Real> v = load_up_to(channels + at.begin + i, left);
        if (at.z >= 0 && at.gate_first) v *= gate(i, left);
        squares += v * v;
        store_up_to<Real>(channels + at.begin + i, v, left);
      }
      const Real scale = 1 / Real(__builtin_sqrt(sum<Real>(squares) / Real(size) + weights[0]));
      for (int64_t i = begin; i < begin + size; i += kLanes<Real>) {
        const int64_t left = begin + size - i;
        Vector<Real> v = load_up_to(channels + at.begin + i, left) * scale * load_up_to(gamma + i, left);
        if (at.z >= 0 && !at.gate_first) v *= gate(i, left);
        store_up_to<Real>(channels + at.begin + i, v, left);
      }
    }
  }
}

// With what is kept of each row. Returns how many channels there are then.
template <typename Real>
inline int64_t with_kept(const Rows<Real>& rows, const Instruction& instruction, int64_t channels,
                         const Real* kept, const Real* weights) {
  const bool takes = instruction.code == Code::take, product = instruction.code == Code::multiply;
  if (takes || instruction.code == Code::append) {
    const int64_t begin = takes ? 0 : channels, size = instruction.size[1];
    for (int64_t row = 0; row < rows.count; ++row)
      std::memcpy(rows.x + row * rows.width + begin, kept + row * rows.width,
                  static_cast<size_t>(size) * sizeof(Real));
    return begin + size;
  }
  over_channels(rows, channels, [&](int64_t at, int64_t) {
    const Vector<Real> other = load(kept + at), x = load(rows.x + at);
    store<Real>(rows.x + at, product ? other * x : other * weights[0] + x * weights[1]);
  });
  return channels;
}

// What the state of each row holds comes behind its channels.
template <typename Real>
inline void recall(const Rows<Real>& rows, int64_t channels, int64_t size, const Real* state,
                   int64_t state_size) {
  for (int64_t row = 0; row < rows.count; ++row)
    std::memcpy(rows.x + row * rows.width + channels, state + rows.state_indices[row] * state_size,
                static_cast<size_t>(size) * sizeof(Real));
}

template <typename Real>
inline void turn_modes(const Rows<Real>& rows, int64_t size, const Real* a_minus_one, Real* state,
                       int64_t state_size) {
  for (int64_t row = 0; row < rows.count; ++row) {
    Real *const real = rows.x + row * rows.width, *const imag = real + size;
    Real* const x = state + rows.state_indices[row] * state_size;
    for (int64_t i = 0; i < size; ++i) {
      const Real re = x[2 * i], im = x[2 * i + 1], a_re = a_minus_one[2 * i], a_im = a_minus_one[2 * i + 1];
      x[2 * i] = real[i] = re + (a_re * re - a_im * im + real[i]);
      x[2 * i + 1] = imag[i] = im + (a_re * im + a_im * re + imag[i]);
    }
  }
}

template <typename Real>
inline void gru(Rows<Real>& rows, const int64_t* sizes, Real* state, int64_t state_size) {
  const int64_t size = sizes[0];
  activate(rows, rows.x + sizes[1], rows.spare, 2 * size, Activation::sigmoid);
  over_channels(rows, size, [&](int64_t at, int64_t) {
    const Real* const fresh = rows.x + at + sizes[1] + 2 * size;
    store<Real>(rows.spare + at + 2 * size, load(fresh) + load(rows.spare + at) * load(fresh + size));
  });
  activate(rows, rows.spare + 2 * size, rows.x, size, Activation::tanh);
  for (int64_t row = 0; row < rows.count; ++row) {
    Real *const h = state + rows.state_indices[row] * state_size, *const x = rows.x + row * rows.width;
    const Real* const z = rows.spare + row * rows.width + size;
    for (int64_t i = 0; i < size; i += kLanes<Real>) {
      const Vector<Real> fresh = load(x + i),
                         next = fresh + load(z + i) * (load_up_to(h + i, size - i) - fresh);
      store_up_to<Real>(h + i, next, size - i);
      store<Real>(x + i, next);
    }
  }
}

template <typename Real>
inline void lstm(Rows<Real>& rows, const int64_t* sizes, Real* state, int64_t state_size) {
  const int64_t size = sizes[0];
  activate(rows, rows.x + sizes[1], rows.spare, 3 * size, Activation::sigmoid);
  activate(rows, rows.x + sizes[1] + 3 * size, rows.spare + 3 * size, size, Activation::tanh);
  for (int64_t row = 0; row < rows.count; ++row) {
    Real* const cell = state + rows.state_indices[row] * state_size + size;
    const Real* const gates = rows.spare + row * rows.width;
    for (int64_t i = 0; i < size; i += kLanes<Real>) {
      const Vector<Real> next = load(gates + size + i) * load_up_to(cell + i, size - i) +
                                load(gates + i) * load(gates + 3 * size + i);
      store_up_to<Real>(cell + i, next, size - i);
      store<Real>(rows.x + row * rows.width + i, next);
    }
  }
  activate(rows, rows.x, rows.x, size, Activation::tanh);
  for (int64_t row = 0; row < rows.count; ++row) {
    Real *const h = state + rows.state_indices[row] * state_size, *const x = rows.x + row * rows.width;
    for (int64_t i = 0; i < size; i += kLanes<Real>) {
      const Vector<Real> next = load(rows.spare + row * rows.width + 2 * size + i) * load(x + i);
      store_up_to<Real>(h + i, next, size - i);
      store<Real>(x + i, next);
    }
  }
}

// Columns of two vectors that are `distance` apart change places: a step of a transposition.
template <int distance, typename Real, int... lane>
inline void exchange(Vector<Real>& low, Vector<Real>& high, std::integer_sequence<int, lane...>) {
  constexpr int n = kLanes<Real>;
  const Vector<Real> first =
      __builtin_shufflevector(low, high, (lane & distance ? n + lane - distance : lane)...);
  high = __builtin_shufflevector(low, high, (lane & distance ? n + lane : lane + distance)...);
  low = first;
}

template <int distance, typename Real>
inline void transpose(Vector<Real> (&rows)[kLanes<Real>]) {
  if constexpr (distance > 0) {
    for (int i = 0; i < kLanes<Real>; ++i)
      if (!(i & distance)) exchange<distance, Real>(rows[i], rows[i + distance], Lanes<Real>());
    transpose<distance / 2, Real>(rows);
  }
}

}  // namespace

template <typename Real, Isa isa>
void pack_panels(const Real* weights, int64_t outputs, int64_t inputs, Real* panels) {
  constexpr int64_t n = kLanes<Real>;
  for (int64_t o = 0; o < padded(outputs); o += n) {
    Real* const to = panels + o / kPanel * kPanel * inputs + o % kPanel;
    int64_t k = 0;
    for (; o + n <= outputs && k + n <= inputs; k += n) {
      Vector<Real> rows[n];
      for (int64_t i = 0; i < n; ++i) rows[i] = load(weights + (o + i) * inputs + k);
      transpose<n / 2, Real>(rows);
      for (int64_t i = 0; i < n; ++i) store(to + (k + i) * kPanel, rows[i]);
    }
    for (; k < inputs; ++k)
      for (int64_t i = 0; i < n; ++i)
        to[k * kPanel + i] = o + i < outputs ? weights[(o + i) * inputs + k] : 0;
  }
}

template <typename Real, Isa isa>
void step_program(const ProgramArguments<Real>& arguments, int64_t begin, int64_t end, Real* scratch) {
  const int64_t width = arguments.width, together = rows_at_once(arguments), block = together * width;
  for (int64_t i = 0; i < program_scratch(arguments); ++i) scratch[i] = 0;
  int64_t next = begin;
  while (next < end) {
    int64_t which[kRowsAtOnce], state_indices[kRowsAtOnce];
    Rows<Real> rows{0, width, scratch, scratch + block, scratch + 2 * block, nullptr, state_indices};
    rows.pulls = rows.kept + arguments.levels * block;
    for (; next < end && rows.count < together; ++next) {
      const int64_t slot = arguments.state_indices ? arguments.state_indices[next] : next;
      Real* y = arguments.y + next * arguments.output;
      if (slot < 0) {
        for (int64_t i = 0; i < arguments.output; ++i) y[i] = 0;
        continue;
      }
      const Real* x = arguments.x + next * arguments.input;
      for (int64_t i = 0; i < arguments.input; ++i) rows.x[rows.count * width + i] = x[i];
      which[rows.count] = next, state_indices[rows.count++] = slot;
    }
    int64_t channels = arguments.input;
    for (int64_t i = 0; i < arguments.instructions && rows.count > 0; ++i) {
      const Instruction& instruction = arguments.program[i];
      const int64_t* size = instruction.size;
      const Real* weights = arguments.weights + instruction.weights;
      switch (instruction.code) {
        case Code::save:
          over_channels(rows, channels,
                        [&](int64_t at, int64_t) { store(rows.kept + at, load(rows.x + at)); });
          rows.kept += block;
          break;
        case Code::residual:
          rows.kept -= block;
          over_channels(rows, channels, [&](int64_t at, int64_t) {
            store<Real>(rows.x + at, load(rows.kept + at) * weights[0] + load(rows.x + at) * weights[1]);
          });
          break;
        case Code::norm:
          normalise(rows, channels, weights);
          break;
        case Code::linear:
          channels = linear(rows, size, channels, weights);
          break;
        case Code::glu:
          gate(rows, size[0]);
          channels = size[0];
          break;
        case Code::activation:
          activate(rows, rows.x, rows.x, channels, static_cast<Activation>(size[0]));
          break;
        case Code::recurrence:
          recur(rows, instruction, weights, arguments.state + instruction.state, arguments.state_size);
          channels = size[0] * size[2];
          break;
        case Code::convolution:
          convolve(rows, instruction, weights, arguments.state + instruction.state, arguments.state_size);
          break;
        case Code::selective:
          select(rows, instruction, weights, arguments.state + instruction.state, arguments.state_size);
          break;
        case Code::rms_norm:
          normalise_by_groups(rows, instruction, weights);
          break;
        case Code::keep:
          over_channels(rows, size[0],
                        [&](int64_t at, int64_t) { store(rows.spare + at, load(rows.x + at + size[1])); });
          rows.swap();
          channels = size[0];
          break;
        case Code::drop:
          rows.kept -= block;
          break;
        case Code::put:
          over_channels(rows, channels, [&](int64_t at, int64_t) {
            store(rows.kept - (size[0] + 1) * block + at, load(rows.x + at));
          });
          break;
        case Code::affine:
          over_channels(rows, channels, [&](int64_t at, int64_t i) {
            const Real* const shift = weights + padded(channels);
            store<Real>(rows.x + at, load(rows.x + at) * load(weights + i) + load(shift + i));
          });
          break;
        case Code::take:
        case Code::append:
        case Code::combine:
        case Code::multiply:
          channels = with_kept(rows, instruction, channels, rows.kept - (size[0] + 1) * block, weights);
          break;
        case Code::recall:
          recall(rows, channels, size[0], arguments.state + instruction.state, arguments.state_size);
          channels += size[0];
          break;
        case Code::modes:
          turn_modes(rows, size[0], weights, arguments.state + instruction.state, arguments.state_size);
          break;
        case Code::gru:
        case Code::lstm:
          (instruction.code == Code::gru ? gru<Real> : lstm<Real>)(rows, size,
                                                                   arguments.state + instruction.state,
                                                                   arguments.state_size);
          channels = size[0];
          break;
      }
    }
    for (int64_t row = 0; row < rows.count; ++row)
      for (int64_t i = 0; i < channels; ++i)
        arguments.y[which[row] * arguments.output + i] = rows.x[row * width + i];
  }
}

template void pack_panels<float, kIsa>(const float*, int64_t, int64_t, float*);
template void pack_panels<double, kIsa>(const double*, int64_t, int64_t, double*);
template void step_program<float, kIsa>(const ProgramArguments<float>&, int64_t, int64_t, float*);
template void step_program<double, kIsa>(const ProgramArguments<double>&, int64_t, int64_t, double*);

}  // namespace sequence_kernels
