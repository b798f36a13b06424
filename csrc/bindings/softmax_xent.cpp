// Rows in chunks of a size that depends on n alone, their sums merged in order: the same bits on
// any number of threads. A thread holds the gradient of its chunk in float32, all of them together
// one in float64.
#include "../cpu/softmax_xent.h"

#include <condition_variable>
#include <memory>
#include <mutex>
#include <type_traits>
#include <vector>

#include "../cpu/dispatch.h"
#include "../parallel.h"
#include "bindings.h"

namespace py = pybind11;

namespace pyfeat {
namespace {

constexpr std::ptrdiff_t kStrip = 336;  // rows of side A, with depth kc in the second-level cache
constexpr std::ptrdiff_t kFew = 6;      // outputs that are multiplied without packing
constexpr std::ptrdiff_t kMostBlocks = 8;  // of a chunk: so long is a sum in float32
constexpr std::ptrdiff_t kLeastChunks = 16;
constexpr std::ptrdiff_t kEven =
    8;  // chunks come in multiples: as many for each of 2, 4, 8 threads
constexpr double kFlopPerThread = 4e6;  // some 50 us

struct Input {
  const std::uint8_t* data;
  Item item;
  const float *scales, *shift;
  std::ptrdiff_t n, d;
};

struct Task {
  const std::int64_t* labels;
  const float* weights;  // (n), or (problems, n) with weight_step n, or null
  std::ptrdiff_t weight_step;
  float unit;
  const float* theta;  // (problems * classes, d + 1), twice as many rows with a direction
  std::ptrdiff_t problems, classes;
  bool direction;
  double* gradient;  // (rows of theta, d + 1)
  double* loss;      // (problems)
  double* spread;    // (problems * classes)
};

template <typename Number>
struct Products {
  void (*pack)(const Rows&, std::ptrdiff_t, std::ptrdiff_t, int, Number*);
  void (*pack_columns)(const float*, std::ptrdiff_t, std::ptrdiff_t, std::ptrdiff_t, std::ptrdiff_t,
                       GemmShape, Number*);
  void (*multiply)(std::ptrdiff_t, std::ptrdiff_t, std::ptrdiff_t, const Number*, const Number*,
                   bool, float*, std::ptrdiff_t, int, Ahead);
};

// Rows of a panel of side A, even: a last panel that is nearly empty costs as much as half a one.
int panel_for(std::ptrdiff_t rows, int mr) {
  int best = mr;
  std::ptrdiff_t least = PTRDIFF_MAX;
  for (int panel = mr; panel >= 2 * mr / 3; panel -= 2) {
    const std::ptrdiff_t left = rows % panel;
    const std::ptrdiff_t cost =
        rows - left + (left ? std::max<std::ptrdiff_t>(left, panel / 2) : 0);
    if (cost < least) best = panel;
    least = std::min(least, cost);
  }
  return best;
}

template <typename Item>
std::unique_ptr<Item[]> room(std::size_t n) {
  return std::unique_ptr<Item[]>(new Item[n]);
}

template <typename Number>
class Evaluation {
 public:
  Evaluation(const Input& input, const Task& task, Products<Number> products, std::size_t threads)
      : in_(input),
        task_(task),
        products_(products),
        shape_(PYFEAT_KERNEL(gemm_shape)()),
        outputs_(task.problems * task.classes),
        width_(outputs_ * (task.direction ? 2 : 1)),
        strip_(std::min(kStrip / shape_.mr * shape_.mr, width_)),
        panel_(width_ <= strip_ ? panel_for(width_, shape_.mr) : shape_.mr),
        span_(width_ <= strip_ ? kXentGroup : kXentRows) {
    const std::ptrdiff_t blocks = (in_.n + kXentRows - 1) / kXentRows;
    const std::ptrdiff_t most = std::clamp(blocks / kLeastChunks, std::ptrdiff_t{1}, kMostBlocks);
    chunks_ = std::min(blocks, ((blocks + most - 1) / most + kEven - 1) / kEven * kEven);
    threads_ = std::min(threads, static_cast<std::size_t>(chunks_));
    pack_theta();
    for (std::size_t t = 0; t < threads_; ++t) desks_.emplace_back(*this);
  }

  void run() {
    parallel(static_cast<std::size_t>(chunks_), threads_,
             [&](std::size_t chunk, std::size_t thread) {
               Desk& desk = desks_[thread];
               sum_chunk(static_cast<std::ptrdiff_t>(chunk), desk);
               std::unique_lock<std::mutex> lock(guard_);
               merged_.wait(lock, [&] { return turn_ == chunk; });
               merge(desk);
               ++turn_;
               lock.unlock();
               merged_.notify_all();
             });
  }

 private:
  // What one thread works on.
  struct Desk {
    explicit Desk(const Evaluation& e)
        : rows(room<float>(static_cast<std::size_t>((e.few() ? kXentRows : kXentGroup) * e.in_.d))),
          across(room<Number>(packed_size(e.span_, e.in_.d, e.shape_.nr))),
          down(room<Number>(packed_size(e.in_.d, kXentRows, e.shape_.nr))),
          left(room<Number>(packed_size(e.strip_, kXentRows, e.panel_))),
          logits(room<float>(static_cast<std::size_t>(e.width_ * kXentStride))),
          gradient(room<float>(static_cast<std::size_t>(e.width_ * e.in_.d))),
          sums(static_cast<std::size_t>(e.task_.problems + e.outputs_ + e.width_)) {}
    std::unique_ptr<float[]> rows;
    const float* x = nullptr;  // rows of the block, for a few outputs
    std::unique_ptr<Number[]> across, down, left;
    std::unique_ptr<float[]> logits, gradient;
    std::vector<double> sums;  // losses, spreads, intercepts
  };

  bool few() const { return std::is_same_v<Number, float> && width_ <= kFew; }

  std::size_t packed_theta(std::ptrdiff_t first) const {
    return first / strip_ * packed_size(strip_, in_.d, panel_);
  }

  void pack_theta() {
    theta_ = room<Number>(packed_theta(width_ + strip_ - 1));
    for (std::ptrdiff_t i = 0; i < width_; i += strip_) {
      const Rows rows{task_.theta + i * (in_.d + 1), Item::kFloat32, in_.d + 1, 1, nullptr};
      products_.pack(rows, std::min(strip_, width_ - i), in_.d, panel_,
                     theta_.get() + packed_theta(i));
    }
  }

  void sum_chunk(std::ptrdiff_t chunk, Desk& desk) const {
    std::fill(desk.sums.begin(), desk.sums.end(), 0.0);
    const std::ptrdiff_t blocks = (in_.n + kXentRows - 1) / kXentRows;
    const std::ptrdiff_t begin = chunk * blocks / chunks_ * kXentRows;
    const std::ptrdiff_t end = std::min(in_.n, (chunk + 1) * blocks / chunks_ * kXentRows);
    for (std::ptrdiff_t first = begin; first < end; first += kXentRows) {
      const std::ptrdiff_t rows = std::min<std::ptrdiff_t>(kXentRows, end - first);
      multiply_by_theta(first, rows, desk);
      for (std::ptrdiff_t p = 0; p < task_.problems; ++p) residuals(p, first, rows, desk);
      add_gradient(rows, first > begin, desk);
    }
  }

  // The rows that are multiplied next.
  Ahead after(std::ptrdiff_t first) const {
    const std::ptrdiff_t row = in_.d * bytes_of(in_.item);
    return {in_.data + first * row,
            std::min(span_, std::max(in_.n - first, std::ptrdiff_t{0})) * row};
  }

  // Rows as float32: where they lie, or in `room`.
  const float* read(std::ptrdiff_t first, std::ptrdiff_t rows, float* room) const {
    const std::ptrdiff_t d = in_.d;
    if (in_.item == Item::kFloat32 && !in_.scales && !in_.shift)
      return reinterpret_cast<const float*>(in_.data) + first * d;
    PYFEAT_KERNEL(xent_rows)
    (in_.data + first * d * bytes_of(in_.item), in_.item, in_.scales ? in_.scales + first : nullptr,
     in_.shift, rows, d, room);
    return room;
  }

  // Scores of a block, and its rows where `add_gradient` wants them.
  void multiply_by_theta(std::ptrdiff_t first, std::ptrdiff_t rows, Desk& desk) const {
    if (few()) {
      desk.x = read(first, rows, desk.rows.get());
      PYFEAT_KERNEL(xent_few_scores)
      (desk.x, rows, in_.d, task_.theta, width_, desk.logits.get());
      return;
    }
    for (std::ptrdiff_t at = 0; at < rows; at += span_) {
      const std::ptrdiff_t count = std::min(span_, rows - at);
      for (std::ptrdiff_t group = 0; group < count; group += kXentGroup) {
        const std::ptrdiff_t some = std::min<std::ptrdiff_t>(kXentGroup, count - group);
        const float* x = read(first + at + group, some, desk.rows.get());
        products_.pack_columns(x, at + group, some, rows, in_.d, shape_, desk.down.get());
        pack_across(x, some, group, count, desk.across.get());
      }
      const Ahead next = after(first + at + count);
      for (std::ptrdiff_t i = 0; i < width_; i += strip_)
        products_.multiply(std::min(strip_, width_ - i), count, in_.d,
                           theta_.get() + packed_theta(i), desk.across.get(), false,
                           desk.logits.get() + i * kXentStride + at, kXentStride, panel_,
                           i == 0 ? next : Ahead{});
    }
  }

  // `some` rows to where gemm.h has row `group` of `count`.
  void pack_across(const float* x, std::ptrdiff_t some, std::ptrdiff_t group, std::ptrdiff_t count,
                   Number* out) const {
    const std::ptrdiff_t columns = (count + shape_.nr - 1) / shape_.nr * shape_.nr;
    for (std::ptrdiff_t k = 0; k < in_.d; k += shape_.kc) {
      const std::ptrdiff_t depth = std::min<std::ptrdiff_t>(shape_.kc, in_.d - k);
      const std::ptrdiff_t whole = std::is_same_v<Number, float> ? depth : (depth + 1) / 2 * 2;
      products_.pack({x + k, Item::kFloat32, in_.d, 1, nullptr}, some, depth, shape_.nr,
                     out + columns * k + group * whole);
    }
  }

  void residuals(std::ptrdiff_t p, std::ptrdiff_t first, std::ptrdiff_t rows, Desk& desk) const {
    const std::ptrdiff_t at = p * task_.classes, step = in_.d + 1;
    const float* intercepts = task_.theta + at * step + in_.d;
    float* logits = desk.logits.get() + at * kXentStride;
    const bool turns = task_.direction;
    const XentBlock block{rows,
                          task_.classes,
                          task_.labels + first,
                          task_.weights ? task_.weights + p * task_.weight_step + first : nullptr,
                          task_.unit,
                          intercepts,
                          step,
                          logits,
                          turns ? logits + outputs_ * kXentStride : nullptr,
                          turns ? intercepts + outputs_ * step : nullptr};
    double* spread = desk.sums.data() + task_.problems;
    double* sums = spread + outputs_;
    PYFEAT_KERNEL(xent_residuals)
    (block, {desk.sums.data() + p, sums + at, spread + at, turns ? sums + outputs_ + at : nullptr});
  }

  void add_gradient(std::ptrdiff_t rows, bool add, Desk& desk) const {
    const std::ptrdiff_t d = in_.d;
    if (few()) {
      PYFEAT_KERNEL(xent_few_gradients)
      (desk.x, rows, d, desk.logits.get(), width_, add, desk.gradient.get());
      return;
    }
    for (std::ptrdiff_t i = 0; i < width_; i += strip_) {
      const std::ptrdiff_t tall = std::min(strip_, width_ - i);
      products_.pack({desk.logits.get() + i * kXentStride, Item::kFloat32, kXentStride, 1, nullptr},
                     tall, rows, panel_, desk.left.get());
      products_.multiply(tall, d, rows, desk.left.get(), desk.down.get(), add,
                         desk.gradient.get() + i * d, d, panel_, {});
    }
  }

  void merge(const Desk& desk) {
    const double* sums = desk.sums.data();
    for (std::ptrdiff_t p = 0; p < task_.problems; ++p) task_.loss[p] += *sums++;
    for (std::ptrdiff_t i = 0; i < outputs_; ++i) task_.spread[i] += *sums++;
    for (std::ptrdiff_t i = 0; i < width_; ++i) {
      double* row = task_.gradient + i * (in_.d + 1);
      PYFEAT_KERNEL(xent_merge)(desk.gradient.get() + i * in_.d, in_.d, row);
      row[in_.d] += *sums++;
    }
  }

  const Input in_;
  const Task task_;
  const Products<Number> products_;
  const GemmShape shape_;
  const std::ptrdiff_t outputs_, width_, strip_;
  const int panel_;  // of side A
  // Rows multiplied by theta at once: few when all of theta stays in the second-level cache.
  const std::ptrdiff_t span_;
  std::ptrdiff_t chunks_;
  std::size_t threads_;
  std::unique_ptr<Number[]> theta_;
  std::vector<Desk> desks_;
  std::mutex guard_;
  std::condition_variable merged_;
  std::size_t turn_ = 0;  // the chunk that is merged next
};

class XentRows {
 public:
  XentRows(std::uintptr_t data, int item, std::uintptr_t scales, std::uintptr_t shift,
           std::ptrdiff_t n, std::ptrdiff_t d)
      : in_{reinterpret_cast<const std::uint8_t*>(data),
            static_cast<Item>(item),
            reinterpret_cast<const float*>(scales),
            reinterpret_cast<const float*>(shift),
            n,
            d} {}

  // `out` holds the losses (P), the spreads (P * classes) and the gradient, all zeros.
  void evaluate(std::uintptr_t labels, std::uintptr_t weights, std::ptrdiff_t weight_step,
                std::uintptr_t theta, std::ptrdiff_t problems, std::ptrdiff_t classes,
                bool direction, bool bf16, std::size_t threads, std::uintptr_t out) const {
    const py::gil_scoped_release unlocked;
    if (in_.n == 0 || problems == 0) return;
    double* loss = reinterpret_cast<double*>(out);
    const Task task{reinterpret_cast<const std::int64_t*>(labels),
                    reinterpret_cast<const float*>(weights),
                    weight_step,
                    weights ? 1.0f : static_cast<float>(1.0 / static_cast<double>(in_.n)),
                    reinterpret_cast<const float*>(theta),
                    problems,
                    classes,
                    direction,
                    loss + problems + problems * classes,
                    loss,
                    loss + problems};
    const double flop = 4.0 * static_cast<double>(in_.n) * static_cast<double>(in_.d) *
                        static_cast<double>(problems * classes * (direction ? 2 : 1));
    threads = worthwhile_threads(threads, flop, kFlopPerThread);
    if (bf16)
      Evaluation<std::uint16_t>(
          in_, task,
          {PYFEAT_KERNEL(gemm_pack_bf16), PYFEAT_KERNEL(xent_pack_columns_bf16),
           PYFEAT_KERNEL(gemm_packed_ahead_bf16)},
          threads)
          .run();
    else
      Evaluation<float>(in_, task,
                        {PYFEAT_KERNEL(gemm_pack), PYFEAT_KERNEL(xent_pack_columns),
                         PYFEAT_KERNEL(gemm_packed_ahead)},
                        threads)
          .run();
  }

 private:
  Input in_;
};

}  // namespace

void bind_softmax_xent(py::module_& m) {
  py::class_<XentRows>(m, "XentRows", "Rows at addresses, which must outlive it.")
      .def(py::init<std::uintptr_t, int, std::uintptr_t, std::uintptr_t, std::ptrdiff_t,
                    std::ptrdiff_t>(),
           py::arg("data"), py::arg("item"), py::arg("scales"), py::arg("shift"), py::arg("n"),
           py::arg("d"))
      .def("evaluate", &XentRows::evaluate, py::arg("labels"), py::arg("weights"),
           py::arg("weight_step"), py::arg("theta"), py::arg("problems"), py::arg("classes"),
           py::arg("direction"), py::arg("bf16"), py::arg("threads"), py::arg("out"),
           "Add up losses, spreads and gradient; item: 0 float32, 1 float16, 2 bfloat16, 3 int8.");
}

}  // namespace pyfeat
