#include "activation/activation.h"
#include "common/exp2.h"
#include "common/stream.h"
#include "common/transpose.h"

namespace sequence_kernels {
namespace {

// Of Phi(-x) e^{x^2 / 2} / t, t = 1 / (1 + 0.35 x / sqrt(2)), x >= 0: the first terms of its Chebyshev series in
// u = 2 t - 1, as powers of u. What is left out is 9e-9 of float, 2e-17 of double.
constexpr float kTail[] = {0.1871063801f,   0.1511785451f,   0.09711212407f,    0.04754949307f,
                           0.01592092424f,  0.002284408353f, -0.0007918843281f, -0.0004193234802f,
                           1.904143951e-5f, 4.029335167e-5f};
constexpr double kLongTail[] = {
    0.187106376711470684,    0.151178603867925327,     0.0971122987126047788,    0.0475482951264807311,
    0.0159194737316562381,   0.00229130808308325295,   -0.000787569127512605525, -0.000435860918799100659,
    0.000013515551443501244, 0.0000584863565063947756, 2.94319562544673306e-6,   -8.66537515730214238e-6,
    -4.47831416551062668e-7, 1.4704796607019434e-6,    -3.12604300555331127e-8,  -2.66005389707754152e-7,
    4.09996458515066949e-8,  4.55838187498898313e-8,   -1.51370407635113053e-8,  -6.24710928853554477e-9,
    3.38940005281266282e-9,  4.88551572144538737e-10,  -3.75017912628693224e-10};

template <int terms, typename Real>
inline Vector<Real> polynomial(const Real (&of)[terms], Vector<Real> x) {
  Vector<Real> result = all(of[terms - 1]);
#pragma GCC unroll 32
  for (int k = terms - 2; k >= 0; --k) result = result * x + of[k];
  return result;
}
inline Vector<float> tail_series(Vector<float> u) {
  return polynomial(kTail, u);
}
inline Vector<double> tail_series(Vector<double> u) {
  return polynomial(kLongTail, u);
}

// Phi(x), and e^{-x^2 / 2}.
template <typename Real>
inline Vector<Real> normal_below(Vector<Real> x, Vector<Real>& bell) {
  bell = falling_exponential<Real>(x * x * Real(-0.5));
  const Vector<Real> t = 1 / (1 + magnitude<Real>(x) * Real(0.35 * 0.70710678118654752440));
  const Vector<Real> beyond = t * bell * tail_series(2 * t - 1);
  return x < 0 ? beyond : 1 - beyond;
}

// Function of vectors at the same place of each of `from`, that gives those of `to`, of the place and of the numbers that
// are left there: for `count` places, a multiple of a vector's lanes if the results go past the caches.
template <typename Real, typename Type, bool past_caches, int inputs, int outputs, typename Function>
inline void over(const Type* const (&from)[inputs], Type* const (&to)[outputs], int64_t count,
                 const Function& function) {
  constexpr int64_t lanes = kLanes<Real>;
  const auto at = [&](const Type* const(&in)[inputs], Type* const(&out)[outputs], int64_t i, int64_t place) {
    Vector<Real> given[inputs], made[outputs];
#pragma GCC unroll 4
    for (int k = 0; k < inputs; ++k) given[k] = load_widened<Real>(in[k] + i);
    function(given, made, place, count - place);
#pragma GCC unroll 4
    for (int k = 0; k < outputs; ++k)
      if constexpr (past_caches)
        store_result<true, Real>(out[k] + i, made[k]);
      else
        store_narrowed<Real>(out[k] + i, made[k]);
  };
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    if constexpr (past_caches)
      for (const Type* p : from) prefetch_page_ahead(p + i);
    at(from, to, i, i);
  }
  if (past_caches || i == count) return;
  const size_t left = static_cast<size_t>(count - i) * sizeof(Type);
  Type rest[inputs + outputs][lanes] = {};
  const Type* in[inputs];
  Type* out[outputs];
  for (int k = 0; k < inputs; ++k) in[k] = static_cast<Type*>(__builtin_memcpy(rest[k], from[k] + i, left));
  for (int k = 0; k < outputs; ++k) out[k] = rest[inputs + k];
  at(in, out, 0, i);
  for (int k = 0; k < outputs; ++k) __builtin_memcpy(to[k] + i, out[k], left);
}

template <typename Real>
inline Vector<Real> gelu(Vector<Real> x) {
  Vector<Real> bell;
  return x * normal_below<Real>(x, bell);
}
template <typename Real>
inline Vector<Real> gelu_gradient(Vector<Real> g, Vector<Real> x) {
  Vector<Real> bell;
  const Vector<Real> below = normal_below<Real>(x, bell);
  return g * (below + x * bell * Real(0.39894228040143267794));
}
template <typename Real>
inline void glu_gradient(Vector<Real> g, Vector<Real> a, Vector<Real> b, Vector<Real> (&gradients)[2]) {
  const Vector<Real> open = logistic_of<Real>(b);
  gradients[0] = g * open;
  gradients[1] = gradients[0] * a * (1 - open);
}

// v + bias at a place, with so many numbers left there; v itself without a bias.
template <typename Real>
inline Vector<Real> with_bias(Vector<Real> v, const Real* bias, int64_t place, int64_t left) {
  return bias ? v + load_up_to(bias + place, left) : v;
}

template <typename Real, bool past_caches, typename Type>
void forward(const ActivationArguments& arguments, const Type* x, Type* y, int64_t begin, int64_t end) {
  const int64_t channels = arguments.channels, width = arguments.width();
  const Real* const biases = static_cast<const Real*>(arguments.bias);
  const auto smooth = [](const Real* bias) {
    return [=](const auto& in, auto& out, int64_t i, int64_t left) {
      out[0] = gelu<Real>(with_bias(in[0], bias, i, left));
    };
  };
  const auto gated = [=](const Real* bias) {
    return [=](const auto& in, auto& out, int64_t i, int64_t left) {
      out[0] =
          with_bias(in[0], bias, i, left) * logistic_of<Real>(with_bias(in[1], bias, channels + i, left));
    };
  };
  if (!arguments.gate && !biases)  // all rows are one
    return over<Real, Type, past_caches, 1, 1>({x + begin * channels}, {y + begin * channels},
                                               (end - begin) * channels, smooth(nullptr));
  for (int64_t row = begin; row < end; ++row) {
    const Real* const bias = biases ? biases + row % arguments.heads * width : nullptr;
    const Type* const a = x + row * width;
    Type* const to = y + row * channels;
    if (arguments.gate)
      over<Real, Type, past_caches, 2, 1>({a, a + channels}, {to}, channels, gated(bias));
    else
      over<Real, Type, past_caches, 1, 1>({a}, {to}, channels, smooth(bias));
  }
}

template <typename Real, bool past_caches, typename Type>
void backward(const ActivationArguments& arguments, const Type* x, const Type* g, Type* dx, int64_t begin,
              int64_t end) {
  const int64_t channels = arguments.channels, width = arguments.width(), all = arguments.heads * width;
  const Real* const biases = static_cast<const Real*>(arguments.bias);
  Real* const parts =
      biases ? static_cast<Real*>(arguments.parts) + begin / arguments.rows_of_item() * all : nullptr;
  if (biases)
    for (int64_t i = 0; i < all; ++i) parts[i] = 0;
  const auto add = [](Real* sum, Vector<Real> v, int64_t left) {
    store_up_to<Real>(sum, load_up_to(sum, left) + v, left);
  };
  const auto smooth = [=](const Real* bias, Real* sums) {
    return [=](const auto& in, auto& out, int64_t i, int64_t left) {
      out[0] = gelu_gradient<Real>(in[1], with_bias(in[0], bias, i, left));
      if (sums) add(sums + i, out[0], left);
    };
  };
  const auto gated = [=](const Real* bias, Real* sums) {
    return [=](const auto& in, auto& out, int64_t i, int64_t left) {
      glu_gradient<Real>(in[2], with_bias(in[0], bias, i, left), with_bias(in[1], bias, channels + i, left),
                         out);
      if (!sums) return;
      add(sums + i, out[0], left);
      add(sums + channels + i, out[1], left);
    };
  };
  if (!arguments.gate && !biases)  // all rows are one
    return over<Real, Type, past_caches, 2, 1>({x + begin * channels, g + begin * channels},
                                               {dx + begin * channels}, (end - begin) * channels,
                                               smooth(nullptr, nullptr));
  for (int64_t row = begin; row < end; ++row) {
    const int64_t head = row % arguments.heads * width;
    const Real* const bias = biases ? biases + head : nullptr;
    Real* const sums = biases ? parts + head : nullptr;
    const Type *const a = x + row * width, *const arriving = g + row * channels;
    Type* const da = dx + row * width;
    if (arguments.gate)
      over<Real, Type, past_caches, 3, 2>({a, a + channels, arriving}, {da, da + channels}, channels,
                                          gated(bias, sums));
    else
      over<Real, Type, past_caches, 2, 1>({a, arriving}, {da}, channels, smooth(bias, sums));
  }
}

// Call function(x, the result of so wide rows, whether it goes past the caches, first row, the one behind the last) for
// each of the items [begin, end).
template <typename Real, typename Function>
void run(const ActivationArguments& arguments, int64_t width, int64_t begin, int64_t end,
         const Function& function) {
  const int64_t rows = arguments.rows_of_item();
  with_element<Real>(arguments.element, arguments.x, [&](const auto* x) {
    using Type = std::remove_const_t<std::remove_pointer_t<decltype(x)>>;
    Type* const result = static_cast<Type*>(arguments.result);
    const auto each = [&](auto past_caches) {
      for (int64_t item = begin; item < end; ++item)
        function(x, result, past_caches, item * rows, smaller((item + 1) * rows, arguments.rows));
    };
    if constexpr (std::is_same_v<Type, Real>)
      with_stream(is_past_caches(result, arguments.rows, width * static_cast<int64_t>(sizeof(Type))), each);
    else
      each(std::false_type());
  });
}

}  // namespace

template <typename Real, Isa isa>
void activation(const ActivationArguments& arguments, int64_t begin, int64_t end) {
  run<Real>(arguments, arguments.channels, begin, end,
            [&](const auto* x, auto* y, auto past_caches, int64_t first, int64_t last) {
              forward<Real, past_caches()>(arguments, x, y, first, last);
            });
}

template <typename Real, Isa isa>
void activation_backward(const ActivationArguments& arguments, int64_t begin, int64_t end) {
  run<Real>(arguments, arguments.width(), begin, end,
            [&](const auto* x, auto* dx, auto past_caches, int64_t first, int64_t last) {
              backward<Real, past_caches()>(arguments, x, static_cast<decltype(x)>(arguments.g), dx, first,
                                            last);
            });
}

template void activation<float, kIsa>(const ActivationArguments&, int64_t, int64_t);
template void activation<double, kIsa>(const ActivationArguments&, int64_t, int64_t);
template void activation_backward<float, kIsa>(const ActivationArguments&, int64_t, int64_t);
template void activation_backward<double, kIsa>(const ActivationArguments&, int64_t, int64_t);

}  // namespace sequence_kernels
