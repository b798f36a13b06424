// Test seam: what is done to the disk can be made to fail, and is written down when asked for.
// Without a test an operation costs one atomic addition and one look at a flag.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace pyfeat::store {

// Of an append that fails: half of its bytes are written before.
constexpr std::uint64_t kHalf = ~std::uint64_t{0};

// The n-th operation from now fails with `code`, an append after writing its first `kept` bytes,
// and so does every one after it. n = 0: none does.
void fail_from_operation(std::uint64_t n, int code, std::uint64_t kept);
// Only the n-th operation from now fails.
void fail_operation(std::uint64_t n, int code, std::uint64_t kept);
// Operations since the process began.
std::uint64_t operation_count();

// What happened to the disk. `failed`: with nothing changed, but for the `bytes` of an append.
struct Operation {
  enum class Kind {
    kCreate,
    kAppend,
    kTruncate,
    kSync,
    kRename,
    kRemove,
    kMakeFolder,
    kSyncFolder
  };
  Kind kind;
  bool failed;
  std::string path;
  std::string to;          // of a rename
  std::uint64_t size = 0;  // of a truncation
  std::string bytes;       // of an append
};

// Begins a new record of every operation, or ends it.
void record_operations(bool on);
std::vector<Operation> recorded_operations();

// One operation while it is done: made before it, told by `done` that it was done.
class Step {
 public:
  Step(Operation::Kind kind, const std::string& path, const std::string& to = "");
  ~Step();
  Step(const Step&) = delete;
  Step& operator=(const Step&) = delete;

  // errno value with which it must fail; 0: it may go on.
  int failure() const { return failure_; }
  // Bytes of an append of `size` that come before its failure.
  std::size_t kept(std::size_t size) const;
  void wrote(const void* data, std::size_t size);
  void cut(std::uint64_t size);
  void done() { failed_ = false; }

 private:
  int failure_ = 0;
  std::uint64_t kept_ = kHalf;
  bool failed_ = true;
  std::shared_ptr<Operation> record_;  // null when nobody asked for it
};

}  // namespace pyfeat::store
