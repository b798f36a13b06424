#include "tail.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "crc32c.h"

namespace pyfeat::store {
namespace {

// Records are made and written in pieces that stay in the second-level cache.
constexpr std::size_t kBytesPerWrite = 256 << 10;
// Room is found for a share of what there is, in a tail that has so much.
constexpr std::uint64_t kReservedFrom = 16 << 20;
constexpr std::uint64_t kReservedShare = 32;
constexpr std::uint64_t kReservedMost = 4 << 20;

TailHeader make_header(std::size_t row_bytes, const std::uint8_t* fingerprint) {
  TailHeader h{};
  std::memcpy(h.magic, kTailMagic, sizeof h.magic);
  h.version = kVersion;
  h.row_bytes = static_cast<std::uint32_t>(row_bytes);
  std::memcpy(h.fingerprint, fingerprint, kFingerprintBytes);
  h.crc = crc32c(&h, offsetof(TailHeader, crc));
  return h;
}

bool record_is_good(const std::uint8_t* record, std::size_t row_bytes) {
  std::uint32_t stored;
  std::memcpy(&stored, record + kKeyBytes + row_bytes, 4);
  return crc32c(record, kKeyBytes + row_bytes) == stored;
}

}  // namespace

Tail::Tail(File file, std::size_t row_bytes)
    : file_(std::move(file)), row_bytes_(row_bytes), end_(sizeof(TailHeader)) {}

std::unique_ptr<Tail> Tail::create(const std::string& path, std::size_t row_bytes,
                                   const std::uint8_t* fingerprint) {
  const std::string hidden = path + ".tmp";
  File file = File::create(hidden);
  try {
    if (!file.try_lock()) throw StoreError(EWOULDBLOCK, "cannot lock a new file", hidden);
    const TailHeader header = make_header(row_bytes, fingerprint);
    file.append(&header, sizeof header);
    rename_file(hidden, path);
  } catch (const StoreError&) {
    discard_file(hidden);
    throw;
  }
  // The lock belongs to the open file, so it goes with it through the rename.
  return std::unique_ptr<Tail>(new Tail(std::move(file).renamed(path), row_bytes));
}

std::unique_ptr<Tail> Tail::open(const std::string& path, std::size_t row_bytes) {
  std::unique_ptr<Tail> tail(new Tail(File::open_for_reading(path), row_bytes));
  tail->scan();
  return tail;
}

std::unique_ptr<Tail> Tail::adopt(const std::string& path, std::size_t row_bytes) {
  File file = File::open_for_recovery(path);
  if (!file.try_lock() || !file.still_has_its_name()) return nullptr;
  std::unique_ptr<Tail> tail(new Tail(std::move(file), row_bytes));
  tail->scan();
  return tail;
}

void Tail::append(const std::uint8_t* keys, const std::uint8_t* rows, std::size_t n) {
  const std::size_t step = std::max<std::size_t>(1, kBytesPerWrite / record_bytes(row_bytes_));
  std::lock_guard<std::mutex> guard(mutex_);
  if (broken_) throw StoreError(EIO, "takes no more rows after a failed write", path());
  for (std::size_t i = 0; i < n; i += step)
    append_some(keys + i * kKeyBytes, rows + i * row_bytes_, std::min(step, n - i));
}

void Tail::append_some(const std::uint8_t* keys, const std::uint8_t* rows, std::size_t n) {
  const std::size_t size = record_bytes(row_bytes_);
  if (records_.size() < n * size) records_.resize(n * size);
  for (std::size_t i = 0; i < n; ++i) {
    std::uint8_t* r = records_.data() + i * size;
    std::memcpy(r, keys + i * kKeyBytes, kKeyBytes);
    const std::uint32_t crc =
        crc32c_copy(r + kKeyBytes, rows + i * row_bytes_, row_bytes_, crc32c(r, kKeyBytes));
    std::memcpy(r + kKeyBytes + row_bytes_, &crc, 4);
  }
  reserve(n * size);
  try {
    file_.append(records_.data(), n * size);
  } catch (const StoreError&) {
    broken_ = true;  // until the half record is gone, the next one would not be where it belongs
    const std::size_t whole = (file_.size() - end_) / size;
    file_.truncate(end_ + whole * size);
    broken_ = false;
    remember(keys, whole);
    throw;
  }
  remember(keys, n);
}

// Has the file system find room for many records at once. A small tail needs none.
void Tail::reserve(std::size_t bytes) {
  if (end_ < kReservedFrom || end_ + bytes <= reserved_) return;
  const std::uint64_t from = std::max(reserved_, end_);
  reserved_ = end_ + bytes + std::min(kReservedMost, end_ / kReservedShare);
  file_.reserve(from, reserved_ - from);
}

void Tail::remember(const std::uint8_t* keys, std::size_t n) {
  table_.add(keys, n);
  end_ += n * record_bytes(row_bytes_);
}

void Tail::sync() {
  std::lock_guard<std::mutex> guard(mutex_);
  if (broken_) throw StoreError(EIO, "takes no more rows after a failed write", path());
  broken_ = true;  // a failed fsync may have dropped dirty pages: nothing after it can be trusted
  file_.sync_data();
  if (!name_is_on_disk_) sync_folder_of(path());
  name_is_on_disk_ = true;
  broken_ = false;
}

std::size_t Tail::refresh() {
  std::lock_guard<std::mutex> guard(mutex_);
  scan();
  return table_.size();
}

void Tail::map_at_least(std::uint64_t size) {
  // With room for what will be appended: pages beyond the end of the file are not touched.
  if (map_.size() < size) map_ = Mapping(file_, size + size / 2);
}

// Maps every record looked at. Touching a mapped byte beyond the end of the file kills the process.
void Tail::map_scanned() {
  if (table_.size() == 0) return;
  if (file_.size() < end_) throw StoreError(EIO, "is shorter than it was", path());
  map_at_least(end_);
}

// Reads whole records that were not looked at yet. Bad ones at the very end are looked at again
// next time: their writer may be in the middle of them.
void Tail::scan() {
  const std::uint64_t size = file_.size();
  const std::size_t record_size = record_bytes(row_bytes_);
  if (size < sizeof(TailHeader) + record_size) return;
  const std::size_t n = (size - sizeof(TailHeader)) / record_size;
  map_at_least(sizeof(TailHeader) + n * record_size);
  damaged_at_end_.clear();
  for (std::size_t i = table_.size(); i < n; ++i) {
    const std::uint8_t* r = record(static_cast<std::int64_t>(i));
    if (!record_is_good(r, row_bytes_)) {
      damaged_at_end_.push_back(static_cast<std::int64_t>(i));
      continue;
    }
    for (; table_.size() < i; table_.skip()) {
    }
    damaged_.insert(damaged_.end(), damaged_at_end_.begin(), damaged_at_end_.end());
    damaged_at_end_.clear();
    table_.add(r, 1);
  }
  end_ = sizeof(TailHeader) + table_.size() * record_size;
}

void Tail::find(const std::uint8_t* keys, std::size_t n, std::int64_t* rows) {
  std::lock_guard<std::mutex> guard(mutex_);
  table_.find(keys, n, rows);
}

std::vector<std::int64_t> Tail::gather(const std::uint8_t* keys, const std::int64_t* rows,
                                       const std::int64_t* positions, std::size_t n,
                                       std::uint8_t* out) {
  std::lock_guard<std::mutex> guard(mutex_);
  map_scanned();
  std::vector<std::int64_t> damaged;
  for (std::size_t i = 0; i < n; ++i) {
    const std::uint8_t* r = record(rows[i]);
    std::memcpy(out + positions[i] * row_bytes_, r + kKeyBytes, row_bytes_);
    if (std::memcmp(r, keys + i * kKeyBytes, kKeyBytes) != 0 || !record_is_good(r, row_bytes_))
      damaged.push_back(static_cast<std::int64_t>(i));
  }
  return damaged;
}

std::vector<std::uint64_t> Tail::read_again() {
  {
    std::lock_guard<std::mutex> guard(mutex_);
    if (broken_) {
      const std::size_t known = table_.size();
      table_ = KeyTable();
      damaged_.clear();
      scan();
      // Numbers of rows that were handed out stay numbers of rows.
      while (table_.size() < known) table_.skip();
      end_ = offset(static_cast<std::int64_t>(table_.size()));
    }
  }
  return damaged_offsets();
}

bool Tail::discard(const std::string& path) {
  File file = File::open_for_recovery(path);
  if (!file.try_lock()) return false;
  remove_file(path);
  return true;
}

std::uint32_t Tail::version() const {
  if (file_.size() < sizeof(TailHeader)) return 0;
  const Mapping map(file_, sizeof(TailHeader));
  TailHeader h;
  std::memcpy(&h, map.data(), sizeof h);
  const bool whole = std::memcmp(h.magic, kTailMagic, sizeof h.magic) == 0 &&
                     crc32c(&h, offsetof(TailHeader, crc)) == h.crc;
  return whole ? h.version : 0;
}

std::size_t Tail::size() {
  std::lock_guard<std::mutex> guard(mutex_);
  return table_.size();
}

std::vector<std::uint64_t> Tail::damaged_offsets() {
  std::lock_guard<std::mutex> guard(mutex_);
  std::vector<std::uint64_t> offsets;
  for (std::int64_t row : damaged_) offsets.push_back(offset(row));
  for (std::int64_t row : damaged_at_end_) offsets.push_back(offset(row));
  std::sort(offsets.begin(), offsets.end());
  return offsets;
}

std::vector<std::int64_t> Tail::newest_records() {
  std::lock_guard<std::mutex> guard(mutex_);
  map_scanned();
  return table_.newest();
}

std::vector<std::uint8_t> Tail::keys() {
  const std::vector<std::int64_t> records = newest_records();
  std::lock_guard<std::mutex> guard(mutex_);
  std::vector<std::uint8_t> keys(records.size() * kKeyBytes);
  for (std::size_t i = 0; i < records.size(); ++i)
    std::memcpy(keys.data() + i * kKeyBytes, record(records[i]), kKeyBytes);
  return keys;
}

const std::uint8_t* Tail::record(std::int64_t row) const { return map_.data() + offset(row); }

std::uint64_t Tail::offset(std::int64_t row) const {
  return sizeof(TailHeader) + static_cast<std::uint64_t>(row) * record_bytes(row_bytes_);
}

}  // namespace pyfeat::store
