// A writer's own log: rows are appended here first, and sealed into a segment later.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "file.h"
#include "format.h"
#include "key_table.h"

namespace pyfeat::store {

// One tail file. A writer creates it and holds its lock for as long as it lives; readers open it.
// All methods may be called from any thread. A mapped byte that the disk cannot deliver kills the
// process with SIGBUS, as with every mapped file.
class Tail {
 public:
  // Makes a locked, empty tail; visible under `path` only when it is both.
  static std::unique_ptr<Tail> create(const std::string& path, std::size_t row_bytes,
                                      const std::uint8_t* fingerprint);
  // Opens an existing tail for reading and scans it.
  static std::unique_ptr<Tail> open(const std::string& path, std::size_t row_bytes);
  // Opens a tail whose writer died, with its lock held. Null when the writer lives, or when
  // somebody else has recovered it meanwhile.
  static std::unique_ptr<Tail> adopt(const std::string& path, std::size_t row_bytes);

  // Adds `n` records. On error StoreError is thrown, and those of the records that were written
  // whole stay: a reader may have seen them, and a file that shrinks under a mapping kills.
  void append(const std::uint8_t* keys, const std::uint8_t* rows, std::size_t n);
  // Returns when everything appended is on the disk. After a failure the tail takes no more rows.
  void sync();
  // After a failed write or sync the disk may have kept something else than what was written: every
  // record is looked at again. Returns the byte offsets of damaged ones.
  std::vector<std::uint64_t> read_again();
  // Removes a file left by a `create` whose process died. False when it lives.
  static bool discard(const std::string& path);

  // Reads records that were appended since the last scan. Returns how many are known now.
  std::size_t refresh();
  // rows[i] = record number of keys[i], the newest one, or -1.
  void find(const std::uint8_t* keys, std::size_t n, std::int64_t* rows);
  // Copies record rows[i] to out[positions[i]]. Returns the i whose bytes are damaged.
  std::vector<std::int64_t> gather(const std::uint8_t* keys, const std::int64_t* rows,
                                   const std::int64_t* positions, std::size_t n, std::uint8_t* out);
  // Version in the header; 0 when the header is damaged.
  std::uint32_t version() const;
  // Byte offsets of whole records that fail their CRC.
  std::vector<std::uint64_t> damaged_offsets();
  // Keys of all good records, in the order written (key i at 16 * i).
  std::vector<std::uint8_t> keys();
  // Numbers of the newest good record of each key, in the order written.
  std::vector<std::int64_t> newest_records();
  const std::uint8_t* record(std::int64_t row) const;

  // Records looked at, good or not.
  std::size_t size();
  const std::string& path() const { return file_.path(); }
  std::size_t row_bytes() const { return row_bytes_; }
  std::uint64_t offset(std::int64_t row) const;

 private:
  Tail(File file, std::size_t row_bytes);
  void scan();
  void map_at_least(std::uint64_t size);
  void map_scanned();
  void append_some(const std::uint8_t* keys, const std::uint8_t* rows, std::size_t n);
  void reserve(std::size_t bytes);
  void remember(const std::uint8_t* keys, std::size_t n);

  File file_;
  std::size_t row_bytes_;
  std::uint64_t end_;           // bytes of header and whole records known to be written
  std::uint64_t reserved_ = 0;  // bytes of the file that the disk has room for
  bool broken_ = false;         // a failed sync or cut: what is on disk is not known
  bool name_is_on_disk_ = false;
  Mapping map_;
  KeyTable table_;                     // of all records looked at
  std::vector<std::uint8_t> records_;  // on their way into the file
  std::vector<std::int64_t> damaged_;
  std::vector<std::int64_t> damaged_at_end_;  // may still be in the making: looked at again
  std::mutex mutex_;
};

}  // namespace pyfeat::store
