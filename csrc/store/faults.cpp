#include "faults.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <mutex>

namespace pyfeat::store {
namespace {

std::atomic<std::uint64_t> operations{0};
std::atomic<bool> watched{false};  // a fault is set, or operations are recorded

std::mutex guard;  // of all below
std::uint64_t first_failing = 0, last_failing = 0;
int failure_code = EIO;
std::uint64_t bytes_kept = kHalf;
bool recording = false;
std::vector<std::shared_ptr<Operation>> records;

void set_fault(std::uint64_t n, bool lasting, int code, std::uint64_t kept) {
  const std::lock_guard<std::mutex> lock(guard);
  first_failing = n == 0 ? 0 : operations.load() + n;
  last_failing = lasting ? ~std::uint64_t{0} : first_failing;
  failure_code = code;
  bytes_kept = kept;
  watched.store(first_failing != 0 || recording);
}

}  // namespace

void fail_from_operation(std::uint64_t n, int code, std::uint64_t kept) {
  set_fault(n, true, code, kept);
}

void fail_operation(std::uint64_t n, int code, std::uint64_t kept) {
  set_fault(n, false, code, kept);
}

std::uint64_t operation_count() { return operations.load(); }

void record_operations(bool on) {
  const std::lock_guard<std::mutex> lock(guard);
  if (on) records.clear();
  recording = on;
  watched.store(first_failing != 0 || recording);
}

std::vector<Operation> recorded_operations() {
  const std::lock_guard<std::mutex> lock(guard);
  std::vector<Operation> copy;
  for (const auto& record : records) copy.push_back(*record);
  return copy;
}

Step::Step(Operation::Kind kind, const std::string& path, const std::string& to) {
  const std::uint64_t mine = operations.fetch_add(1) + 1;
  if (!watched.load(std::memory_order_relaxed)) return;
  const std::lock_guard<std::mutex> lock(guard);
  if (first_failing != 0 && first_failing <= mine && mine <= last_failing) {
    failure_ = failure_code;
    kept_ = bytes_kept;
  }
  if (recording) {
    record_ = std::make_shared<Operation>(Operation{kind, true, path, to, 0, ""});
    records.push_back(record_);
  }
}

Step::~Step() {
  if (!record_) return;
  const std::lock_guard<std::mutex> lock(guard);
  record_->failed = failed_;
}

std::size_t Step::kept(std::size_t size) const {
  if (kept_ == kHalf) return size / 2;
  return static_cast<std::size_t>(std::min<std::uint64_t>(kept_, size));
}

void Step::wrote(const void* data, std::size_t size) {
  if (!record_) return;
  const std::lock_guard<std::mutex> lock(guard);
  record_->bytes.append(static_cast<const char*>(data), size);
}

void Step::cut(std::uint64_t size) {
  if (!record_) return;
  const std::lock_guard<std::mutex> lock(guard);
  record_->size = size;
}

}  // namespace pyfeat::store
