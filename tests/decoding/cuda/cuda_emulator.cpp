// The steps kernel as a library for tests: what cluster.py launches, on the CPU.

#define AUTOGAZE_EMULATED
#include "steps.cu"

extern "C" int shared_bytes(int table) { return sizeof(Shared) + sizeof(int) * table; }

extern "C" void launch(const Arguments* arguments, int clips) {
    emulator::run(
        BLOCKS, THREADS, clips, [](const void* given) { steps(*static_cast<const Arguments*>(given)); }, arguments);
}

#if PLACES
// What `ResidualMap` says while ids are taken one after the other.
struct Picks {
    const Arguments* arguments;
    const int* ids;
    int count;
    float *scores, *losses;  // (count, PATCHES) and (count), before each id
    signed char* level;      // (PLACES) in the end
};

static void pick(const Picks& picks) {
    ResidualMap& paste = shared<Shared>().paste;
    const int thread = thread_index();
    paste.load(*picks.arguments, 0, thread);
    sync_block();
    paste.begin(thread);
    sync_block();
    if (thread >= 32) return;
    for (int first = 0; first < picks.count; first += K) {  // a group
        const int size = picks.count - first < K ? picks.count - first : K;
        paste.add_up(thread);
        sync_warp();
        float left = paste.left, loss = 0;
        for (int i = 0; i < size; ++i) {
            for (int patch = thread; patch < PATCHES; patch += 32)
                picks.scores[(first + i) * PATCHES + patch] = paste.add(0, patch);
            if (thread == i) loss = left;
            sync_warp();
            left -= paste.take(i, picks.ids[first + i], thread);
        }
        loss -= paste.taken_besides(thread);
        if (thread < size) picks.losses[first + thread] = loss;
    }
    for (int n = thread; n < PLACES; n += 32) picks.level[n] = paste.level[n];
}

extern "C" void take(const Picks* picks) {
    emulator::run(1, THREADS, 1, [](const void* given) { pick(*static_cast<const Picks*>(given)); }, picks);
}
#endif
