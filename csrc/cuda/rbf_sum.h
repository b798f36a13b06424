// One slab of `rbf_sum` on a GPU: pyfeat/ops/_rbf_sum_device.py walks over the slabs.
#pragma once

namespace pyfeat::cuda {

// Float32, compact; addresses of device memory. Rows have 16-byte alignment and d a multiple of 32.
struct RbfSlab {
  const float *x, *y;              // (count, d), (m, d)
  const float *x_norms, *y_norms;  // squared lengths
  const float *x_weights, *y_weights;
  const float* numbers;  // gammas, then coef0
  float* row_sums;       // (tiles across, 2, count): of wy_j k_ij, of coefficients
  float* column_sums;    // (tiles down, 2, m): of wx_i k_ij, of coefficients
  float* coefficients;   // (count, m) or null: wx_i wy_j * slope
  int kind, number;      // enum PairKernel; count of gammas or degree
  int within;  // 0: two samples; 1: pairs i > j left out, i = j half; 2: i = j left out too
  long long first, count, m, d;  // row i of x is row first + i of y where `within`
};

// The Laplacian's gradient: out_ik = - sum over j of c_ij sign(own_ik - other_jk),
// c_ij = coefficients[i * down + j * across]. role 1: c_ij = 0 for j < first + i; role 2: for
// first + j > i; these are not read as far as whole tiles of rows go.
struct RbfSigns {
  const float *own, *other;  // (count, d), (others, d), aligned as above
  const float* coefficients;
  float* out;  // (count, d)
  long long count, others, d, down, across;
  int role;
  long long first;
};

void rbf_sum(const RbfSlab& slab, void* stream);
void rbf_signs(const RbfSigns& signs, void* stream);

}  // namespace pyfeat::cuda
