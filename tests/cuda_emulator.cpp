// The steps kernel as a library for tests: what cluster.py launches, on the CPU.

#define AUTOGAZE_EMULATED
#include "steps.cu"

extern "C" int shared_bytes(int table) { return sizeof(Shared) + sizeof(int) * table; }

extern "C" void launch(const Arguments *arguments, int clips) {
    emulator::run(BLOCKS, THREADS, clips, [](const void *given) { steps(*static_cast<const Arguments *>(given)); },
                  arguments);
}
