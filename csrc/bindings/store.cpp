// The Python face of the store: numpy arrays in, numpy arrays out, the GIL released while it works.
#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "../store/crc32c.h"
#include "../store/merge.h"
#include "../store/seal.h"
#include "../store/segment.h"
#include "../store/segment_index.h"
#include "../store/segments.h"
#include "../store/tail.h"
#include "bindings.h"
#include "store_files.h"

namespace py = pybind11;
using namespace pyfeat::store;
using pyfeat::as_path;
using pyfeat::Item;

namespace {

using Bytes = py::array_t<std::uint8_t, py::array::c_style>;
using Numbers = py::array_t<std::int64_t, py::array::c_style>;

void require(bool holds, const char* rule) {
  if (!holds) throw std::invalid_argument(rule);
}

std::size_t count_keys(const Bytes& keys) {
  require(keys.ndim() == 2 && keys.shape(1) == static_cast<py::ssize_t>(kKeyBytes),
          "keys must have shape (n, 16)");
  return static_cast<std::size_t>(keys.shape(0));
}

template <typename T>
py::array_t<T> as_array(const std::vector<T>& values) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

py::array_t<std::uint8_t> as_keys(const std::vector<std::uint8_t>& keys) {
  const auto n = static_cast<py::ssize_t>(keys.size() / kKeyBytes);
  return py::array_t<std::uint8_t>({n, static_cast<py::ssize_t>(kKeyBytes)}, keys.data());
}

template <typename Source>
Numbers find(Source& source, const Bytes& keys) {
  const std::size_t n = count_keys(keys);
  Numbers rows(static_cast<py::ssize_t>(n));
  std::int64_t* out = rows.mutable_data();
  const std::uint8_t* in = keys.data();
  py::gil_scoped_release release;
  source.find(in, n, out);
  return rows;
}

struct Gather {
  std::size_t n;
  const std::uint8_t* keys;
  const std::int64_t* rows;
  const std::int64_t* positions;
  std::uint8_t* out;
};

// `out` is (m, row_bytes) uint8; every position is below m, every row is one of the source.
template <typename Source>
Gather check_gather(Source& source, const Bytes& keys, const Numbers& rows,
                    const Numbers& positions, Bytes& out) {
  const std::size_t n = count_keys(keys);
  require(static_cast<std::size_t>(rows.size()) == n, "rows must have one number a key");
  require(static_cast<std::size_t>(positions.size()) == n, "positions must have one number a key");
  require(out.ndim() == 2 && static_cast<std::size_t>(out.shape(1)) == source.row_bytes(),
          "out must have shape (m, row_bytes)");
  const std::int64_t* p = positions.data();
  const std::int64_t* r = rows.data();
  const auto size = static_cast<std::int64_t>(source.size());
  for (std::size_t i = 0; i < n; ++i) {
    require(0 <= p[i] && p[i] < out.shape(0), "positions must lie in out");
    require(0 <= r[i] && r[i] < size, "rows must lie in the source");
  }
  return {n, keys.data(), rows.data(), p, out.mutable_data()};
}

// Returns the bytes of a row. All segments must have rows of one size, with scales or without.
std::size_t check_request(const Segments& segments, const Request& request, const Numbers& source,
                          const Numbers& row, const Bytes& out) {
  require(!segments.empty(), "segments must not be empty");
  const std::size_t row_bytes = segments[0]->row_bytes();
  for (const Segment* s : segments)
    require(s && s->row_bytes() == row_bytes && s->has_scales() == (request.item == Item::kInt8),
            "segments must have rows of one size");
  require(row_bytes % static_cast<std::size_t>(bytes_of(request.item)) == 0,
          "a row must be whole items");
  const auto n = static_cast<py::ssize_t>(request.n);
  require(source.size() == n && row.size() == n, "source and row must have one number a key");
  require(out.ndim() == 2 && out.shape(0) == n &&
              static_cast<std::size_t>(out.shape(1)) == out_bytes(request, row_bytes),
          "out must have shape (n, bytes of a row)");
  for (std::size_t i = 0; i < request.n; ++i) {
    const auto s = static_cast<std::size_t>(request.source[i]);
    require(s >= segments.size() || static_cast<std::size_t>(request.row[i]) < segments[s]->size(),
            "rows must lie in their segment");
  }
  return row_bytes;
}

void bind_tail(py::module_& m) {
  py::class_<Tail>(m, "Tail", "A writer's own log.")
      .def_static(
          "create",
          [](const std::string& path, std::size_t row_bytes, const Bytes& fingerprint) {
            require(fingerprint.size() == static_cast<py::ssize_t>(kFingerprintBytes),
                    "fingerprint must have 32 bytes");
            return Tail::create(path, row_bytes, fingerprint.data());
          },
          py::arg("path"), py::arg("row_bytes"), py::arg("fingerprint"))
      .def_static("open", &Tail::open, py::arg("path"), py::arg("row_bytes"),
                  py::call_guard<py::gil_scoped_release>())
      .def_static("adopt", &Tail::adopt, py::arg("path"), py::arg("row_bytes"),
                  py::call_guard<py::gil_scoped_release>())
      .def("append",
           [](Tail& t, const Bytes& keys, const Bytes& rows) {
             const std::size_t n = count_keys(keys);
             require(static_cast<std::size_t>(rows.size()) == n * t.row_bytes(),
                     "rows must have row_bytes bytes a key");
             const std::uint8_t* k = keys.data();
             const std::uint8_t* r = rows.data();
             py::gil_scoped_release release;
             t.append(k, r, n);
           })
      .def("sync", &Tail::sync, py::call_guard<py::gil_scoped_release>())
      .def("refresh", &Tail::refresh, py::call_guard<py::gil_scoped_release>())
      .def("find", &find<Tail>, py::arg("keys"))
      .def("gather",
           [](Tail& t, const Bytes& keys, const Numbers& rows, const Numbers& positions, Bytes out,
              std::size_t) {
             const Gather g = check_gather(t, keys, rows, positions, out);
             py::gil_scoped_release release;
             return t.gather(g.keys, g.rows, g.positions, g.n, g.out);
           })
      .def_static("discard", &Tail::discard, py::arg("path"))
      .def("remove", [](const Tail& t) { remove_file(t.path()); })
      .def("sync_folder", [](const Tail& t) { sync_folder_of(t.path()); })
      .def("version", &Tail::version)
      .def("damaged_offsets", &Tail::damaged_offsets)
      .def("read_again", &Tail::read_again, py::call_guard<py::gil_scoped_release>())
      .def("keys", [](Tail& t) { return as_keys(t.keys()); })
      .def("offset", &Tail::offset, py::arg("row"))
      .def_property_readonly("path", [](const Tail& t) { return as_path(t.path()); });
}

void bind_segment(py::module_& m) {
  py::class_<Segment, std::shared_ptr<Segment>>(m, "Segment", "A mapped, sealed segment.")
      .def(py::init([](const std::string& path, std::size_t n, std::size_t row_bytes,
                       std::uint64_t keys, std::uint64_t order, std::uint64_t crcs,
                       std::uint64_t rows, std::uint64_t scales, std::size_t there) {
             return Segment(path, n, row_bytes, {keys, order, crcs, scales, rows}, there);
           }),
           py::arg("path"), py::arg("n"), py::arg("row_bytes"), py::arg("keys"), py::arg("order"),
           py::arg("crcs"), py::arg("rows"), py::arg("scales") = 0,
           py::arg("there") = ~std::size_t{0})
      .def("find", &find<const Segment>, py::arg("keys"))
      .def("damaged_rows", &Segment::damaged_rows, py::call_guard<py::gil_scoped_release>())
      .def("crc_of", &Segment::crc_of, py::call_guard<py::gil_scoped_release>())
      .def("intact",
           [](const Segment& s) {
             Segment::Intact found;
             {
               const py::gil_scoped_release release;
               found = s.intact();
             }
             return py::make_tuple(as_keys(found.keys), as_array(found.rows),
                                   as_keys(found.claimed));
           })
      .def("__len__", &Segment::size)
      .def("sorted_keys",
           [](const Segment& s, std::size_t begin, std::size_t end) {
             require(begin <= end && end <= s.size(), "begin and end must lie in the segment");
             return py::array_t<std::uint8_t>({end - begin, kKeyBytes}, s.key_at(begin));
           })
      .def("keys", [](const Segment& s) { return as_keys(s.keys_in_row_order()); })
      .def("offset", &Segment::offset, py::arg("row"))
      .def_property_readonly("path", [](const Segment& s) { return as_path(s.path()); });
}

void bind_segments(py::module_& m) {
  py::class_<SegmentIndex>(m, "SegmentIndex", "Look-ups in many segments, newest first.")
      .def(py::init([](const std::vector<std::shared_ptr<Segment>>& segments) {
             return std::make_unique<SegmentIndex>(
                 std::vector<std::shared_ptr<const Segment>>(segments.begin(), segments.end()));
           }),
           py::arg("segments"))
      .def(
          "locate",
          [](SegmentIndex& index, const Bytes& keys, std::size_t threads) {
            const std::size_t n = count_keys(keys);
            Numbers source(static_cast<py::ssize_t>(n)), row(static_cast<py::ssize_t>(n));
            std::int64_t *s = source.mutable_data(), *r = row.mutable_data();
            const std::uint8_t* k = keys.data();
            {
              const py::gil_scoped_release release;
              index.locate(k, n, s, r, threads);
            }
            return py::make_tuple(source, row);
          },
          py::arg("keys"), py::arg("threads"),
          "(segment, row) of every key, int64: the first segment that holds it; -1 where none "
          "does.")
      .def(
          "keys",
          [](const SegmentIndex& index, std::size_t threads) {
            std::vector<std::uint8_t> keys;
            {
              const py::gil_scoped_release release;
              keys = index.keys(threads);
            }
            return as_keys(keys);
          },
          py::arg("threads"), "Every key once, (n, 16) uint8, in the order the rows were written.")
      .def("count_keys", &SegmentIndex::count_keys, py::arg("threads"),
           py::call_guard<py::gil_scoped_release>());
  m.def(
      "gather",
      [](const Segments& segments, const Bytes& keys, const Numbers& source, const Numbers& row,
         Bytes out, int item, bool decode, std::size_t threads) {
        require(0 <= item && item <= static_cast<int>(Item::kInt8), "item must be one of four");
        const Request request{keys.data(),      source.data(),           row.data(),
                              count_keys(keys), static_cast<Item>(item), decode};
        const std::size_t row_bytes = check_request(segments, request, source, row, out);
        std::uint8_t* to = out.mutable_data();
        const py::gil_scoped_release release;
        return gather(segments, row_bytes, request, to, threads);
      },
      py::arg("segments"), py::arg("keys"), py::arg("source"), py::arg("row"), py::arg("out"),
      py::arg("item"), py::arg("decode"), py::arg("threads"),
      "Writes the rows that `locate` found to `out`, (n, bytes) uint8: as float32 (`decode`), or "
      "as\n"
      "a tail has them; zeros where the source is no segment. Returns which fail their CRC.\n"
      "Items: 0 float32, 1 float16, 2 bfloat16, 3 int8.");
}

RowFormat row_format(const std::string& dtype, std::size_t dim, std::size_t row_bytes,
                     const std::string& space) {
  return {dtype, dim, row_bytes, dtype == "I8" ? kScaleBytes : 0, space};
}

void bind_merge(py::module_& m) {
  m.def(
      "merge",
      [](const Segments& segments, const Bytes& keys, const Numbers& source, const Numbers& row,
         const std::string& hidden, const std::string& path, const std::string& dtype,
         std::size_t dim, const std::string& space) {
        const Picked picked{segments, keys.data(), source.data(), row.data(), count_keys(keys)};
        const auto n = static_cast<py::ssize_t>(picked.n);
        require(source.size() == n && row.size() == n, "source and row must have one number a key");
        require(!segments.empty(), "segments must not be empty");
        const std::size_t scale = dtype == "I8" ? kScaleBytes : 0;
        const std::size_t row_bytes = segments[0]->row_bytes() + scale;
        for (const Segment* s : segments)
          require(s && s->row_bytes() + scale == row_bytes && s->has_scales() == (scale > 0),
                  "segments must have rows of one size");
        for (std::size_t i = 0; i < picked.n; ++i) {
          const auto s = static_cast<std::size_t>(picked.source[i]);
          require(
              s < segments.size() && static_cast<std::size_t>(picked.row[i]) < segments[s]->size(),
              "rows must lie in their segment");
        }
        const py::gil_scoped_release release;
        merge(picked, row_format(dtype, dim, row_bytes, space), hidden, path);
      },
      py::arg("segments"), py::arg("keys"), py::arg("source"), py::arg("row"), py::arg("hidden"),
      py::arg("path"), py::arg("dtype"), py::arg("dim"), py::arg("space"),
      "Writes rows of segments as a new segment. OSError if one fails its checksum.");
}

}  // namespace

namespace pyfeat {

void bind_store(py::module_& m) {
  // OSError(errno, message, path), so that `except OSError` and `error.filename` work as usual.
  static py::handle store_error =
      PyErr_NewException("pyfeat._core.StoreError", PyExc_OSError, nullptr);
  m.attr("StoreError") = store_error;
  py::register_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const StoreError& e) {
      py::tuple args = py::make_tuple(e.code(), e.what(), as_path(e.path()));
      PyErr_SetObject(store_error.ptr(), args.ptr());
    }
  });
  m.def(
      "crc32c",
      [](const py::bytes& data, std::uint32_t before) {
        const std::string_view view(data);
        return crc32c(view.data(), view.size(), before);
      },
      py::arg("data"), py::arg("before") = 0, "CRC32C of bytes.");
  m.def(
      "seal",
      [](Tail& tail, const Name& name, const std::string& dtype, std::size_t dim,
         const std::string& space, const std::string& aside) {
        return seal(tail, name, row_format(dtype, dim, tail.row_bytes(), space), aside);
      },
      py::arg("tail"), py::arg("name"), py::arg("dtype"), py::arg("dim"), py::arg("space"),
      py::arg("aside"), py::call_guard<py::gil_scoped_release>());
  bind_merge(m);
  bind_store_files(m);
  bind_tail(m);
  bind_segment(m);
  bind_segments(m);
}

}  // namespace pyfeat
