// CRC32C (Castagnoli, polynomial 0x1EDC6F41 reflected), as in iSCSI (RFC 3720) and ext4.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pyfeat::store {

// CRC32C of `size` bytes; `before` is the CRC of the bytes that come before them.
std::uint32_t crc32c(const void* data, std::size_t size, std::uint32_t before = 0);
// The same, and copies the bytes to `to` on the way.
std::uint32_t crc32c_copy(void* to, const void* data, std::size_t size, std::uint32_t before);

}  // namespace pyfeat::store
