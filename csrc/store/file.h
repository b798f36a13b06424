// The one door to the disk. Everything the store writes goes through here, so that a test can
// make the n-th operation fail and see what is left (faults.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <utility>

namespace pyfeat::store {

// An operation on a path failed; `code` is an errno value.
class StoreError : public std::runtime_error {
 public:
  StoreError(int code, const std::string& what, const std::string& path);
  int code() const { return code_; }
  const std::string& path() const { return path_; }

 private:
  int code_;
  std::string path_;
};

// An open file. Closes itself; not copyable. Every method throws StoreError.
class File {
 public:
  static File open_for_reading(const std::string& path);
  static File open_for_recovery(const std::string& path);  // read and write, must exist
  static File create(const std::string& path);             // read and write, must not exist

  File(File&& other) noexcept;
  File& operator=(File&& other) noexcept;
  ~File();

  // Adds bytes at the end. When it throws, some of them may be in the file.
  void append(const void* data, std::size_t size);
  // Asks for room behind the end of the file, which stays where it is. A file system that has none,
  // or knows no such thing, is not an error: the append says so, if it must.
  void reserve(std::uint64_t from, std::uint64_t size);
  void truncate(std::uint64_t size);
  void sync();
  // As `sync`, without what is not needed to read the bytes: the time of the change.
  void sync_data();
  std::uint64_t size() const;
  // Takes the writer's lock without waiting. False: somebody else holds it.
  bool try_lock();
  // Takes the lock once nobody else holds it. A file system without locks gives none.
  void lock_if_possible();
  // Gives the lock back: a child that was forked meanwhile would hold it on.
  void unlock();
  // False once the file was removed or another file took its name.
  bool still_has_its_name() const;
  // Gives the open file another name, the one it just got on disk.
  File renamed(std::string path) && { return File(std::exchange(fd_, -1), std::move(path)); }
  const std::string& path() const { return path_; }
  int descriptor() const { return fd_; }

 private:
  File(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}
  int fd_;
  std::string path_;
};

// A read-only mapping of the first `size` bytes of a file. Stays valid after the file is closed
// or removed.
class Mapping {
 public:
  Mapping() = default;
  Mapping(const File& file, std::uint64_t size);
  Mapping(Mapping&& other) noexcept;
  Mapping& operator=(Mapping&& other) noexcept;
  ~Mapping();
  const std::uint8_t* data() const { return data_; }
  std::uint64_t size() const { return size_; }

 private:
  const std::uint8_t* data_ = nullptr;
  std::uint64_t size_ = 0;
};

// Says what a file is to be called. It is asked once the hidden file is there: who finds none knows
// that whatever is written later gets a later name.
using Name = std::function<std::string()>;

void rename_file(const std::string& from, const std::string& to);
void remove_file(const std::string& path);
void remove_folder(const std::string& path);  // must be empty
// Removes, if it can, what was not finished: no harm where it stays, but room on a full disk.
void discard_file(const std::string& path) noexcept;
// Makes one folder; one that is there is fine. Its name is on the disk after `sync_folder_of` it.
void make_folder(const std::string& path);
void sync_folder_of(const std::string& path);
// A crash leaves the old file, or none, or the new one: `content` is written to `hidden` and
// synced, which then takes its name, and the folder is synced. Until it has its name, `hidden` is
// locked by its writer.
void replace_file(const Name& name, const std::string& hidden, const void* content,
                  std::size_t size);

}  // namespace pyfeat::store
