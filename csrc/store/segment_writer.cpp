#include "segment_writer.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <vector>

#include "crc32c.h"
#include "file.h"
#include "format.h"

namespace pyfeat::store {
namespace {

constexpr std::size_t kWriteBytes = 4 << 20;

struct Columns {
  std::vector<std::uint8_t> keys;    // sorted
  std::vector<std::uint64_t> order;  // row number of each key
  std::vector<std::uint32_t> crcs;   // in row order
};

Columns make_columns(std::size_t n, const Records& records) {
  std::vector<std::uint8_t> keys(n * kKeyBytes);
  Columns c{std::vector<std::uint8_t>(n * kKeyBytes), std::vector<std::uint64_t>(n),
            std::vector<std::uint32_t>(n)};
  for (std::size_t i = 0; i < n; ++i) {
    const Record record = records(i);
    std::memcpy(keys.data() + i * kKeyBytes, record.key, kKeyBytes);
    c.crcs[i] = record.crc;
  }
  const auto key = [&](std::uint64_t i) { return keys.data() + i * kKeyBytes; };
  std::iota(c.order.begin(), c.order.end(), 0);
  std::sort(c.order.begin(), c.order.end(), [&](std::uint64_t a, std::uint64_t b) {
    return Key::load(key(a)) < Key::load(key(b));
  });
  for (std::size_t i = 0; i < n; ++i)
    std::memcpy(c.keys.data() + i * kKeyBytes, key(c.order[i]), kKeyBytes);
  return c;
}

std::string hex(std::uint32_t value) {
  char text[9];
  std::snprintf(text, sizeof text, "%08x", value);
  return text;
}

std::string tensor(const char* name, const std::string& dtype, const std::string& shape,
                   std::uint64_t begin, std::uint64_t end) {
  return std::string(",\"") + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":[" + shape +
         "],\"data_offsets\":[" + std::to_string(begin) + "," + std::to_string(end) + "]}";
}

// The 8-byte length and the JSON of a safetensors file, padded so that the tensors begin at a
// multiple of 64.
std::string make_header(const Columns& c, const RowFormat& format) {
  const std::uint64_t n = c.order.size();
  const std::string rows = std::to_string(n);
  const std::uint64_t keys = n * kKeyBytes, order = keys + n * 8, crcs = order + n * 4;
  const std::uint64_t scales = crcs + n * format.scale_bytes;
  const std::uint64_t end = scales + n * (format.row_bytes - format.scale_bytes);
  std::string json = "{\"__metadata__\":{\"format\":\"pyfeat-segment\",\"version\":\"" +
                     std::to_string(kVersion) + "\",\"space\":\"" + format.space +
                     "\",\"crc32c_keys\":\"" + hex(crc32c(c.keys.data(), c.keys.size())) +
                     "\",\"crc32c_order\":\"" + hex(crc32c(c.order.data(), n * 8)) +
                     "\",\"crc32c_crcs\":\"" + hex(crc32c(c.crcs.data(), n * 4)) + "\"}";
  json += tensor("keys", "U8", rows + "," + std::to_string(kKeyBytes), 0, keys);
  json += tensor("order", "U64", rows, keys, order);
  json += tensor("crcs", "U32", rows, order, crcs);
  if (format.scale_bytes > 0) json += tensor("scales", "F32", rows, crcs, scales);
  json += tensor("rows", format.dtype, rows + "," + std::to_string(format.dim), scales, end);
  json += "}";
  while ((8 + json.size()) % 64 != 0) json += ' ';
  const std::uint64_t length = json.size();
  std::string header(8, '\0');
  std::memcpy(header.data(), &length, 8);
  return header + json;
}

// Appends `size` bytes of each record, those at `where`.
void write_column(File& file, std::size_t n, const Records& records,
                  const std::uint8_t* Record::* where, std::size_t size) {
  std::vector<std::uint8_t> buffer;
  buffer.reserve(kWriteBytes + size);
  for (std::size_t i = 0; i < n; ++i) {
    const std::uint8_t* from = records(i).*where;
    buffer.insert(buffer.end(), from, from + size);
    if (buffer.size() >= kWriteBytes) {
      file.append(buffer.data(), buffer.size());
      buffer.clear();
    }
  }
  if (!buffer.empty()) file.append(buffer.data(), buffer.size());
}

}  // namespace

void write_segment(std::size_t n, const Records& records, const RowFormat& format,
                   const std::string& hidden, const Name& name) {
  const Columns columns = make_columns(n, records);
  const std::string header = make_header(columns, format);
  remove_file(hidden);
  std::string path;
  try {
    File file = File::create(hidden);
    path = name();
    file.append(header.data(), header.size());
    file.append(columns.keys.data(), columns.keys.size());
    file.append(columns.order.data(), columns.order.size() * 8);
    file.append(columns.crcs.data(), columns.crcs.size() * 4);
    if (format.scale_bytes > 0) write_column(file, n, records, &Record::scale, format.scale_bytes);
    write_column(file, n, records, &Record::row, format.row_bytes - format.scale_bytes);
    file.sync();
    rename_file(hidden, path);
  } catch (...) {
    discard_file(hidden);
    throw;
  }
  sync_folder_of(path);
}

}  // namespace pyfeat::store
