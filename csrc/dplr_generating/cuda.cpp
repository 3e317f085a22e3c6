// S4's generating function on CUDA tensors, by the kernels in cuda.cu. The ops are not those of register.cpp:
// they take the arguments as they are, since preparing them would cost more launches than the work.

#include "dplr_generating/cuda.h"

#include "runtime/cuda_driver.h"

EMBEDDED_KERNELS(dplr_generating);

namespace sequence_kernels {
namespace {

template <typename Params>
void run(const std::string& kernel, const Tensor& like, const Params& params) {
  const std::string name = "dplr_generating_" + kernel + (is_double(like.dtype()) ? "_f64" : "_f32");
  launch(CudaKernel{dplr_generating_fatbin, name.c_str()}, like.device(), params);
}

struct Inputs {
  const Tensor &c, &p, &q, &b, &w, &t;
};

void check_inputs(const Inputs& x) {
  const Tensor& w = x.w;
  for (const Tensor* tensor : {&x.c, &x.p, &x.q, &x.b})
    check(tensor->is_contiguous() && tensor->dtype() == w.dtype() && tensor->device() == w.device(),
          "dplr_generating expects contiguous complex tensors of one dtype on one device");
  const Dtype real = is_double(w.dtype()) ? Dtype::float64 : Dtype::float32;
  check(w.is_contiguous() && is_complex(w.dtype()) && x.t.is_contiguous() && x.t.dtype() == real &&
            x.t.device() == w.device(),
        "dplr_generating expects contiguous complex w, and real t of its precision and on its device");
  const auto c = x.c.sizes(), p = x.p.sizes(), poles = w.sizes();
  check(c.size() == 3 && p.size() == 3 && poles.size() == 2 && x.t.sizes().size() == 1 && p == x.q.sizes() &&
            x.b.sizes() == poles && c[1] == poles[0] && c[2] == poles[1] && p[1] == poles[0] &&
            p[2] == poles[1],
        "dplr_generating expects c (C, H, N), p and q (R, H, N), b and w (H, N) and t (L)");
}

template <typename Params>
Params params_of(const Inputs& x) {
  Params params{};
  params.c = x.c.data<void>(), params.p = x.p.data<void>(), params.q = x.q.data<void>();
  params.b = x.b.data<void>();
  params.channels = x.c.sizes()[0], params.rank = x.p.sizes()[0];
  params.heads = x.w.sizes()[0], params.N = x.w.sizes()[1];
  return params;
}

// Rows of (heads, L), by the kernel for so many channels and such a rank: the op itself, or the adjoint's
// factors.
Tensor generate(const std::string& prefix, const Inputs& x, const Tensor* g, int64_t rows) {
  auto params = params_of<DplrGeneratingParams>(x);
  params.w = x.w.data<void>(), params.t = x.t.data<void>(), params.L = x.t.sizes()[0];
  Tensor out = Tensor::empty({rows, params.heads, params.L}, x.w.dtype(), x.w.device());
  params.factors = g != nullptr, params.g = g ? g->data<void>() : nullptr;
  params.out = out.mutable_data<void>();
  const int64_t channels = params.channels, rank = params.rank;
  params.any = !(channels == 1 && (rank == 1 || rank == 2)) && !(channels == 2 && rank == 1);
  const Launch rule = launch(params);
  const int64_t work = ::dplr_generating::work_of(params) * rule.blocks * rule.threads;
  Tensor workspace = Tensor::empty({work}, x.w.dtype(), x.w.device());
  params.work = workspace.mutable_data<void>();
  const std::string few = "c" + std::to_string(channels) + "_r" + std::to_string(rank);
  if (rows > 0) run(prefix + (params.any ? "any" : few), x.w, params);
  return out;
}

Tensor forward(const Tensor& c, const Tensor& p, const Tensor& q, const Tensor& b, const Tensor& w,
               const Tensor& t) {
  const Inputs x{c, p, q, b, w, t};
  check_inputs(x);
  return generate("", x, nullptr, c.sizes()[0]);
}

std::vector<Tensor> backward(const Tensor& g, const Tensor& c, const Tensor& p, const Tensor& q,
                             const Tensor& b, const Tensor& w, const Tensor& t) {
  const Inputs x{c, p, q, b, w, t};
  check_inputs(x);
  const auto sizes = g.sizes();
  check(g.is_contiguous() && g.dtype() == w.dtype() && g.device() == w.device() && sizes.size() == 3 &&
            sizes[0] == c.sizes()[0] && sizes[1] == w.sizes()[0] && sizes[2] == t.sizes()[0],
        "dplr_generating expects contiguous g (C, H, L) of the dtype of w, on its device");
  auto params = params_of<DplrGeneratingGradientsParams>(x);
  const Tensor factors = generate("factors_", x, &g, params.channels + 2 * params.rank);

  DplrGeneratingMomentsParams moments{};
  moments.factors = factors.data<void>(), moments.w = w.data<void>(), moments.t = t.data<void>();
  moments.channels = params.channels, moments.rank = params.rank;
  moments.heads = params.heads, moments.N = params.N, moments.L = sizes[2];
  const int64_t products = ::dplr_generating::products(moments);
  moments.together = static_cast<int32_t>(products == 4 || products == 9 ? products : 6);
  params.segments = ::dplr_generating::segments(moments.L);
  Tensor sums = Tensor::empty({params.segments, products, 2, params.heads, params.N}, w.dtype(), w.device());
  moments.out = sums.mutable_data<void>();
  run("moments_" + std::to_string(moments.together), w, moments);

  std::vector<Tensor> out;
  for (const Tensor* like : {&c, &p, &q, &b, &w})
    out.push_back(Tensor::empty(like->sizes(), w.dtype(), w.device()));
  params.moments = sums.data<void>();
  params.dc = out[0].mutable_data<void>(), params.dp = out[1].mutable_data<void>();
  params.dq = out[2].mutable_data<void>(), params.db = out[3].mutable_data<void>();
  params.dw = out[4].mutable_data<void>();
  run("gradients", w, params);
  return out;
}

const Op op("dplr_generating_cuda(Tensor c, Tensor p, Tensor q, Tensor b, Tensor w, Tensor t) -> Tensor",
            boxed<forward>, "CUDA");
const Op backward_op(
    "dplr_generating_backward_cuda(Tensor g, Tensor c, Tensor p, Tensor q, Tensor b, Tensor w, Tensor t) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor)",
    boxed<backward>, "CUDA");

}  // namespace
}  // namespace sequence_kernels
