#include "crc32c.h"

#include <array>
#include <cstring>
#ifdef PYFEAT_X86
#include <nmmintrin.h>
#include <wmmintrin.h>
#endif

namespace pyfeat::store {
namespace {

constexpr std::uint32_t kReflectedPolynomial = 0x82F63B78;

// crc * x modulo the polynomial, in reflected bit order: the highest power is the lowest bit.
std::uint32_t times_x(std::uint32_t crc) {
  return (crc >> 1) ^ (crc & 1 ? kReflectedPolynomial : 0);
}

using Tables = std::array<std::array<std::uint32_t, 256>, 8>;

// tables[k][b]: CRC of byte b followed by k zero bytes, so that eight bytes go in one step.
Tables make_tables() {
  Tables tables{};
  for (std::uint32_t b = 0; b < 256; ++b) {
    std::uint32_t crc = b;
    for (int bit = 0; bit < 8; ++bit) crc = times_x(crc);
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
// The instruction takes one word a cycle but three cycles each: three stretches of equal length
// run side by side, and are joined by crc(A B) = crc(A) * x^(8 |B|) + crc(B).
constexpr std::size_t kLongest = 32;  // words in a stretch

// powers[w] = x^(64 w - 33): what shifts a CRC by w words, when the instruction reduces the
// product, 63 bits wide and times x^32, afterwards.
using Powers = std::array<std::uint32_t, 2 * kLongest + 1>;

Powers make_powers() {
  Powers powers{};
  std::uint32_t power = 0x80000000;  // x^0
  for (std::size_t exponent = 0; exponent <= 64 * (2 * kLongest) - 33; ++exponent) {
    if (exponent % 64 == 31) powers[(exponent + 33) / 64] = power;
    power = times_x(power);
  }
  return powers;
}

__attribute__((target("sse4.2,pclmul"))) std::uint64_t product(std::uint64_t crc,
                                                               std::uint32_t power) {
  const __m128i a = _mm_cvtsi64_si128(static_cast<long long>(crc));
  const __m128i b = _mm_cvtsi64_si128(static_cast<long long>(power));
  return static_cast<std::uint64_t>(_mm_cvtsi128_si64(_mm_clmulepi64_si128(a, b, 0)));
}

std::uint64_t word_at(const std::uint8_t* p) {
  std::uint64_t word;
  std::memcpy(&word, p, 8);
  return word;
}

// Copies what it reads to `to`, when kCopies: loads are then not done twice.
template <bool kCopies>
__attribute__((target("sse4.2,pclmul"))) std::uint32_t by_instruction(const std::uint8_t* p,
                                                                      std::size_t size,
                                                                      std::uint32_t crc,
                                                                      std::uint8_t* to) {
  static const Powers powers = make_powers();
  const auto next = [&](std::size_t ahead) {
    const std::uint64_t word = word_at(p + ahead);
    if (kCopies) std::memcpy(to + ahead, &word, 8);
    return word;
  };
  std::uint64_t a = crc;
  while (size >= 3 * 4 * 8) {
    const std::size_t words = size / 24 < kLongest ? size / 24 : kLongest;
    std::uint64_t b = 0, c = 0;
    for (std::size_t i = 0; i < 8 * words; i += 8) {
      a = _mm_crc32_u64(a, next(i));
      b = _mm_crc32_u64(b, next(8 * words + i));
      c = _mm_crc32_u64(c, next(16 * words + i));
    }
    a = _mm_crc32_u64(0, product(a, powers[2 * words]) ^ product(b, powers[words])) ^ c;
    p += 24 * words;
    if (kCopies) to += 24 * words;
    size -= 24 * words;
  }
  std::size_t i = 0;
  for (; i + 8 <= size; i += 8) a = _mm_crc32_u64(a, next(i));
  crc = static_cast<std::uint32_t>(a);
  for (; i < size; ++i) {
    if (kCopies) to[i] = p[i];
    crc = _mm_crc32_u8(crc, p[i]);
  }
  return crc;
}

bool has_instruction() {
  static const bool has = __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("pclmul");
  return has;
}
#endif

}  // namespace

std::uint32_t crc32c(const void* data, std::size_t size, std::uint32_t before) {
  const auto* p = static_cast<const std::uint8_t*>(data);
#ifdef PYFEAT_X86
  if (has_instruction()) return ~by_instruction<false>(p, size, ~before, nullptr);
#endif
  return ~by_table(p, size, ~before);
}

std::uint32_t crc32c_copy(void* to, const void* data, std::size_t size, std::uint32_t before) {
  const auto* p = static_cast<const std::uint8_t*>(data);
#ifdef PYFEAT_X86
  if (has_instruction())
    return ~by_instruction<true>(p, size, ~before, static_cast<std::uint8_t*>(to));
#endif
  std::memcpy(to, data, size);
  return ~by_table(p, size, ~before);
}

}  // namespace pyfeat::store
