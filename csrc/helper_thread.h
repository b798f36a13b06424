// A thread that begins at once, on another core than its parent's.
//
// Linux may put a new thread on the core that its busy parent runs on, and then moves it only at a
// later tick of the scheduler: milliseconds in which one core does nothing, far more than the
// thread costs otherwise. So it is born with the parent's core forbidden, and frees itself first.
#pragma once

#include <functional>
#include <memory>
#include <system_error>
#include <thread>
#include <utility>

#ifdef __linux__
#include <pthread.h>
#include <sched.h>
#endif

namespace pyfeat {

#ifdef __linux__

class HelperThread {
 public:
  explicit HelperThread(std::function<void()> work)
      : start_(new Start{std::move(work), {}, false}) {
    pthread_attr_t settings;
    pthread_attr_init(&settings);
    cpu_set_t elsewhere;
    const int here = sched_getcpu();
    // It fails on machines with more cores than a cpu_set_t holds: their kernel chooses then.
    if (here >= 0 && sched_getaffinity(0, sizeof start_->allowed, &start_->allowed) == 0) {
      elsewhere = start_->allowed;
      CPU_CLR(here, &elsewhere);
      start_->confined = CPU_COUNT(&elsewhere) > 0 &&
                         pthread_attr_setaffinity_np(&settings, sizeof elsewhere, &elsewhere) == 0;
    }
    int failed = pthread_create(&thread_, &settings, &HelperThread::run, start_.get());
    pthread_attr_destroy(&settings);
    if (failed && start_->confined) {  // a container may forbid the choice of cores
      start_->confined = false;
      failed = pthread_create(&thread_, nullptr, &HelperThread::run, start_.get());
    }
    if (failed) throw std::system_error(failed, std::generic_category(), "thread");
  }
  HelperThread(HelperThread&&) = default;
  ~HelperThread() {
    if (start_) pthread_join(thread_, nullptr);
  }

 private:
  struct Start {
    std::function<void()> work;
    cpu_set_t allowed;
    bool confined;
  };

  static void* run(void* argument) {
    const Start& start = *static_cast<const Start*>(argument);
    if (start.confined)
      pthread_setaffinity_np(pthread_self(), sizeof start.allowed, &start.allowed);
    start.work();
    return nullptr;
  }

  std::unique_ptr<Start> start_;
  pthread_t thread_;
};

#else

class HelperThread {
 public:
  explicit HelperThread(std::function<void()> work) : thread_(std::move(work)) {}
  HelperThread(HelperThread&&) = default;
  ~HelperThread() {
    if (thread_.joinable()) thread_.join();
  }

 private:
  std::thread thread_;
};

#endif

}  // namespace pyfeat
