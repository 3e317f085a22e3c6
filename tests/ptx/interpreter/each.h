// Makes an instruction of a function of numbers: it is called for each lane that takes part, and what the operands are
// follows from its type.
#pragma once
#include <cstddef>
#include <type_traits>

#include "machine.h"

namespace ptx {

template <class T>
constexpr char letter() {
  return std::is_same_v<T, bool> ? 'p' : sizeof(T) == 2 ? 'h' : sizeof(T) == 4 ? 'w' : 'd';
}

// The values of an operand: an array, or for predicates a mask.
template <class T>
struct Source {
  const T* values;
  Source(const Warp& w, Operand o) : values(w.values<T>(o)) {}
  T operator[](int lane) const { return values[lane]; }
};
template <>
struct Source<bool> {
  Mask mask;
  Source(const Warp& w, Operand o) : mask(w.predicate(o)) {}
  bool operator[](int lane) const { return mask >> lane & 1; }
};

template <auto f>
struct Each;

template <class D, class... S, D (*f)(S...)>
struct Each<f> {
  static std::string operands() { return {letter<D>(), letter<S>()...}; }

  template <size_t... k>
  static void apply(Warp& w, const Instruction& i, std::index_sequence<k...>) {
    loop(w, i.operands[0], Source<S>(w, i.operands[k + 1])...);
  }
  static void loop(Warp& w, Operand to, Source<S>... sources) {
    const Mask exec = w.exec;
    if constexpr (std::is_same_v<D, bool>) {
      Mask found = 0;
      for (int lane = 0; lane < lanes; ++lane) found |= Mask{f(sources[lane]...)} << lane;
      Mask& predicate = w.predicate(to);
      predicate = (predicate & ~exec) | (found & exec);
    } else {
      D* const d = w.values<D>(to);
      if (exec == all_lanes) {
#pragma GCC ivdep
        for (int lane = 0; lane < lanes; ++lane) d[lane] = f(sources[lane]...);
      } else {
        D results[lanes];
        for (int lane = 0; lane < lanes; ++lane) results[lane] = f(sources[lane]...);
#pragma GCC ivdep
        for (int lane = 0; lane < lanes; ++lane) d[lane] = exec >> lane & 1 ? results[lane] : d[lane];
      }
    }
  }
  static void run(Warp& w, const Instruction& i) { apply(w, i, std::index_sequence_for<S...>()); }
};

template <auto f>
Handler each() {
  return {Each<f>::run, Each<f>::operands()};
}

// Logic of predicates: on all lanes at once.
template <Mask (*f)(Mask, Mask)>
void masks(Warp& w, const Instruction& i) {
  Mask& d = w.predicate(i.operands[0]);
  d = (d & ~w.exec) | (f(w.predicate(i.operands[1]), w.predicate(i.operands[2])) & w.exec);
}

}  // namespace ptx
