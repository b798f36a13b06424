#include "crc32c.h"

#include <array>
#include <cstring>
#ifdef PYFEAT_X86
#include <nmmintrin.h>
#endif

namespace pyfeat::store {
namespace {

constexpr std::uint32_t kReflectedPolynomial = 0x82F63B78;

using Tables = std::array<std::array<std::uint32_t, 256>, 8>;

// tables[k][b]: CRC of byte b followed by k zero bytes, so that eight bytes go in one step.
Tables make_tables() {
  Tables tables{};
  for (std::uint32_t b = 0; b < 256; ++b) {
    std::uint32_t crc = b;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ (crc & 1 ? kReflectedPolynomial : 0);
    tables[0][b] = crc;
  }
  for (std::uint32_t b = 0; b < 256; ++b)
    for (std::size_t k = 1; k < 8; ++k)
      tables[k][b] = (tables[k - 1][b] >> 8) ^ tables[0][tables[k - 1][b] & 0xFF];
  return tables;
}

std::uint32_t by_table(const std::uint8_t* p, std::size_t size, std::uint32_t crc) {
  static const Tables t = make_tables();
  for (; size >= 8; size -= 8, p += 8) {
    std::uint64_t word;
    std::memcpy(&word, p, 8);
    word ^= crc;
    crc = 0;
    for (std::size_t k = 0; k < 8; ++k) crc ^= t[7 - k][(word >> (8 * k)) & 0xFF];
  }
  for (; size > 0; --size, ++p) crc = (crc >> 8) ^ t[0][(crc ^ *p) & 0xFF];
  return crc;
}

#ifdef PYFEAT_X86
__attribute__((target("sse4.2"))) std::uint32_t by_instruction(const std::uint8_t* p,
                                                               std::size_t size,
                                                               std::uint32_t crc) {
  std::uint64_t wide = crc;
  for (; size >= 8; size -= 8, p += 8) {
    std::uint64_t word;
    std::memcpy(&word, p, 8);
    wide = _mm_crc32_u64(wide, word);
  }
  crc = static_cast<std::uint32_t>(wide);
  for (; size > 0; --size, ++p) crc = _mm_crc32_u8(crc, *p);
  return crc;
}
#endif

}  // namespace

std::uint32_t crc32c(const void* data, std::size_t size, std::uint32_t before) {
  const auto* p = static_cast<const std::uint8_t*>(data);
#ifdef PYFEAT_X86
  static const bool has_instruction = __builtin_cpu_supports("sse4.2");
  if (has_instruction) return ~by_instruction(p, size, ~before);
#endif
  return ~by_table(p, size, ~before);
}

}  // namespace pyfeat::store
