// Bytes of a store on disk. docs/store_format.md is the same in prose, with a worked example.
// All integers are little-endian.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace pyfeat::store {

constexpr std::size_t kKeyBytes = 16;
constexpr std::size_t kScaleBytes = 4;
constexpr std::size_t kFingerprintBytes = 32;
constexpr std::uint32_t kVersion = 1;
// First byte outside ASCII and a line end inside: damage by a text-mode copy shows at once.
constexpr char kTailMagic[8] = {'\x93', 'P', 'F', 'T', 'A', 'I', 'L', '\n'};

// A tail file is this header and then records of one size:
//   key (16 bytes) | row (row_bytes) | CRC32C of key and row (4 bytes)
// The row of an int8 space is its scale, a float32, and then the codes.
struct TailHeader {
  char magic[8];
  std::uint32_t version;
  std::uint32_t row_bytes;
  std::uint8_t fingerprint[kFingerprintBytes];
  std::uint8_t reserved[12];
  std::uint32_t crc;  // CRC32C of the 60 bytes before it
};
static_assert(sizeof(TailHeader) == 64);
static_assert(offsetof(TailHeader, fingerprint) == 16);
static_assert(offsetof(TailHeader, crc) == 60);

constexpr std::size_t record_bytes(std::size_t row_bytes) { return kKeyBytes + row_bytes + 4; }

// Keys compare as 16 unsigned bytes, that is, as two big-endian integers.
struct Key {
  std::uint64_t high;
  std::uint64_t low;

  static Key load(const std::uint8_t* bytes) {
    std::uint64_t high, low;
    std::memcpy(&high, bytes, 8);
    std::memcpy(&low, bytes + 8, 8);
    return {__builtin_bswap64(high), __builtin_bswap64(low)};
  }
  bool operator==(const Key& o) const { return high == o.high && low == o.low; }
  bool operator<(const Key& o) const { return high != o.high ? high < o.high : low < o.low; }
};

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the format is mapped, not decoded");

}  // namespace pyfeat::store
