// Krylov sequences y_{j+1} = a y_j + sum_r p_r s_rj, s_rj = 2 Re(sum_n q_rn y_jn), and their adjoint
//
//   l_j = g_j + a* l_{j+1} + 2 sum_r q_r* t_r,  t_r = Re(sum_n p_rn* l_{j+1,n}),  dx = l_0,
//   da = sum_j y_j* l_{j+1},  dp_r = sum_j s_rj l_{j+1},  dq_r = 2 sum_j t_r y_j*.
//
// One head at a time, real and imaginary parts apart, padded with zeros to whole vectors.
#include "common/vector.h"
#include "dplr_krylov/dplr_krylov.h"

namespace sequence_kernels {
namespace {

// A complex vector: real parts, then imaginary parts, `size` of each.
template <typename Real>
struct Planar {
  Real* re;
  int64_t size;
  Real* im() const { return re + size; }
};

// Hands out planar vectors for so many pairs, zeroed.
template <typename Real>
class Room {
 public:
  Room(Real* memory, int64_t pairs) : memory_(memory), size_(round_up(pairs, kLanes<Real>)) {}
  Planar<Real> take() {
    const Planar<Real> vector{memory_, size_};
    memory_ += 2 * size_;
    clear(vector);
    return vector;
  }
  static void clear(Planar<Real> v) {
    for (int64_t i = 0; i < 2 * v.size; ++i) v.re[i] = 0;
  }

 private:
  Real* memory_;
  int64_t size_;
};

template <typename Real>
void read(const Real* from, int64_t pairs, Planar<Real> to) {
  for (int64_t n = 0; n < pairs; ++n) to.re[n] = from[2 * n], to.im()[n] = from[2 * n + 1];
}

template <typename Real>
void write(Planar<Real> from, int64_t pairs, Real* to) {
  for (int64_t n = 0; n < pairs; ++n) to[2 * n] = from.re[n], to[2 * n + 1] = from.im()[n];
}

// Re(sum_n v_n x_n), or with sign = 1 that of conj(v_n) x_n.
template <int sign = -1, typename Real>
Real real_inner(Planar<Real> v, Planar<Real> x) {
  Vector<Real> total = {};
  for (int64_t i = 0; i < v.size; i += kLanes<Real>) {
    const Vector<Real> turned = load(v.im() + i) * load(x.im() + i);
    total += load(v.re + i) * load(x.re + i) + (sign < 0 ? -turned : turned);
  }
  return sum<Real>(total);
}

// x <- v x + add, or with conj(v) for sign = -1.
template <int sign = 1, typename Real>
void multiply_add(Planar<Real> v, Planar<Real> x, Planar<Real> add) {
  for (int64_t i = 0; i < v.size; i += kLanes<Real>) {
    const Vector<Real> re = load(v.re + i), im = load(v.im() + i), u = load(x.re + i), w = load(x.im() + i);
    const Vector<Real> turned = sign < 0 ? -im : im;
    store<Real>(x.re + i, re * u - turned * w + load(add.re + i));
    store<Real>(x.im() + i, re * w + turned * u + load(add.im() + i));
  }
}

// to <- to + scale v, or with conj(v) for sign = -1.
template <int sign = 1, typename Real>
void accumulate(Planar<Real> to, Real scale, Planar<Real> v) {
  for (int64_t i = 0; i < v.size; i += kLanes<Real>) {
    store<Real>(to.re + i, load(to.re + i) + load(v.re + i) * scale);
    store<Real>(to.im() + i, load(to.im() + i) + load(v.im() + i) * (sign * scale));
  }
}

// to <- to + conj(y) l.
template <typename Real>
void accumulate_product(Planar<Real> to, Planar<Real> y, Planar<Real> l) {
  for (int64_t i = 0; i < y.size; i += kLanes<Real>) {
    const Vector<Real> re = load(y.re + i), im = load(y.im() + i), u = load(l.re + i), w = load(l.im() + i);
    store<Real>(to.re + i, load(to.re + i) + re * u + im * w);
    store<Real>(to.im() + i, load(to.im() + i) + re * w - im * u);
  }
}

// The matrix of one head in planar form; p and q hold one vector after another.
template <typename Real>
struct Head {
  Head(Room<Real>& room, const KrylovSizes& sizes) : sizes(sizes), a(room.take()) {
    for (int64_t r = 0; r < 2 * sizes.rank; ++r) {
      const Planar<Real> taken = room.take();
      if (r == 0) low_rank = taken;
    }
  }
  Planar<Real> p(int64_t r) const { return {low_rank.re + 2 * r * low_rank.size, low_rank.size}; }
  Planar<Real> q(int64_t r) const { return p(sizes.rank + r); }

  void clear() const {
    Room<Real>::clear(a);
    for (int64_t r = 0; r < sizes.rank; ++r) Room<Real>::clear(p(r)), Room<Real>::clear(q(r));
  }
  void load_from(int64_t h, const Real* from_a, const Real* from_p, const Real* from_q) const {
    read(from_a + h * sizes.pairs * 2, sizes.pairs, a);
    for (int64_t r = 0; r < sizes.rank; ++r) {
      const int64_t at = (r * sizes.heads + h) * sizes.pairs * 2;
      read(from_p + at, sizes.pairs, p(r));
      read(from_q + at, sizes.pairs, q(r));
    }
  }
  void store_to(int64_t h, Real* to_a, Real* to_p, Real* to_q) const {
    write(a, sizes.pairs, to_a + h * sizes.pairs * 2);
    for (int64_t r = 0; r < sizes.rank; ++r) {
      const int64_t at = (r * sizes.heads + h) * sizes.pairs * 2;
      write(p(r), sizes.pairs, to_p + at);
      write(q(r), sizes.pairs, to_q + at);
    }
  }

  const KrylovSizes& sizes;
  Planar<Real> a, low_rank{};
};

}  // namespace

template <typename Real, Isa isa>
void krylov(const KrylovArguments<Real>& arguments, int64_t begin, int64_t end, Real* scratch) {
  const KrylovSizes& sizes = arguments.sizes;
  const int64_t length = sizes.pairs * 2;
  Room<Real> room(scratch, sizes.pairs);
  const Head<Real> head(room, sizes);
  const Planar<Real> x = room.take(), pulled = room.take();
  for (int64_t h = begin; h < end; ++h) {
    head.load_from(h, arguments.a, arguments.p, arguments.q);
    for (int64_t k = 0; k < sizes.vectors; ++k) {
      const int64_t at = k * sizes.heads + h;
      read(arguments.x + at * length, sizes.pairs, x);
      for (int64_t j = 0; j < sizes.count; ++j) {
        write(x, sizes.pairs, arguments.y + (at * sizes.count + j) * length);
        Room<Real>::clear(pulled);
        for (int64_t r = 0; r < sizes.rank; ++r) accumulate(pulled, 2 * real_inner(head.q(r), x), head.p(r));
        multiply_add(head.a, x, pulled);
      }
    }
  }
}

template <typename Real, Isa isa>
void krylov_backward(const KrylovBackwardArguments<Real>& arguments, int64_t begin, int64_t end,
                     Real* scratch) {
  const KrylovSizes& sizes = arguments.sizes;
  const int64_t length = sizes.pairs * 2;
  Room<Real> room(scratch, sizes.pairs);
  const Head<Real> head(room, sizes);
  const Head<Real> gradient(room, sizes);
  const Planar<Real> whole = room.take(), before = room.take(), pulled = room.take();
  for (int64_t h = begin; h < end; ++h) {
    head.load_from(h, arguments.a, arguments.p, arguments.q);
    gradient.clear();
    for (int64_t k = 0; k < sizes.vectors; ++k) {
      const int64_t at = k * sizes.heads + h;
      Room<Real>::clear(whole);
      for (int64_t j = sizes.count - 1; j >= 0; --j) {
        read(arguments.g + (at * sizes.count + j) * length, sizes.pairs, pulled);
        if (j < sizes.count - 1) {
          read(arguments.y + (at * sizes.count + j) * length, sizes.pairs, before);
          accumulate_product(gradient.a, before, whole);
          for (int64_t r = 0; r < sizes.rank; ++r) {
            const Real pull = 2 * real_inner<1>(head.p(r), whole);
            accumulate(gradient.p(r), 2 * real_inner(head.q(r), before), whole);
            accumulate<-1>(gradient.q(r), pull, before);
            accumulate<-1>(pulled, pull, head.q(r));
          }
        }
        multiply_add<-1>(head.a, whole, pulled);
      }
      write(whole, sizes.pairs, arguments.dx + at * length);
    }
    gradient.store_to(h, arguments.da, arguments.dp, arguments.dq);
  }
}

template void krylov<float, kIsa>(const KrylovArguments<float>&, int64_t, int64_t, float*);
template void krylov<double, kIsa>(const KrylovArguments<double>&, int64_t, int64_t, double*);
template void krylov_backward<float, kIsa>(const KrylovBackwardArguments<float>&, int64_t, int64_t, float*);
template void krylov_backward<double, kIsa>(const KrylovBackwardArguments<double>&, int64_t, int64_t,
                                            double*);

}  // namespace sequence_kernels
