// Which programs may run: every instruction against the memory that a run is given. Without torch.
#pragma once

#include "step_program/step_program.h"

namespace sequence_kernels {

constexpr int64_t padded(int64_t size) {
  return (size + kPanel - 1) / kPanel * kPanel;
}

// Goes through a program as a run does, and notes what a run must know of it.
class Examination {
 public:
  // Of programs for rows of `input` channels that have `weights` numbers, and `state` ones for each row.
  Examination(int64_t input, int64_t weights, int64_t state)
      : channels(input), widest(input), weights_(weights), state_(state) {}

  // Null, or what is wrong with the program.
  const char* fault(const Instruction* program, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t size : program[i].size)
        if (size < -1 || size >= (1 << 30)) return "a program has a size out of range";
      if (!reads(program[i], 0))
        return "a program reads beyond its weights";  // of an instruction without, too
      if (const char* found = next(program[i])) return found;
      widest = channels > widest ? channels : widest;
    }
    return nullptr;
  }

  int64_t channels, widest;  // after the last instruction; at most
  int64_t levels = 0, max_rank = 0,
          carried = 0;  // kept for residuals; of recurrences; numbers of the state in use

 private:
  static constexpr int64_t kLevels = 16;
  static constexpr int64_t kMostRank = 1 << 16;  // without poles no weights would bound it
  static constexpr int64_t kActivations = static_cast<int64_t>(Activation::sigmoid);

  bool reads(const Instruction& at, int64_t numbers) const {
    return at.weights >= 0 && numbers <= weights_ - at.weights;
  }
  bool holds(const Instruction& at, int64_t numbers) {
    if (at.state < 0 || numbers > state_ - at.state) return false;
    carried = at.state + numbers > carried ? at.state + numbers : carried;
    return true;
  }
  bool within(int64_t begin, int64_t count) const {
    return begin >= 0 && count >= 0 && begin + count <= channels;
  }

  const char* next(const Instruction& at) {
    constexpr const char* beyond = "a program reads beyond its weights";
    const int64_t* size = at.size;
    switch (at.code) {
      case Code::save:
        if (level_ >= kLevels) return "a program nests residuals too deeply";
        kept_[level_++] = channels;
        levels = level_ > levels ? level_ : levels;
        return nullptr;
      case Code::residual:
        if (level_ == 0 || kept_[--level_] != channels) return "a program's residual does not fit";
        return reads(at, 2) ? nullptr : beyond;
      case Code::norm:
        return reads(at, kPanel + 2 * padded(channels)) ? nullptr : beyond;
      case Code::linear:
        if (!within(size[2], size[0]) || size[1] < 0 || (size[3] != 0 && size[3] != 1))
          return "a program's linear map does not fit";
        channels = size[1] + (size[3] ? channels : 0);
        return reads(at, padded(size[1]) * (1 + size[0])) ? nullptr : beyond;
      case Code::glu:
        if (size[0] < 0 || 2 * size[0] != channels) return "a program's gate does not fit";
        channels = size[0];
        return nullptr;
      case Code::activation:
        return size[0] >= 0 && size[0] <= kActivations ? nullptr : "a program has an unknown activation";
      case Code::recurrence:
        return recurrence(at);
      case Code::convolution: {
        const int64_t taps = size[1];
        if (!within(size[2], size[0]) || taps <= 0 || size[3] < 0 || size[3] > kActivations + 1 ||
            !holds(at, (taps - 1) * size[0]))
          return "a program's convolution does not fit";
        return reads(at, padded(size[0]) + padded(taps * size[0])) ? nullptr : beyond;
      }
      case Code::selective:
        return selective(at);
      case Code::rms_norm: {
        const auto norm = named<RootMeanSquare>(at);
        if (!within(norm.begin, norm.channels) || (norm.z != -1 && !within(norm.z, norm.channels)) ||
            (norm.groups > 0 ? norm.channels % norm.groups : norm.channels) != 0)
          return "a program's norm does not fit";
        return reads(at, kPanel + padded(norm.channels)) ? nullptr : beyond;
      }
      case Code::keep:
        if (!within(size[1], size[0])) return "a program keeps channels that are not there";
        channels = size[0];
        return nullptr;
      case Code::affine:
        return reads(at, 2 * padded(channels)) ? nullptr : beyond;
      case Code::drop:
      case Code::put:
      case Code::take:
      case Code::append:
      case Code::combine:
      case Code::multiply:
        return with_kept(at);
      case Code::recall:
        if (size[0] < 0 || !holds(at, size[0])) return "a program recalls what its state does not hold";
        channels += size[0];
        return channels < (1 << 30) ? nullptr : "a program has a size out of range";
      case Code::modes:
        if (size[0] < 0 || 2 * size[0] != channels || !holds(at, channels))
          return "a program's modes do not fit";
        return reads(at, padded(channels)) ? nullptr : beyond;
      case Code::gru:
      case Code::lstm:
        if (size[0] < 0 || !within(size[1], 4 * size[0]) ||
            !holds(at, (at.code == Code::lstm ? 2 : 1) * size[0]))
          return "a program's gates do not fit";
        channels = size[0];
        return nullptr;
    }
    return "a program has an unknown instruction";
  }

  const char* with_kept(const Instruction& at) {
    if (at.size[0] < 0 || at.size[0] >= level_) return "a program reads what it has not kept";
    int64_t& kept = kept_[level_ - 1 - at.size[0]];
    switch (at.code) {
      case Code::drop:
        if (at.size[0] != 0) return "a program forgets what is not the last";
        --level_;
        return nullptr;
      case Code::put:
        kept = channels;
        return nullptr;
      case Code::take:
      case Code::append:
        if (at.size[1] != kept) return "a program takes channels that it has not kept";
        channels = kept + (at.code == Code::append ? channels : 0);
        return channels < (1 << 30) ? nullptr : "a program has a size out of range";
      default:
        if (kept != channels) return "a program joins channels of another number";
        return at.code == Code::multiply || reads(at, 2) ? nullptr : "a program reads beyond its weights";
    }
  }

  const char* recurrence(const Instruction& at) {
    const int64_t heads = at.size[0], poles = 2 * heads * at.size[1], readouts = at.size[2],
                  rank = at.size[3];
    if (heads != channels || at.size[1] < 0 || readouts < 0 || rank < 0 || rank > kMostRank ||
        !holds(at, poles))
      return "a program's recurrence does not fit";
    if (double(readouts + rank + 1) * double(poles + 1) >= 0x1p60)
      return "a program's recurrence is too large";
    channels = readouts * heads;
    max_rank = rank > max_rank ? rank : max_rank;
    const int64_t numbers =
        2 * padded(poles) + padded(readouts * poles) + padded(channels) + 2 * padded(rank * poles);
    return reads(at, numbers) ? nullptr : "a program reads beyond its weights";
  }

  const char* selective(const Instruction& at) {
    const auto model = named<Selective>(at);
    const int64_t heads = model.heads, width = model.width, entries = model.size, groups = model.groups;
    if (heads < 0 || width < 0 || entries < 0 || groups < 0 ||
        double(heads) * double(width) * double(entries) >= 0x1p60)
      return "a program's selective step has a size out of range";
    const int64_t shared = groups * entries, outputs = heads * width;
    if ((groups > 0 ? heads % groups : heads) != 0 ||
        !(model.scalar == 1 || (model.scalar == 0 && width == 1)) || !within(model.u, outputs) ||
        !within(model.delta, heads) || !within(model.b, shared) || !within(model.c, shared) ||
        !(model.z == -1 || within(model.z, outputs)) || !holds(at, outputs * entries))
      return "a program's selective step does not fit";
    const int64_t numbers = kPanel + padded(heads * (model.scalar ? 1 : entries)) +
                            padded(model.skip_of_heads ? heads : outputs) + padded(heads);
    return reads(at, numbers) ? nullptr : "a program reads beyond its weights";
  }

  int64_t weights_, state_;
  int64_t kept_[kLevels];
  int64_t level_ = 0;
};

}  // namespace sequence_kernels
