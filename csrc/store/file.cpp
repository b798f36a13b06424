#include "file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "faults.h"

namespace pyfeat::store {
namespace {

[[noreturn]] void fail(int code, const std::string& what, const std::string& path) {
  throw StoreError(code, what, path);
}

// Fails where a test says so, and where `call` gives -1.
template <typename Call>
void operation(Operation::Kind kind, const char* what, const std::string& path, const Call& call) {
  Step step(kind, path);
  if (step.failure()) fail(step.failure(), what, path);
  if (call() != 0) fail(errno, what, path);
  step.done();
}

int open_or_throw(const std::string& path, int flags, const char* what) {
  int fd;
  do {
    fd = ::open(path.c_str(), flags | O_CLOEXEC, 0666);
  } while (fd < 0 && errno == EINTR);
  if (fd < 0) fail(errno, what, path);
  return fd;
}

// Makes a file that is locked as long as it is open. Who clears up what dead writers left removes
// only what it has locked: what it took before we did has lost its name by now.
File create_locked(const std::string& path) {
  for (;;) {
    File file = File::create(path);
    file.lock_if_possible();
    if (file.still_has_its_name()) return file;
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
  Step step(Operation::Kind::kCreate, path);
  if (step.failure()) fail(step.failure(), "cannot create", path);
  File file(open_or_throw(path, O_RDWR | O_APPEND | O_CREAT | O_EXCL, "cannot create"), path);
  step.done();
  return file;
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
  Step step(Operation::Kind::kAppend, path_);
  const auto* p = static_cast<const std::uint8_t*>(data);
  if (step.failure()) size = step.kept(size);
  while (size > 0) {
    const ssize_t written = ::write(fd_, p, size);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail(errno, "cannot write", path_);
    step.wrote(p, static_cast<std::size_t>(written));
    p += written;
    size -= static_cast<std::size_t>(written);
  }
  if (step.failure()) fail(step.failure(), "cannot write", path_);
  step.done();
}

void File::reserve(std::uint64_t from, std::uint64_t size) {
  (void)::fallocate(fd_, FALLOC_FL_KEEP_SIZE, static_cast<off_t>(from), static_cast<off_t>(size));
}

void File::truncate(std::uint64_t size) {
  Step step(Operation::Kind::kTruncate, path_);
  step.cut(size);
  if (step.failure()) fail(step.failure(), "cannot truncate", path_);
  if (::ftruncate(fd_, static_cast<off_t>(size)) != 0) fail(errno, "cannot truncate", path_);
  step.done();
}

void File::sync() {
  operation(Operation::Kind::kSync, "cannot sync", path_, [&] { return ::fsync(fd_); });
}

void File::sync_data() {
  operation(Operation::Kind::kSync, "cannot sync", path_, [&] { return ::fdatasync(fd_); });
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

void File::lock_if_possible() {
  while (::flock(fd_, LOCK_EX) != 0 && errno == EINTR) {
  }
}

void File::unlock() { (void)::flock(fd_, LOCK_UN); }

bool File::still_has_its_name() const {
  struct stat mine, named;
  if (::fstat(fd_, &mine) != 0) fail(errno, "cannot stat", path_);
  if (::stat(path_.c_str(), &named) != 0) return false;
  return mine.st_ino == named.st_ino && mine.st_dev == named.st_dev;
}

void rename_file(const std::string& from, const std::string& to) {
  Step step(Operation::Kind::kRename, from, to);
  if (step.failure()) fail(step.failure(), "cannot rename", from);
  if (::rename(from.c_str(), to.c_str()) != 0) fail(errno, "cannot rename to " + to, from);
  step.done();
}

void remove_file(const std::string& path) {
  operation(Operation::Kind::kRemove, "cannot remove", path,
            [&] { return ::unlink(path.c_str()) != 0 && errno != ENOENT ? -1 : 0; });
}

void discard_file(const std::string& path) noexcept {
  Step step(Operation::Kind::kRemove, path);
  if (!step.failure() && ::unlink(path.c_str()) == 0) step.done();
}

void make_folder(const std::string& path) {
  operation(Operation::Kind::kMakeFolder, "cannot make a folder", path, [&] {
    if (::mkdir(path.c_str(), 0777) == 0) return 0;
    const int code = errno;
    struct stat there;
    const bool is_folder = ::stat(path.c_str(), &there) == 0 && S_ISDIR(there.st_mode);
    errno = code;
    return code == EEXIST && is_folder ? 0 : -1;
  });
}

void remove_folder(const std::string& path) {
  operation(Operation::Kind::kRemove, "cannot remove", path,
            [&] { return ::rmdir(path.c_str()) != 0 && errno != ENOENT ? -1 : 0; });
}

void sync_folder_of(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : path.substr(0, slash + 1);
  const File handle = File::open_for_reading(folder);
  operation(Operation::Kind::kSyncFolder, "cannot sync", folder,
            [&] { return ::fsync(handle.descriptor()); });
}

void replace_file(const Name& name, const std::string& hidden, const void* content,
                  std::size_t size) {
  std::string path;
  try {
    File file = create_locked(hidden);
    path = name();
    file.append(content, size);
    file.sync();
    rename_file(hidden, path);
    file.unlock();
  } catch (...) {
    discard_file(hidden);
    throw;
  }
  sync_folder_of(path);
}

}  // namespace pyfeat::store
