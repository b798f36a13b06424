// Files as the store handles them: written through the seam for faults, asked about many at once.
#include "store_files.h"

#include <pybind11/functional.h>
#include <pybind11/numpy.h>

#include "../store/faults.h"
#include "../store/file.h"
#include "../store/file_stats.h"

namespace py = pybind11;
using namespace pyfeat::store;
using pyfeat::as_path;

namespace {

void bind_files(py::module_& m) {
  m.def(
      "replace_file",
      [](const Name& name, const std::string& hidden, const py::bytes& content) {
        const std::string_view view(content);
        const py::gil_scoped_release release;
        replace_file(name, hidden, view.data(), view.size());
      },
      py::arg("name"), py::arg("hidden"), py::arg("content"),
      "Writes `content` to `hidden`, which then takes the name that `name()` gave when it was "
      "there;\n"
      "all or nothing.");
  m.def("make_folder", &make_folder, py::arg("path"), "Makes one folder, unless it is there.");
  m.def("rename_file", &rename_file, py::arg("path"), py::arg("to"), "Also of folders.");
  m.def("remove_file", &remove_file, py::arg("path"), "Also where it is not there.");
  m.def("remove_folder", &remove_folder, py::arg("path"), "It must be empty.");
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

void bind_file_stats(py::module_& m) {
  m.def(
      "stat_files",
      [](const py::bytes& names, std::size_t threads) {
        const std::string_view all(names);
        if (!all.empty() && all.back() != '\0')
          throw std::invalid_argument("names must end in a zero byte each");
        std::vector<const char*> paths;
        for (std::size_t at = 0; at < all.size(); at = all.find('\0', at) + 1)
          paths.push_back(all.data() + at);
        std::vector<FileStat> stats;
        {
          const py::gil_scoped_release release;
          stats = stat_files(paths, threads);
        }
        static_assert(sizeof(FileStat) == 16);
        return py::array_t<std::int64_t>({static_cast<py::ssize_t>(stats.size()), py::ssize_t{2}},
                                         reinterpret_cast<const std::int64_t*>(stats.data()));
      },
      py::arg("names"), py::arg("threads"),
      "(size, mtime_ns) of files, (n, 2) int64, by names that end in a zero byte each; -1 for\n"
      "what is no regular file.");
}

}  // namespace

namespace pyfeat {

pybind11::str as_path(const std::string& path) {
  return py::reinterpret_steal<py::str>(
      PyUnicode_DecodeFSDefaultAndSize(path.data(), static_cast<py::ssize_t>(path.size())));
}

void bind_store_files(py::module_& m) {
  bind_files(m);
  bind_faults(m);
  bind_file_stats(m);
}

}  // namespace pyfeat
