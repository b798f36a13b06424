#include <sys/mman.h>

#include <cerrno>
#include <utility>

#include "file.h"

namespace pyfeat::store {

Mapping::Mapping(const File& file, std::uint64_t size) : size_(size) {
  if (size == 0) return;  // mmap refuses an empty range
  void* p = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, file.descriptor(), 0);
  if (p == MAP_FAILED) throw StoreError(errno, "cannot map", file.path());
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

}  // namespace pyfeat::store
