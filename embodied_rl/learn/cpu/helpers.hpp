// Threads that share pieces of work with the one that calls.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace {

// Threads that sleep until there is something to share.  Waking one takes 40 us, for it needs no interpreter; the caller works
// meanwhile, and whoever is free takes the next piece.
class Helpers {
 public:
  // work(0), ..., work(count - 1), each once, by the caller and up to `others` more.
  template <class Work>
  void share(int64_t count, int others, Work&& work) {
    std::unique_lock<std::mutex> only(used, std::try_to_lock);
    if (!only || others < 1 || count < 2) {
      for (int64_t i = 0; i < count; i++) work(i);
      return;
    }
    while ((int)threads.size() < others) threads.emplace_back([this] { help(); });
    {
      std::lock_guard<std::mutex> lock(mutex);
      call = [](void* what, int64_t i) { (*(std::remove_reference_t<Work>*)what)(i); };
      what = &work, pieces = count, places = others, next = 0, round++;
    }
    wake.notify_all();
    for (int64_t i; (i = next.fetch_add(1)) < count;) work(i);
    std::unique_lock<std::mutex> lock(mutex);
    places = 0;  // who wakes now is too late
    left.wait(lock, [this] { return inside == 0; });
  }

 private:
  void help() {
    uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex);
    for (;;) {
      wake.wait(lock, [&] { return round != seen; });
      seen = round;
      if (places < 1) continue;
      places--, inside++;
      lock.unlock();
      for (int64_t i; (i = next.fetch_add(1)) < pieces;) call(what, i);
      lock.lock();
      if (--inside == 0) left.notify_one();
    }
  }

  std::vector<std::thread> threads;
  std::mutex used, mutex;
  std::condition_variable wake, left;
  std::atomic<int64_t> next{0};
  uint64_t round = 0;
  int64_t pieces = 0;
  int places = 0, inside = 0;
  void (*call)(void*, int64_t) = nullptr;
  void* what = nullptr;
};

}  // namespace
