// The steps kernel as a library for tests: what cluster.py launches, on the CPU.

#define AUTOGAZE_EMULATED
#include "steps.cu"

extern "C" int shared_bytes(int table) { return sizeof(Shared) + sizeof(int) * table; }

extern "C" void launch(const Arguments *arguments, int clips) {
    emulator::run(BLOCKS, THREADS, clips, [](const void *given) { steps(*static_cast<const Arguments *>(given)); },
                  arguments);
}

#if PLACES
// What `PasteError` says while ids are taken one after the other.
struct Picks {
    const Arguments *arguments;
    const int *ids;
    int count;
    float *scores, *losses;  // (count, PATCHES) and (count), before each id
    signed char *level;      // (PLACES) in the end
};

static void pick(const Picks &picks) {
    PasteError &paste = shared<Shared>().paste;
    const int thread = thread_index();
    paste.load(*picks.arguments, 0, thread);
    sync_block();
    paste.begin(thread);
    sync_block();
    if (thread >= 32) return;
    paste.add_up(thread);
    sync_warp();
    float left = paste.left;
    for (int i = 0; i < picks.count; ++i) {
        for (int patch = thread; patch < PATCHES; patch += 32)
            picks.scores[i * PATCHES + patch] = paste.add(0, patch);
        picks.losses[i] = left;
        sync_warp();
        left -= paste.take(picks.ids[i], thread);
    }
    for (int n = thread; n < PLACES; n += 32) picks.level[n] = paste.level[n];
}

extern "C" void take(const Picks *picks) {
    emulator::run(1, THREADS, 1, [](const void *given) { pick(*static_cast<const Picks *>(given)); }, picks);
}
#endif
