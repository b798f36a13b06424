// What the fuzz targets share: files of their own in memory, and a check that ends the process.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace pyfeat::fuzz {

// Bytes of an input, taken from the front. Zeros after its end.
class Input {
 public:
  Input(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {}
  std::uint8_t byte() { return static_cast<std::uint8_t>(number(1)); }
  std::uint64_t number(std::size_t bytes);
  std::vector<std::uint8_t> rest() const { return {data_, data_ + size_}; }

 private:
  const std::uint8_t* data_;
  std::size_t size_;
};

// A folder that is removed, with its files, when the process ends.
const std::string& scratch_folder();
void write_file(const std::string& path, const std::vector<std::uint8_t>& content,
                std::size_t size);
std::vector<std::uint8_t> read_file(const std::string& path);

// CRC32C bit by bit, to judge the fast one by.
std::uint32_t slow_crc(const std::uint8_t* data, std::size_t size, std::uint32_t before = 0);

// Ends the process, with the rule that does not hold, for the fuzzer to keep the input.
void must(bool holds, const char* rule);

}  // namespace pyfeat::fuzz
