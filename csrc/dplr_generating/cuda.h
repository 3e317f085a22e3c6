// The CUDA kernels of S4's generating function: what they take and where they run.
//
// A node t stands for s / y = t with y = 1 or s = 1, so that nothing is infinite: with f = y + i s,
//
//   M_jk  = sum_n left_jn right_kn / (i s - y w_n), conjugate pairs added;  left = (c, q), right = (b, p)
//   out_c = f (M_cb - y M_cp X M_qb),  X = (I + y M_qp)^-1
//
// All products of a head and a node share the poles' reciprocals: one for a conjugate pair.
//
// Adjoint: the gradient with respect to M has rank one, gm_jk = row_j col_k, with
//   row_c = f* g_c,  row_q = -y (sum_c row_c* M_cp X)*,  col_b = 1,  col_p = -y (X M_qb)*,
// and goes to the products' weights v and to the poles by real sums with e = 1 / ((i s - y w) (i s - y w*)):
//   dv  = 2 (S1 - w S0),                 S0 = sum_l y Re(gm e*),     S1 = sum_l s Im(gm e*)
//   dv' = 2 S0 + 4 i Im(w) (w T0 - T1),  T0 = sum_l y^3 Re(gm e*^2), T1 = sum_l s y^2 Im(gm e*^2)
//   dleft_j = sum_k right_k* dv_jk,  dright_k = sum_j left_j* dv_jk,  dw = sum_jk (left_j right_k)* dv'_jk.
//
// dplr_generating_{c1_r1,c2_r1,c1_r2,any}: out, with the products of a node in registers: for so many
//   channels and so low a rank, or, for any of both, in a workspace.
// dplr_generating_factors_{the same}: row and col.
// dplr_generating_moments_{4,6,9}: dv and dv' of every segment of nodes, for so many products together.
// dplr_generating_gradients: what they come to, added up over the segments in their order and in double.
//
// All tensors are contiguous and complex, but t is real. An empty out needs no launch, and none must be made.
#pragma once
#include "common/launch.h"

struct DplrGeneratingParams {
  const void* c;  // (channels, heads, N)
  const void* p;  // (rank, heads, N)
  const void* q;  // (rank, heads, N)
  const void* b;  // (heads, N)
  const void* w;  // (heads, N)
  const void* t;  // (L)
  const void* g;  // factors: (channels, heads, L)
  void* out;      // (channels, heads, L); factors: rows and columns (channels + rank + rank, heads, L)
  void* work;     // any: complex numbers, work_of(params) for each thread
  int64_t channels, rank, heads, N, L;
  int32_t any;      // is it a kernel for any number of channels and any rank?
  int32_t factors;  // is it a kernel for the factors?
};
struct DplrGeneratingMomentsParams {
  const void* factors;  // (channels + rank + rank, heads, L)
  const void* w;        // (heads, N)
  const void* t;        // (L)
  void* out;            // (segments, products, 2, heads, N)
  int64_t channels, rank, heads, N, L;
  int32_t together;  // 4, 6 or 9, as the kernel's name says
};
struct DplrGeneratingGradientsParams {
  const void* c;        // (channels, heads, N)
  const void* p;        // (rank, heads, N)
  const void* q;        // (rank, heads, N)
  const void* b;        // (heads, N)
  const void* moments;  // (segments, products, 2, heads, N)
  void* dc;
  void* dp;
  void* dq;
  void* db;
  void* dw;  // (heads, N), as the others are like their namesakes
  int64_t channels, rank, heads, N, segments;
};

namespace dplr_generating {

constexpr int32_t threads = 128;
constexpr int64_t blocks_with_work = 512;  // at most: they bound the workspace

// In the moments a block sums over one segment of nodes: short, as there are few blocks otherwise.
constexpr int64_t segment = 512;
HOST_DEVICE constexpr int64_t segments(int64_t length) {
  return length <= segment ? 1 : (length + segment - 1) / segment;
}

template <class Params>
HOST_DEVICE int64_t products(const Params& p) {
  return (p.channels + p.rank) * (1 + p.rank);
}

// A block of the moments has 2^pole_bits poles, at most 32; its other threads share the nodes.
HOST_DEVICE constexpr int32_t pole_bits(int64_t poles) {
  int32_t bits = 0;
  while (bits < 5 && (int64_t(1) << bits) < poles) ++bits;
  return bits;
}

// Complex numbers of workspace that a thread needs: rows (M_qb, I + y M_qp), in the adjoint also X and M_cp.
HOST_DEVICE int64_t work_of(const DplrGeneratingParams& p) {
  return p.any ? p.rank * (p.factors ? 2 + 2 * p.rank : 1 + p.rank) : 0;
}

}  // namespace dplr_generating

// A block has 128 nodes of a head; blocks with workspace take turns.
HOST_DEVICE Launch launch(const DplrGeneratingParams& p) {
  const int64_t tiles = (p.L + dplr_generating::threads - 1) / dplr_generating::threads * p.heads;
  const bool turns = p.any && tiles > dplr_generating::blocks_with_work;
  return {turns ? dplr_generating::blocks_with_work : tiles, dplr_generating::threads, 0};
}
HOST_DEVICE Launch launch(const DplrGeneratingMomentsParams& p) {
  const int64_t groups = (dplr_generating::products(p) + p.together - 1) / p.together;
  const int64_t poles = int64_t(1) << dplr_generating::pole_bits(p.N);
  return {(p.N + poles - 1) / poles * p.heads * groups * dplr_generating::segments(p.L),
          dplr_generating::threads, 0};
}
HOST_DEVICE Launch launch(const DplrGeneratingGradientsParams& p) {
  const int64_t outputs = (p.channels + 2 * p.rank + 2) * p.heads * p.N;
  return {(outputs + dplr_generating::threads - 1) / dplr_generating::threads, dplr_generating::threads, 0};
}
