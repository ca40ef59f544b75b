// Runs teams of threads through what a busy machine does to them, and prints what went wrong.

#include <cstdio>
#include <cstdlib>

#include "team.hpp"

using namespace indexshare;

namespace {

void require(bool fine, const char* what) {
    if (fine) return;
    std::printf("%s\n", what);
    std::exit(1);
}

void sleep_ms(int milliseconds) { std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds)); }

void wait_for(const std::atomic<bool>& flag) {
    while (!flag.load()) std::this_thread::yield();
}

// Phases of tasks as in a step: every task is done exactly once, whoever comes when.
void every_task_is_done_once() {
    constexpr int64_t PHASES = 40, TASKS = 7;
    std::shared_ptr<Phase[]> phases(new Phase[PHASES]);
    Team& team = Team::of_process();
    for (int step = 0; step < 500; ++step) {
        std::vector<int> done(PHASES * TASKS, 0);
        std::vector<int64_t> sums(PHASES + 1, 0);
        for (int64_t i = 0; i < PHASES; ++i) {
            phases[i].next = phases[i].done = 0;
            phases[i].complete = false;
        }
        team.run(4, phases, [&](int64_t number) {
            for (int64_t at = 0; at < PHASES; ++at) {
                Phase& phase = phases[at];
                for (int64_t task; (task = phase.next.fetch_add(1)) < TASKS;) {
                    done[at * TASKS + task] += 1 + (int)sums[at];
                    if (phase.done.fetch_add(1) + 1 < TASKS) continue;
                    for (int64_t i = 0; i < TASKS; ++i) sums[at + 1] += done[at * TASKS + i] > 0;
                    phase.complete.store(true, std::memory_order_release);
                }
                team.await(phase, number);
            }
        });
        require(sums[PHASES] == TASKS, "a phase was left before its tasks were done");
        for (int64_t i = 0; i < PHASES * TASKS; ++i) require(done[i] == (i < TASKS ? 1 : 1 + TASKS), "a task was not done once");
    }
}

// A helper that waits for a phase which nobody completes is dismissed, and helps again in the next step.
void who_waits_is_dismissed() {
    std::shared_ptr<Phase[]> phases(new Phase[1]);
    Team& team = Team::of_process();
    for (int step = 0; step < 20; ++step) {
        std::atomic<bool> came{false};
        bool left = false;
        team.run(2, phases, [&](int64_t number) {
            if (number == 0) return wait_for(came);
            came = true;
            team.await(phases[0], number);
            left = true;
        });
        require(!left, "a helper went on after its step");
    }
}

// Who held up a step with one task is not asked for a while, and then again.
void who_is_late_pauses() {
    std::shared_ptr<Phase[]> phases(new Phase[1]);
    Team& team = Team::of_process();
    std::atomic<bool> came{false};
    std::atomic<int> helped{0};
    team.run(2, phases, [&](int64_t number) {
        if (number == 0) {
            wait_for(came);
            return team.await(phases[0], 0);
        }
        came = true;
        sleep_ms(30);
        phases[0].complete = true;
    });
    auto step = [&] {
        team.run(2, phases, [&](int64_t number) {
            if (number) ++helped;
            else sleep_ms(5);
        });
    };
    for (int i = 0; i < 5; ++i) step();
    require(helped == 0, "a helper that was late was asked again at once");
    sleep_ms(700);
    for (int i = 0; i < 20 && helped == 0; ++i) step();
    require(helped > 0, "a helper that was late once was never asked again");
}

// While one step has the helpers, another one goes alone.
void two_steps_at_a_time() {
    std::shared_ptr<Phase[]> phases(new Phase[1]);
    Team& team = Team::of_process();
    int inner = 0;
    team.run(2, phases, [&](int64_t number) {
        if (number) return;
        std::thread other([&] { team.run(2, phases, [&](int64_t who) { inner += who == 0 ? 1 : 100; }); });
        other.join();
    });
    require(inner == 1, "two steps shared a team");
}

}  // namespace

int main() {
    every_task_is_done_once();
    who_waits_is_dismissed();
    who_is_late_pauses();
    two_steps_at_a_time();
    std::printf("fine\n");
    return 0;
}
