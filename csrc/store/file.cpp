#include "file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <utility>

namespace pyfeat::store {
namespace {

std::atomic<std::uint64_t> operations{0};
std::atomic<std::uint64_t> first_failing{0};
std::atomic<int> failure_code{EIO};

// Counts one operation; true when it is to fail.
bool operation_fails() {
  const std::uint64_t mine = operations.fetch_add(1) + 1;
  const std::uint64_t failing = first_failing.load();
  return failing != 0 && mine >= failing;
}

[[noreturn]] void fail(int code, const std::string& what, const std::string& path) {
  throw StoreError(code, what, path);
}

void operation(const std::string& what, const std::string& path) {
  if (operation_fails()) fail(failure_code.load(), what, path);
}

int open_or_throw(const std::string& path, int flags, const char* what) {
  int fd;
  do {
    fd = ::open(path.c_str(), flags | O_CLOEXEC, 0666);
  } while (fd < 0 && errno == EINTR);
  if (fd < 0) fail(errno, what, path);
  return fd;
}

void write_all(int fd, const std::uint8_t* p, std::size_t size, const std::string& path) {
  while (size > 0) {
    const ssize_t done = ::write(fd, p, size);
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) fail(errno, "cannot write", path);
    p += done;
    size -= static_cast<std::size_t>(done);
  }
}

}  // namespace

StoreError::StoreError(int code, const std::string& what, const std::string& path)
    : std::runtime_error(what + " (" + std::strerror(code) + ")"), code_(code), path_(path) {}

File File::open_for_reading(const std::string& path) {
  return File(open_or_throw(path, O_RDONLY, "cannot open"), path);
}

File File::open_for_recovery(const std::string& path) {
  return File(open_or_throw(path, O_RDWR | O_APPEND, "cannot open for recovery"), path);
}

File File::create(const std::string& path) {
  operation("cannot create", path);
  return File(open_or_throw(path, O_RDWR | O_APPEND | O_CREAT | O_EXCL, "cannot create"), path);
}

File::File(File&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)), path_(std::move(other.path_)) {}

File& File::operator=(File&& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(path_, other.path_);
  return *this;
}

File::~File() {
  if (fd_ >= 0) ::close(fd_);
}

void File::append(const void* data, std::size_t size) {
  const auto* p = static_cast<const std::uint8_t*>(data);
  if (operation_fails()) {
    write_all(fd_, p, size / 2, path_);
    fail(failure_code.load(), "cannot write", path_);
  }
  write_all(fd_, p, size, path_);
}

void File::reserve(std::uint64_t from, std::uint64_t size) {
  (void)::fallocate(fd_, FALLOC_FL_KEEP_SIZE, static_cast<off_t>(from), static_cast<off_t>(size));
}

void File::truncate(std::uint64_t size) {
  operation("cannot truncate", path_);
  if (::ftruncate(fd_, static_cast<off_t>(size)) != 0) fail(errno, "cannot truncate", path_);
}

void File::sync() {
  operation("cannot sync", path_);
  if (::fsync(fd_) != 0) fail(errno, "cannot sync", path_);
}

void File::sync_data() {
  operation("cannot sync", path_);
  if (::fdatasync(fd_) != 0) fail(errno, "cannot sync", path_);
}

std::uint64_t File::size() const {
  struct stat s;
  if (::fstat(fd_, &s) != 0) fail(errno, "cannot stat", path_);
  return static_cast<std::uint64_t>(s.st_size);
}

bool File::try_lock() {
  int done;
  do {
    done = ::flock(fd_, LOCK_EX | LOCK_NB);
  } while (done != 0 && errno == EINTR);
  if (done == 0) return true;
  if (errno == EWOULDBLOCK) return false;
  fail(errno, "cannot lock", path_);
}

bool File::still_has_its_name() const {
  struct stat mine, named;
  if (::fstat(fd_, &mine) != 0) fail(errno, "cannot stat", path_);
  if (::stat(path_.c_str(), &named) != 0) return false;
  return mine.st_ino == named.st_ino && mine.st_dev == named.st_dev;
}

Mapping::Mapping(const File& file, std::uint64_t size) : size_(size) {
  if (size == 0) return;  // mmap refuses an empty range
  void* p = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, file.descriptor(), 0);
  if (p == MAP_FAILED) fail(errno, "cannot map", file.path());
  data_ = static_cast<const std::uint8_t*>(p);
}

Mapping::Mapping(Mapping&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Mapping& Mapping::operator=(Mapping&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

Mapping::~Mapping() {
  if (data_ != nullptr) ::munmap(const_cast<std::uint8_t*>(data_), size_);
}

void rename_file(const std::string& from, const std::string& to) {
  operation("cannot rename", from);
  if (::rename(from.c_str(), to.c_str()) != 0) fail(errno, "cannot rename to " + to, from);
}

void remove_file(const std::string& path) {
  operation("cannot remove", path);
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) fail(errno, "cannot remove", path);
}

void remove_folder(const std::string& path) {
  operation("cannot remove", path);
  if (::rmdir(path.c_str()) != 0 && errno != ENOENT) fail(errno, "cannot remove", path);
}

void sync_folder_of(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : path.substr(0, slash + 1);
  File handle = File::open_for_reading(folder);
  handle.sync();
}

void fail_from_operation(std::uint64_t n, int code) {
  failure_code.store(code);
  first_failing.store(n == 0 ? 0 : operations.load() + n);
}

std::uint64_t operation_count() { return operations.load(); }

}  // namespace pyfeat::store
