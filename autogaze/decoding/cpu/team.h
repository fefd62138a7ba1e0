// Threads that do one pass together: those of an OpenMP that is already in the process, so that PyTorch's are used
// again, or else threads of our own.
#pragma once
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

extern "C" {
typedef void (*Parallel)(void (*work)(void*), void* data, unsigned threads, unsigned flags);  // GOMP_parallel
typedef int (*Count)();                                                                       // omp_get_num_threads
}

inline void pause_once() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

class Team {
  public:
    int size = 1;

    // Give every thread its own number from 0 on.
    int enter() { return entered.fetch_add(1); }

    // Wait until all are here. Spins first, since a phase takes microseconds; then sleeps, since on a busy machine the
    // others may have to wait for a processor.
    void wait() {
        if (size == 1) return;
        const int now = generation.load();
        if (arrived.fetch_add(1) + 1 == size) {
            arrived.store(0);
            generation.store(now + 1);
            if (!sleeping.load()) return;
            std::lock_guard<std::mutex> hold(lock);
            return woken.notify_all();
        }
        for (int turn = 0; turn < SPINS; turn++, pause_once())
            if (generation.load(std::memory_order_acquire) != now) return;
        const auto since = std::chrono::steady_clock::now();
        std::unique_lock<std::mutex> hold(lock);
        sleeping.fetch_add(1);
        woken.wait(hold, [&] { return generation.load() != now; });
        sleeping.fetch_sub(1);
        if (std::chrono::steady_clock::now() - since > std::chrono::milliseconds(1)) late = true;
    }

    // Whether somebody had to wait so long that a thread must have lost its processor to other work.
    bool stalled() const { return late; }

  private:
    static constexpr int SPINS = 3000;
    std::atomic<int> entered{0}, arrived{0}, generation{0}, sleeping{0};
    std::atomic<bool> late{false};
    std::mutex lock;
    std::condition_variable woken;
};

// Have OpenMP's threads wait without spinning for long, in PyTorch's operations too. GNU's spin for some 3 ms, which on
// a busy machine keeps those that they wait for from a processor (5 times slower than one thread, measured), but only
// some microseconds once there are more of them than processors. So there is a second team, which sleeps for good.
inline void wait_shortly(Parallel parallel, unsigned processors) {
    static std::once_flag once;
    std::call_once(once, [=] {
        std::thread([=] {
            parallel([](void*) {}, nullptr, processors, 0);
            std::mutex lock;
            std::unique_lock<std::mutex> hold(lock);
            std::condition_variable().wait(hold, [] { return false; });
        }).detach();
    });
}

// Call work(thread, team) on up to `threads` threads; whether they stalled.
template <class Work>
bool together(int threads, Parallel parallel, Count count, Work work) {
    struct Job {
        Team team;
        Work* work;
        Count count;
        std::atomic<int> sized{0};
    } job;
    job.work = &work, job.count = count;
    if (threads <= 1) {
        work(0, job.team);
        return false;
    }
    if (parallel && count) {
        auto body = [](void* data) {
            Job& shared = *static_cast<Job*>(data);
            const int thread = shared.team.enter();
            if (!thread) {  // fewer may come than were asked for
                shared.team.size = shared.count();
                shared.sized.store(1, std::memory_order_release);
            }
            while (!shared.sized.load(std::memory_order_acquire)) pause_once();
            (*shared.work)(thread, shared.team);
        };
        parallel(body, &job, unsigned(threads), 0);
        return job.team.stalled();
    }
    job.team.size = threads;
    std::vector<std::thread> others;
    for (int i = 1; i < threads; i++) others.emplace_back([&] { work(job.team.enter() + 1, job.team); });
    work(0, job.team);
    for (auto& other : others) other.join();
    return job.team.stalled();
}
