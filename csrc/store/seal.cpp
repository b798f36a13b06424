#include "seal.h"

#include <cstring>
#include <vector>

namespace pyfeat::store {

std::size_t seal(Tail& tail, const Name& name, const RowFormat& format, const std::string& aside) {
  const std::vector<std::int64_t> records = tail.newest_records();
  const auto record = [&](std::size_t i) {
    const std::uint8_t* key = tail.record(records[i]);
    const std::uint8_t* row = key + kKeyBytes;
    std::uint32_t crc;
    std::memcpy(&crc, row + format.row_bytes, sizeof crc);
    return Record{key, row, row + format.scale_bytes, crc};
  };
  // The tail's lock makes the hidden name ours alone.
  if (!records.empty())
    write_segment(records.size(), record, format, tail.path() + ".seal.tmp", name);
  if (aside.empty()) {
    remove_file(tail.path());
  } else {
    rename_file(tail.path(), aside);
  }
  return records.size();
}

}  // namespace pyfeat::store
