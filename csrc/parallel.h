// Work cut into chunks for a few threads that live as long as the call.
//
// No pool: nothing waits or spins between calls, nothing breaks after a fork, and several Python
// threads may call at once. Starting a thread takes some 50 us, so a caller asks for one only when
// its share of the work lasts longer than that.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <exception>
#include <mutex>
#include <vector>

#include "helper_thread.h"

namespace pyfeat {

// How many threads are worth starting for `work` units, when one should have at least `least`.
inline std::size_t worthwhile_threads(std::size_t threads, double work, double least) {
  const double most = work / least;
  if (most >= static_cast<double>(threads)) return std::max<std::size_t>(threads, 1);
  return std::max<std::size_t>(static_cast<std::size_t>(most), 1);
}

// Calls work(chunk, thread) once for every chunk < chunks; thread < threads numbers the worker, for
// scratch of its own. The caller is worker 0. Rethrows the first exception when all have ended.
template <typename Work>
void parallel(std::size_t chunks, std::size_t threads, const Work& work) {
  threads = std::max<std::size_t>(1, std::min(threads, chunks));
  std::atomic<std::size_t> next{0};
  std::exception_ptr failure;
  std::mutex guard;
  const auto run = [&](std::size_t thread) {
    try {
      for (std::size_t chunk; (chunk = next.fetch_add(1)) < chunks;) work(chunk, thread);
    } catch (...) {
      next.store(chunks);
      const std::lock_guard<std::mutex> lock(guard);
      if (!failure) failure = std::current_exception();
    }
  };
  {
    std::vector<HelperThread> helpers;
    try {
      helpers.reserve(threads - 1);
      for (std::size_t t = 1; t < threads; ++t) helpers.emplace_back([&run, t] { run(t); });
    } catch (const std::exception&) {
      // No more threads to be had, or no memory for one: those there are do the work.
    }
    run(0);
  }
  if (failure) std::rethrow_exception(failure);
}

}  // namespace pyfeat
