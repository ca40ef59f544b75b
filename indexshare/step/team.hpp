// Threads that help with a step, and for which it never waits: only for the tasks that they have begun.
//
// A parallel region of OpenMP ends when every thread has arrived, also one that has nothing left to do and stands in line
// for a core which another program holds, some milliseconds long. Here a helper that waits, or has not come yet, is
// dismissed when the step is done. One that was put aside in the middle of a task and held up a large part of a step is not
// asked for a while: beside a busy core a step then takes as long as with one thread less.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include <unistd.h>

namespace indexshare {

// Work of a phase is handed out task by task, so that a slow thread does less; which thread did what changes nothing.
struct alignas(64) Phase {
    std::atomic<int64_t> next{0}, done{0};
    std::atomic<bool> complete{false};
};

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

struct Dismissed {};  // thrown in a helper that the step does not need any more: it must not touch anything of it

class Team {
   public:
    // All steps of this process take turns with the same helpers. Never freed: they may be asleep when the process ends.
    static Team& of_process() {
        static std::mutex guard;
        static Team* team = nullptr;
        const std::lock_guard<std::mutex> held(guard);
        if (!team || team->process_ != getpid()) team = new Team();  // after a fork there are no threads any more
        return *team;
    }

    // Calls job(0) here and, at the same time, job(1) .. job(threads - 1) in helpers as far as they come in time. The job
    // waits for phases with `await`, where a helper may leave it by an exception. A team at work for another step helps nobody.
    template <class Job>
    void run(int64_t threads, const std::shared_ptr<Phase[]>& phases, Job job) {
        std::unique_lock<std::mutex> held(lock_, std::defer_lock);
        if (threads < 2 || !held.try_lock()) return job(0);
        call_ = [](void* context, int64_t number) { (*(Job*)context)(number); };
        context_ = &job;
        phases_ = phases;
        const Clock::time_point begin = Clock::now();
        ask(threads - 1, begin);
        job(0);
        for (const auto& helper : helpers_) dismiss(*helper);
        judge(begin);
    }

    // Until a phase is complete; `number` is the job's.
    void await(const Phase& phase, int64_t number) {
        if (phase.complete.load(std::memory_order_acquire)) return;
        if (number) return await_as(*helper_, phase);
        for (int64_t spins = 0; spins < SPINS; ++spins) {
            relax();
            if (phase.complete.load(std::memory_order_acquire)) return;
        }
        await_late(phase);
    }

   private:
    static constexpr int64_t SPINS = 10000, REST_SPINS = 20000;  // some hundred microseconds, and twice as many
    static constexpr double LATE = 0.25, FIRST_PAUSES = 8, LONGEST_PAUSE_S = 0.5;
    static constexpr int CLEAN_STEPS = 64;
    enum State : int { RESTING, ASKED, WORKING, WAITING };

    // The step asks (RESTING to ASKED) and dismisses (ASKED or WAITING to RESTING); all else the helper does itself.
    struct Helper {
        int64_t number = 0;
        std::atomic<int> state{RESTING};
        std::atomic<bool> asleep{false};
        std::mutex lock;
        std::condition_variable wake;
        // Of the step's side:
        bool asked = false;
        Seconds held_up{0}, pause{0};  // in this step; how long it was not asked when it was late last
        Clock::time_point back{};
        int clean = 0;                 // steps since then that it did not hold up
    };

    Team() : process_(getpid()) {}

    void ask(int64_t count, Clock::time_point now) {
        while ((int64_t)helpers_.size() < count) {
            auto helper = std::make_unique<Helper>();
            helper->number = (int64_t)helpers_.size() + 1;
            try {
                std::thread([this, each = helper.get()] { serve(*each); }).detach();
            } catch (const std::system_error&) {  // no more threads to be had
                break;
            }
            helpers_.push_back(std::move(helper));
        }
        for (const auto& helper : helpers_) {
            helper->asked = helper->number <= count && now >= helper->back;
            helper->held_up = Seconds(0);
            if (!helper->asked) continue;
            helper->state.store(ASKED);
            if (!helper->asleep.load()) continue;
            { const std::lock_guard<std::mutex> held(helper->lock); }
            helper->wake.notify_one();
        }
    }

    static void dismiss(Helper& helper) {
        for (int64_t spins = 0; helper.state.load(std::memory_order_acquire) != RESTING; ++spins) {
            for (int from : {ASKED, WAITING}) {
                if (helper.state.compare_exchange_strong(from, RESTING, std::memory_order_acq_rel)) return;
            }
            if (spins < SPINS) relax();
            else std::this_thread::yield();
        }
    }

    // Somebody was put aside within a task: note who, and for how long.
    void await_late(const Phase& phase) {
        Clock::time_point before = Clock::now();
        while (!phase.complete.load(std::memory_order_acquire)) {
            std::this_thread::yield();
            const Clock::time_point now = Clock::now();
            for (const auto& helper : helpers_) {
                if (helper->asked && helper->state.load(std::memory_order_relaxed) == WORKING) helper->held_up += now - before;
            }
            before = now;
        }
    }

    void judge(Clock::time_point begin) {
        const Clock::time_point end = Clock::now();
        const Seconds took = end - begin;
        for (const auto& helper : helpers_) {
            if (!helper->asked) continue;
            if (helper->held_up > LATE * took) {
                const Seconds first = FIRST_PAUSES * took, longest = std::max(first, Seconds(LONGEST_PAUSE_S));
                helper->pause = std::min(std::max(first, 2 * helper->pause), longest);
                helper->back = end + std::chrono::duration_cast<Clock::duration>(helper->pause);
                helper->clean = 0;
            } else if (++helper->clean == CLEAN_STEPS) {
                helper->pause = Seconds(0);
            }
        }
    }

    // A helper's life.
    void serve(Helper& helper) {
        helper_ = &helper;
        for (;;) {
            rest(helper);
            int from = ASKED;
            if (!helper.state.compare_exchange_strong(from, WORKING, std::memory_order_acq_rel)) continue;
            const std::shared_ptr<Phase[]> kept = phases_;  // `await_as` may look at them when the step is long over
            try {
                call_(context_, helper.number);
                helper.state.store(RESTING, std::memory_order_release);
            } catch (const Dismissed&) {
            }
        }
    }

    static void rest(Helper& helper) {
        for (int64_t spins = 0; spins < REST_SPINS; ++spins) {
            if (helper.state.load(std::memory_order_acquire) == ASKED) return;
            relax();
        }
        std::unique_lock<std::mutex> held(helper.lock);
        helper.asleep.store(true);
        helper.wake.wait(held, [&] { return helper.state.load() == ASKED; });
        helper.asleep.store(false);
    }

    static void await_as(Helper& helper, const Phase& phase) {
        helper.state.store(WAITING, std::memory_order_release);
        for (int64_t spins = 0; !phase.complete.load(std::memory_order_acquire); ++spins) {
            if (helper.state.load(std::memory_order_acquire) != WAITING) throw Dismissed();
            if (spins < SPINS) relax();
            else std::this_thread::yield();
        }
        int from = WAITING;
        if (!helper.state.compare_exchange_strong(from, WORKING, std::memory_order_acq_rel)) throw Dismissed();
    }

    const pid_t process_;
    std::mutex lock_;  // held during a step
    std::vector<std::unique_ptr<Helper>> helpers_;
    void (*call_)(void*, int64_t) = nullptr;
    void* context_ = nullptr;
    std::shared_ptr<Phase[]> phases_;
    static inline thread_local Helper* helper_ = nullptr;
};

}  // namespace indexshare
