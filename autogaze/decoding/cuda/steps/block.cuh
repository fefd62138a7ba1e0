// A thread of a block of the cluster: what it works on, and how its block tells the others.

struct Block {
    const Arguments& a;
    Shared& s;
    const int thread, warp, lane, g, q, rank, head, split, clip;

    // Copies rows of `WORDS` words, `STRIDE` apart, to the same place in all other blocks, 16 bytes a time.
    template <int COUNT, int WORDS, int STRIDE>
    DEVICE void tell(float* here) const {
        constexpr int PARTS = WORDS / 4;
        static_assert(WORDS % 4 == 0 && STRIDE % 4 == 0, "16 bytes a time");
        for (int i = thread; i < COUNT * PARTS * (BLOCKS - 1); i += THREADS) {
            const int to = i / (COUNT * PARTS), part = i % (COUNT * PARTS);
            float* from = here + part / PARTS * STRIDE + part % PARTS * 4;
            *reinterpret_cast<float4*>(remote(from, to + (to >= rank))) = *reinterpret_cast<const float4*>(from);
        }
    }
};
