// The Python face of the store: numpy arrays in, numpy arrays out, the GIL released while it works.
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "../store/crc32c.h"
#include "../store/faults.h"
#include "../store/file_stats.h"
#include "../store/seal.h"
#include "../store/segment.h"
#include "../store/segment_index.h"
#include "../store/segments.h"
#include "../store/tail.h"
#include "bindings.h"

namespace py = pybind11;
using namespace pyfeat::store;
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

// Names of files are bytes: what is no UTF-8 becomes a str as everywhere in Python.
py::str as_path(const std::string& path) {
  return py::reinterpret_steal<py::str>(
      PyUnicode_DecodeFSDefaultAndSize(path.data(), static_cast<py::ssize_t>(path.size())));
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

void bind_files(py::module_& m) {
  m.def(
      "replace_file",
      [](const std::string& path, const std::string& hidden, const py::bytes& content) {
        const std::string_view view(content);
        const py::gil_scoped_release release;
        replace_file(path, hidden, view.data(), view.size());
      },
      py::arg("path"), py::arg("hidden"), py::arg("content"),
      "Writes `content` to `hidden`, which then takes the name `path`; all or nothing.");
  m.def("make_folder", &make_folder, py::arg("path"), "Makes one folder, unless it is there.");
  m.def("sync_folder_of", &sync_folder_of, py::arg("path"),
        "Returns when the name of a file, or of a folder, is on the disk.");
}

// (kind, failed, path, what): the new name of a rename, the size of a cut, the bytes of an append.
py::tuple as_tuple(const Operation& o) {
  using Kind = Operation::Kind;
  static constexpr const char* kNames[] = {"create", "append", "truncate",    "sync",
                                           "rename", "remove", "make_folder", "sync_folder"};
  py::object what = py::none();
  if (o.kind == Kind::kRename) what = as_path(o.to);
  if (o.kind == Kind::kTruncate) what = py::int_(o.size);
  if (o.kind == Kind::kAppend) what = py::bytes(o.bytes);
  return py::make_tuple(kNames[static_cast<int>(o.kind)], o.failed, as_path(o.path), what);
}

void bind_faults(py::module_& m) {
  m.def("fail_from_operation", &fail_from_operation, py::arg("n"), py::arg("code"),
        py::arg("kept") = kHalf,
        "Test seam: the n-th disk operation from now and all after it fail; 0 switches it off. An "
        "append that fails keeps `kept` bytes, by default half.");
  m.def("fail_operation", &fail_operation, py::arg("n"), py::arg("code"), py::arg("kept") = kHalf,
        "Test seam: only the n-th disk operation from now fails.");
  m.def("operation_count", &operation_count, "Disk operations since the process began.");
  m.def("record_operations", &record_operations, py::arg("on"),
        "Test seam: begins a new record of all disk operations, or ends it.");
  m.def(
      "recorded_operations",
      [] {
        py::list all;
        for (const Operation& o : recorded_operations()) all.append(as_tuple(o));
        return all;
      },
      "(kind, failed, path, what) of every recorded operation.");
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
                       std::uint64_t rows, std::uint64_t scales) {
             return Segment(path, n, row_bytes, {keys, order, crcs, scales, rows});
           }),
           py::arg("path"), py::arg("n"), py::arg("row_bytes"), py::arg("keys"), py::arg("order"),
           py::arg("crcs"), py::arg("rows"), py::arg("scales") = 0)
      .def("find", &find<const Segment>, py::arg("keys"))
      .def("damaged_rows", &Segment::damaged_rows, py::call_guard<py::gil_scoped_release>())
      .def("crc_of", &Segment::crc_of, py::call_guard<py::gil_scoped_release>())
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
          "does.");
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

void bind_file_stats(py::module_& m) {
  m.def(
      "stat_files",
      [](const py::bytes& names, std::size_t threads) {
        const std::string_view all(names);
        require(all.empty() || all.back() == '\0', "names must end in a zero byte each");
        std::vector<const char*> paths;
        for (std::size_t at = 0; at < all.size(); at = all.find('\0', at) + 1)
          paths.push_back(all.data() + at);
        std::vector<FileStat> stats;
        {
          const py::gil_scoped_release release;
          stats = stat_files(paths, threads);
        }
        static_assert(sizeof(FileStat) == 16);
        return Numbers({static_cast<py::ssize_t>(stats.size()), py::ssize_t{2}},
                       reinterpret_cast<const std::int64_t*>(stats.data()));
      },
      py::arg("names"), py::arg("threads"),
      "(size, mtime_ns) of files, (n, 2) int64, by names that end in a zero byte each; -1 for\n"
      "what is no regular file.");
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
  m.def("seal", &seal, py::arg("tail"), py::arg("path"), py::arg("dtype"), py::arg("dim"),
        py::arg("space"), py::arg("aside"), py::call_guard<py::gil_scoped_release>());
  bind_files(m);
  bind_faults(m);
  bind_tail(m);
  bind_segment(m);
  bind_segments(m);
  bind_file_stats(m);
}

}  // namespace pyfeat
