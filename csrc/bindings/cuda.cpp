// The Python face of the CUDA kernels: addresses and streams as integers, no torch ABI.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <utility>

#include "../cuda/device.h"
#include "../cuda/pool.h"
#include "../cuda/preprocess.h"
#include "../cuda/quantize_rows.h"
#include "../cuda/rbf_sum.h"
#include "../cuda/topk.h"

namespace py = pybind11;

namespace pyfeat::cuda {
namespace {

using Address = std::uintptr_t;
using Three = std::array<std::int64_t, 3>;  // items, channels, positions

const void* in(Address address) { return reinterpret_cast<const void*>(address); }
void* out(Address address) { return reinterpret_cast<void*>(address); }
const float* floats(Address address) { return reinterpret_cast<const float*>(address); }
float* room(Address address) { return reinterpret_cast<float*>(address); }

py::dict devices() {
  const DeviceReport r = report_devices();
  return py::dict(py::arg("count") = r.count, py::arg("runtime") = r.runtime,
                  py::arg("driver") = r.driver, py::arg("reason") = r.reason);
}

void run_pool(Address x, int item, const Three& shape, const Three& strides, int method, float p,
              Address rows, std::int64_t row_stride, Address stream) {
  fold_maps({in(x), item, method, p, shape[0], shape[1], shape[2], strides[0], strides[1],
             strides[2], room(rows), row_stride},
            out(stream));
}

void run_preprocess(Address jobs, int n, int rows, int columns, int lines, int side, Address table,
                    int item_bytes, Address stream) {
  preprocess(reinterpret_cast<const PreprocessJob*>(jobs), n, rows, columns, lines, side, in(table),
             item_bytes, out(stream));
}

void run_quantize_rows(Address rows, int from, std::int64_t stride, std::int64_t n, std::int64_t d,
                       Address scales, bool l2, int to, Address target, Address codes,
                       Address stream) {
  store_rows({in(rows), from, stride, n, d, floats(scales), l2, to, out(target), room(codes)},
             out(stream));
}

void run_rbf_sum(const std::array<Address, 6>& sides, const std::array<Address, 3>& results,
                 Address numbers, std::pair<int, int> form, std::array<long long, 4> shape,
                 int within, Address stream) {
  rbf_sum({floats(sides[0]), floats(sides[1]), floats(sides[2]), floats(sides[3]), floats(sides[4]),
           floats(sides[5]), floats(numbers), room(results[0]), room(results[1]), room(results[2]),
           form.first, form.second, within, shape[0], shape[1], shape[2], shape[3]},
          out(stream));
}

void run_rbf_signs(const std::array<Address, 4>& tensors, std::array<long long, 3> shape,
                   std::pair<long long, long long> strides, std::pair<int, long long> within,
                   Address stream) {
  rbf_signs({floats(tensors[0]), floats(tensors[1]), floats(tensors[2]), room(tensors[3]), shape[0],
             shape[2], shape[1], strides.first, strides.second, within.first, within.second},
            out(stream));
}

void run_topk_keys(Address queries, Address base, int item, long long row_stride, Address mul,
                   Address add, Address keys, long long n, long long m, long long d,
                   Address stream) {
  topk_keys(
      {floats(queries), in(base), item, row_stride, floats(mul), floats(add), room(keys), n, m, d},
      stream);
}

}  // namespace
}  // namespace pyfeat::cuda

PYBIND11_MODULE(_cuda, m) {
  using namespace pyfeat::cuda;
  using unlocked = py::call_guard<py::gil_scoped_release>;
  m.doc() = "CUDA kernels; there when a CUDA compiler was at build time.";
  m.def("devices", &devices, "Usable devices, runtime and driver version, and why there is none.");
  m.def("pool", &run_pool, py::arg("x"), py::arg("item"), py::arg("shape"), py::arg("strides"),
        py::arg("method"), py::arg("p"), py::arg("rows"), py::arg("row_stride"), py::arg("stream"),
        unlocked(), "Fold (items, channels, positions) to float32 rows.");
  m.def("preprocess", &run_preprocess, py::arg("jobs"), py::arg("n"), py::arg("rows"),
        py::arg("columns"), py::arg("lines"), py::arg("side"), py::arg("table"),
        py::arg("item_bytes"), py::arg("stream"), unlocked(),
        "Resize images; `jobs` holds rows of int64, the members of PreprocessJob.");
  m.def("quantize_rows", &run_quantize_rows, py::arg("rows"), py::arg("source"), py::arg("stride"),
        py::arg("n"), py::arg("d"), py::arg("scales"), py::arg("l2"), py::arg("target"),
        py::arg("out"), py::arg("codes"), py::arg("stream"), unlocked(),
        "Rows in another type, multiplied by `scales` and normalised before where wanted.");
  m.def("rbf_sum", &run_rbf_sum, py::arg("sides"), py::arg("out"), py::arg("numbers"),
        py::arg("form"), py::arg("shape"), py::arg("within"), py::arg("stream"), unlocked(),
        "One slab: see cuda/rbf_sum.h.");
  m.def("rbf_signs", &run_rbf_signs, py::arg("tensors"), py::arg("shape"), py::arg("strides"),
        py::arg("within"), py::arg("stream"), unlocked(),
        "The gradient of a Laplacian: see cuda/rbf_sum.h; shape is (count, d, others).");
  m.def("topk_keys", &run_topk_keys, py::arg("queries"), py::arg("base"), py::arg("item"),
        py::arg("row_stride"), py::arg("mul"), py::arg("add"), py::arg("keys"), py::arg("n"),
        py::arg("m"), py::arg("d"), py::arg("stream"), unlocked(),
        "keys (n, m) = mul * (queries . rows) + add at device addresses, -inf where that is NaN.");
}
