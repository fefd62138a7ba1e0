// A cluster of thread blocks on the CPU: every thread is a fiber that runs until it waits for others. The names are
// those of autogaze/decoding/cuda/device.cuh. One cluster at a time; slow, but every barrier, shuffle and store counts.

#include <ucontext.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#define DEVICE inline
#define GLOBAL
#define CLUSTER(n)
#define LAUNCH_BOUNDS(n)
#define PARAMETER
#define UNROLL
#define UNROLL_BY_1
#define UNROLL_BY_4

using bf16 = unsigned short;

struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace emulator {

constexpr size_t STACK = 48 << 10, MEMORY = 232 << 10;  // of a fiber; of a block: what an H200 lends

struct Barrier {
    int expected = 0, arrived = 0;
    unsigned generation = 0;
};

struct Warp : Barrier {
    uint32_t values[2][32][8];  // two sets: a fast thread may be one exchange ahead
};

struct Fiber {
    ucontext_t context;
    int thread, block;
    unsigned exchanges = 0;
    bool done = false;
};

inline std::vector<Fiber> fibers;
inline std::vector<Barrier> blocks;
inline std::vector<Warp> warps;
inline std::vector<char> memory;
inline Barrier cluster;
inline ucontext_t scheduler;
inline int now, threads_a_block, first_block;
inline bool progressed;

inline Fiber& self() { return fibers[now]; }
inline void give_way() { swapcontext(&self().context, &scheduler); }

inline void wait(Barrier& barrier) {
    const unsigned mine = barrier.generation;
    progressed = true;
    if (++barrier.arrived == barrier.expected) {
        barrier.arrived = 0;
        ++barrier.generation;
        return;
    }
    while (barrier.generation == mine) give_way();
}

inline Warp& warp() { return warps[(self().block * threads_a_block + self().thread) / 32]; }

// Every thread of the warp gives `count` words and sees those of all.
inline const uint32_t (*exchange(const uint32_t* mine, int count))[8] {
    Warp& w = warp();
    auto& set = w.values[self().exchanges++ % 2];
    std::memcpy(set[self().thread % 32], mine, 4 * count);
    wait(w);
    return set;
}

inline void (*body)(const void*);
inline const void* arguments;

inline void run(int blocks_of_cluster, int threads, int clusters, void (*kernel)(const void*), const void* given) {
    body = kernel, arguments = given;
    threads_a_block = threads;
    static std::vector<char> stacks;
    const int count = blocks_of_cluster * threads;
    stacks.resize(count * STACK);
    for (int c = 0; c < clusters; ++c) {
        first_block = c * blocks_of_cluster;
        fibers.assign(count, {});
        blocks.assign(blocks_of_cluster, {});
        warps.assign(count / 32, {});
        memory.assign(blocks_of_cluster * MEMORY, static_cast<char>(0x7f));  // what nobody wrote is a large number
        cluster = {};
        cluster.expected = count;
        for (auto& block : blocks) block.expected = threads;
        for (auto& w : warps) w.expected = 32;
        for (int i = 0; i < count; ++i) {
            Fiber& fiber = fibers[i];
            fiber.thread = i % threads, fiber.block = i / threads;
            getcontext(&fiber.context);
            fiber.context.uc_stack.ss_sp = stacks.data() + i * STACK;
            fiber.context.uc_stack.ss_size = STACK;
            fiber.context.uc_link = &scheduler;
            makecontext(&fiber.context, reinterpret_cast<void (*)()>(+[] {
                body(arguments);
                self().done = true;
            }),
                        0);
        }
        for (int left = count; left;) {
            progressed = false;
            for (now = 0; now < count; ++now) {
                if (self().done) continue;
                swapcontext(&scheduler, &self().context);
                if (self().done) --left, progressed = true;
            }
            if (!progressed) {
                std::fprintf(stderr, "deadlock: threads wait for each other at different barriers\n");
                std::abort();
            }
        }
    }
}

}  // namespace emulator

inline int thread_index() { return emulator::self().thread; }
inline int block_index() { return emulator::first_block + emulator::self().block; }

template <class T>
T& shared() {
    static_assert(sizeof(T) < emulator::MEMORY, "shared memory");
    return *reinterpret_cast<T*>(emulator::memory.data() + emulator::self().block * emulator::MEMORY);
}
template <class T>
T* remote(T* here, int block) {
    char *start = emulator::memory.data(), *at = reinterpret_cast<char*>(here);
    return reinterpret_cast<T*>(start + (at - start) % emulator::MEMORY + block * emulator::MEMORY);
}

inline void sync_block() { emulator::wait(emulator::blocks[emulator::self().block]); }
inline void sync_warp() { emulator::wait(emulator::warp()); }
inline void sync_cluster() { emulator::wait(emulator::cluster); }

inline uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}
inline float float_of(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline unsigned vote(bool yes) {
    const uint32_t mine = yes;
    auto all = emulator::exchange(&mine, 1);
    unsigned bits = 0;
    for (int i = 0; i < 32; ++i) bits |= all[i][0] << i;
    return bits;
}
inline int popcount(unsigned bits) { return __builtin_popcount(bits); }
inline float shuffle(float value, int lane) {
    const uint32_t mine = bits_of(value);
    return float_of(emulator::exchange(&mine, 1)[lane][0]);
}
inline unsigned warp_max(unsigned value) {
    auto all = emulator::exchange(&value, 1);
    for (int i = 0; i < 32; ++i) value = all[i][0] > value ? all[i][0] : value;
    return value;
}
inline unsigned warp_min(unsigned value) {
    auto all = emulator::exchange(&value, 1);
    for (int i = 0; i < 32; ++i) value = all[i][0] < value ? all[i][0] : value;
    return value;
}
inline float sum_over(float value, int lanes) {
    const uint32_t mine = bits_of(value);
    auto all = emulator::exchange(&mine, 1);
    const int first = emulator::self().thread % 32 / lanes * lanes;
    float sum = 0;
    for (int i = 0; i < lanes; ++i) sum += float_of(all[first + i][0]);
    return sum;
}
inline float warp_sum(float value) { return sum_over(value, 32); }
inline float quad_sum(float value) { return sum_over(value, 4); }
inline float quad_max(float value) {
    const uint32_t mine = bits_of(value);
    auto all = emulator::exchange(&mine, 1);
    const int first = emulator::self().thread % 32 / 4 * 4;
    for (int i = 0; i < 4; ++i) value = fmaxf(value, float_of(all[first + i][0]));
    return value;
}

inline float rsqrtf(float value) { return 1.0f / sqrtf(value); }
inline float exp2_(float value) { return exp2f(value); }
inline float log2_(float value) { return log2f(value); }
inline float from_bf16(bf16 value) { return float_of(static_cast<uint32_t>(value) << 16); }
inline bf16 to_bf16(float value) {
    const uint32_t bits = bits_of(value);
    return static_cast<bf16>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline unsigned pack(float low, float high) { return to_bf16(low) | static_cast<unsigned>(to_bf16(high)) << 16; }
inline unsigned permute(unsigned low, unsigned high, unsigned select) {
    const uint64_t both = low | static_cast<uint64_t>(high) << 32;
    unsigned result = 0;
    for (int i = 0; i < 4; ++i) result |= static_cast<unsigned>(both >> 8 * (select >> 4 * i & 7) & 0xff) << 8 * i;
    return result;
}
inline unsigned ordered(float value) {
    const unsigned bits = bits_of(value);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// As PTX lays mma.m16n8k16 over a warp: thread 4 g + q holds a(g, 2q), a(g + 8, 2q), a(g, 2q + 8), a(g + 8, 2q + 8),
// two neighbours each, b(2q, g), b(2q + 8, g), and c(g, 2q), c(g + 8, 2q).
inline void mma(float* c, unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
    const uint32_t mine[6] = {a0, a1, a2, a3, b0, b1};
    auto all = emulator::exchange(mine, 6);
    const int lane = emulator::self().thread % 32, g = lane / 4, q = lane % 4;
    auto half = [](uint32_t word, int k) { return from_bf16(static_cast<bf16>(word >> 16 * (k & 1))); };
    for (int i = 0; i < 4; ++i) {
        const int row = i / 2, column = 2 * q + i % 2;  // rows g + 8 row
        for (int k = 0; k < 16; ++k) {
            const int from = k % 8 / 2;
            c[i] += half(all[4 * g + from][row + 2 * (k / 8)], k) * half(all[4 * column + from][4 + k / 8], k);
        }
    }
}

inline uint4 load_constant(const bf16* from) {
    uint4 value;
    std::memcpy(&value, from, 16);
    return value;
}
template <class T>
T load_fresh(const T* from) {
    return *from;
}
inline void atomic_add(int* to, int value) { *to += value; }
