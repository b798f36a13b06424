// CRC32C (Castagnoli, polynomial 0x1EDC6F41 reflected), as in iSCSI (RFC 3720) and ext4.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pyfeat::store {

// CRC32C of `size` bytes; `before` is the CRC of the bytes that come before them.
std::uint32_t crc32c(const void* data, std::size_t size, std::uint32_t before = 0);

}  // namespace pyfeat::store
