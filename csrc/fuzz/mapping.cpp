// Mappings that lie between guards, for the sanitizers to see a step outside: with an ordinary one
// it may end in another file's pages. Takes the place of csrc/store/mapping.cpp.
#include <sanitizer/asan_interface.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "../store/file.h"

namespace pyfeat::store {
namespace {

constexpr std::uint64_t kGuard = 1 << 20;

std::uint64_t in_pages(std::uint64_t size) {
  const auto page = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  return (size + page - 1) / page * page;
}

}  // namespace

Mapping::Mapping(const File& file, std::uint64_t size) : size_(size) {
  if (size == 0) return;
  const std::uint64_t pages = in_pages(size);
  const int anywhere = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* all = ::mmap(nullptr, pages + 2 * kGuard, PROT_NONE, anywhere, -1, 0);
  if (all == MAP_FAILED) throw StoreError(errno, "cannot map", file.path());
  auto* data = static_cast<std::uint8_t*>(all) + kGuard;
  if (::mmap(data, size, PROT_READ, MAP_SHARED | MAP_FIXED, file.descriptor(), 0) == MAP_FAILED)
    throw StoreError(errno, "cannot map", file.path());
  ASAN_POISON_MEMORY_REGION(data + size, pages - size);
  data_ = data;
}

Mapping::Mapping(Mapping&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Mapping& Mapping::operator=(Mapping&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

Mapping::~Mapping() {
  if (data_ == nullptr) return;
  const std::uint64_t pages = in_pages(size_);
  auto* data = const_cast<std::uint8_t*>(data_);
  ASAN_UNPOISON_MEMORY_REGION(data + size_, pages - size_);
  ::munmap(data - kGuard, pages + 2 * kGuard);
}

}  // namespace pyfeat::store
