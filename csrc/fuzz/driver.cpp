// Runs a fuzz target where clang's libFuzzer is not to be had: mutates inputs, keeps those that
// reach a branch no other has reached. Takes libFuzzer's flags -max_total_time=S and -seed=N,
// folders of inputs (what is new goes into the first) and single inputs, which are only run.
#include <sanitizer/asan_interface.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <random>

#include "scratch.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

namespace fs = std::filesystem;
using Bytes = std::vector<std::uint8_t>;

constexpr std::size_t kMostBytes = 4096;

std::uint8_t reached[1 << 16];
std::size_t n_reached = 0;
const Bytes* running = nullptr;

void keep_crash() {
  if (running == nullptr) return;
  const auto name =
      "crash-" + std::to_string(pyfeat::fuzz::slow_crc(running->data(), running->size()));
  pyfeat::fuzz::write_file(name, *running, running->size());
  std::fprintf(stderr, "input written to %s\n", name.c_str());
}

// True where the input reached something new.
bool run(const Bytes& input) {
  const std::size_t before = n_reached;
  running = &input;
  LLVMFuzzerTestOneInput(input.data(), input.size());
  running = nullptr;
  return n_reached > before;
}

class Mutator {
 public:
  explicit Mutator(unsigned seed) : random_(seed) {}
  std::size_t below(std::size_t n) { return n == 0 ? 0 : random_() % n; }

  Bytes mutate(Bytes input, const Bytes& other) {
    for (std::size_t left = 1 + below(6); left > 0; --left) step(input, other);
    if (input.size() > kMostBytes) input.resize(kMostBytes);
    return input;
  }

 private:
  void step(Bytes& b, const Bytes& other) {
    const std::size_t at = below(b.size()), size = std::min(1 + below(64), b.size() - at);
    const auto from = b.begin() + static_cast<std::ptrdiff_t>(at);
    const auto to = from + static_cast<std::ptrdiff_t>(size);
    switch (below(7)) {
      case 0:
        if (!b.empty()) b[at] ^= static_cast<std::uint8_t>(1u << below(8));
        break;
      case 1:
        if (!b.empty()) b[at] = static_cast<std::uint8_t>(random_());
        break;
      case 2:
        b.erase(from, to);
        break;
      case 3: {
        const Bytes copy(from, to);
        b.insert(b.begin() + static_cast<std::ptrdiff_t>(below(b.size() + 1)), copy.begin(),
                 copy.end());
        break;
      }
      case 4:
        number(b, at);
        break;
      case 5:
        for (std::size_t i = 1 + below(64); i > 0; --i)
          b.push_back(static_cast<std::uint8_t>(random_()));
        break;
      default:
        if (!other.empty()) {
          b.resize(at);
          b.insert(b.end(), other.begin() + static_cast<std::ptrdiff_t>(below(other.size())),
                   other.end());
        }
    }
  }

  void number(Bytes& b, std::size_t at) {
    static const std::uint64_t kNumbers[] = {
        0, 1, 16, 64, 4096, 1u << 31, ~0u, 1ull << 48, 1ull << 60, 1ull << 63, ~0ull};
    std::uint64_t value = kNumbers[below(std::size(kNumbers))] + below(3) - 1;
    if (b.size() >= at + 8) std::memcpy(b.data() + at, &value, 8);
  }

  std::mt19937_64 random_;
};

struct Options {
  double seconds = 0;
  unsigned seed = 1;
  std::vector<fs::path> folders, files;
};

Options parse(int argc, char** argv) {
  Options o;
  for (int i = 1; i < argc; ++i) {
    const std::string a = argv[i];
    if (a.rfind("-max_total_time=", 0) == 0)
      o.seconds = std::atof(a.c_str() + 16);
    else if (a.rfind("-seed=", 0) == 0)
      o.seed = static_cast<unsigned>(std::atol(a.c_str() + 6));
    else if (a[0] != '-')
      (fs::is_directory(a) ? o.folders : o.files).emplace_back(a);
  }
  return o;
}

}  // namespace

extern "C" __attribute__((no_sanitize("address", "undefined"))) void __sanitizer_cov_trace_pc() {
  const auto pc = reinterpret_cast<std::uintptr_t>(__builtin_return_address(0));
  std::uint8_t& place = reached[(pc ^ (pc >> 16)) & 0xffff];
  n_reached += place == 0;
  place = 1;
}

int main(int argc, char** argv) {
  __sanitizer_set_death_callback(keep_crash);
  const Options options = parse(argc, argv);
  for (const fs::path& file : options.files) run(pyfeat::fuzz::read_file(file));
  if (options.folders.empty()) return 0;
  std::vector<Bytes> corpus{{}};
  for (const fs::path& folder : options.folders)
    for (const auto& entry : fs::directory_iterator(folder)) {
      corpus.push_back(pyfeat::fuzz::read_file(entry.path()));
      run(corpus.back());
    }
  Mutator mutator(options.seed);
  const auto end =
      std::chrono::steady_clock::now() + std::chrono::duration<double>(options.seconds);
  std::size_t runs = 0;
  for (; std::chrono::steady_clock::now() < end; ++runs) {
    Bytes input =
        mutator.mutate(corpus[mutator.below(corpus.size())], corpus[mutator.below(corpus.size())]);
    if (!run(input)) continue;
    const auto name = std::to_string(pyfeat::fuzz::slow_crc(input.data(), input.size()));
    pyfeat::fuzz::write_file(options.folders[0] / name, input, input.size());
    corpus.push_back(std::move(input));
  }
  std::fprintf(stderr, "Done %zu runs, %zu inputs, %zu places reached\n", runs, corpus.size(),
               n_reached);
  return 0;
}
