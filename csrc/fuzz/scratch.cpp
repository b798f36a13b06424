#include "scratch.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>

namespace pyfeat::fuzz {

std::uint64_t Input::number(std::size_t bytes) {
  std::uint64_t value = 0;
  const std::size_t here = bytes < size_ ? bytes : size_;
  if (here != 0) std::memcpy(&value, data_, here);
  data_ += here;
  size_ -= here;
  return value;
}

const std::string& scratch_folder() {
  struct Folder {
    Folder() {
      const bool has_memory = std::filesystem::is_directory("/dev/shm");
      path = std::string(has_memory ? "/dev/shm" : "/tmp") + "/pyfeat-fuzz-XXXXXX";
      must(::mkdtemp(path.data()) != nullptr, "a folder for the files can be made");
    }
    ~Folder() { std::filesystem::remove_all(path); }
    std::string path;
  };
  static const Folder folder;
  return folder.path;
}

void write_file(const std::string& path, const std::vector<std::uint8_t>& content,
                std::size_t size) {
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(content.data()), static_cast<std::streamsize>(size));
  must(file.flush().good(), "a file can be written");
}

std::vector<std::uint8_t> read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

std::uint32_t slow_crc(const std::uint8_t* data, std::size_t size, std::uint32_t before) {
  std::uint32_t crc = ~before;
  for (std::size_t i = 0; i < size; ++i) {
    crc ^= data[i];
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82F63B78u : 0u);
  }
  return ~crc;
}

void must(bool holds, const char* rule) {
  if (holds) return;
  std::fprintf(stderr, "does not hold: %s\n", rule);
  std::abort();
}

}  // namespace pyfeat::fuzz
