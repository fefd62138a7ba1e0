// What a warp does: products of 16 rows, norms, and attention over 32 keys at a time.

struct Tile {
    float c[4];
};  // rows g and g + 8, columns 2 q and 2 q + 1, with g = lane / 4, q = lane % 4

// Adds 32 terms of every element: `a` 16 rows of an operand in shared memory, `w` this thread's 16 bytes of 8 columns.
DEVICE void multiply(Tile& tile, const bf16* a, int stride, int g, int q, const uint4& w) {
    const uint4 low = *reinterpret_cast<const uint4*>(a + g * stride + 8 * q);
    const uint4 high = *reinterpret_cast<const uint4*>(a + (g + 8) * stride + 8 * q);
    mma(tile.c, low.x, high.x, low.y, high.y, w.x, w.y);
    mma(tile.c, low.z, high.z, low.w, high.w, w.z, w.w);
}

// This thread's share of 8 rows of a (rows, width) matrix of weights, CHUNKS x 32 columns from `column` on.
template <int CHUNKS>
struct Weights {
    uint4 w[CHUNKS];
    DEVICE void load(const bf16* matrix, int width, int row, int column, int g, int q) {
        const bf16* from = matrix + (size_t)(row + g) * width + column + 8 * q;
        UNROLL
        for (int s = 0; s < CHUNKS; ++s) w[s] = load_constant(from + 32 * s);
    }
};

DEVICE void store_tile(float* to, int stride, int column, const Tile& tile, int g, int q) {
    to[g * stride + column + 2 * q] = tile.c[0];
    to[g * stride + column + 2 * q + 1] = tile.c[1];
    to[(g + 8) * stride + column + 2 * q] = tile.c[2];
    to[(g + 8) * stride + column + 2 * q + 1] = tile.c[3];
}

// A warp norms a row of the residual stream into a row of the operand.
DEVICE void norm_row(const float* x, bf16* to, float eps, int lane) {
    float values[(C + 31) / 32], sum = 0;
    UNROLL
    for (int i = 0; i < C / 32; ++i) {
        values[i] = x[lane + 32 * i];
        sum += values[i] * values[i];
    }
    sum = warp_sum(sum);
    const float factor = rsqrtf(sum / C + eps);
    UNROLL
    for (int i = 0; i < C / 32; ++i) to[lane + 32 * i] = to_bf16(values[i] * factor);
}

struct Keys {
    uint4 k[4];
    uint2 v[2][4];
};  // this thread's part of 32 keys and values

// FRESH: from device memory, where other blocks write; else from shared memory.
template <bool FRESH>
DEVICE void load_keys(Keys& to, const bf16* keys, const bf16* values, int count, int g, int q) {
    const int last = count - 1;
    UNROLL
    for (int j = 0; j < 4; ++j) {
        const int token = 8 * j + g < last ? 8 * j + g : last;
        const uint4* from = reinterpret_cast<const uint4*>(keys + token * D + 8 * q);
        if (FRESH) to.k[j] = load_fresh(from);
        else to.k[j] = *from;
    }
    UNROLL
    for (int half = 0; half < 2; ++half) {
        UNROLL
        for (int i = 0; i < 4; ++i) {
            const int at = 16 * half + 2 * q + (i & 1) + 8 * (i >> 1), token = at < last ? at : last;
            const uint2* from = reinterpret_cast<const uint2*>(values + token * D + 4 * g);
            if (FRESH) to.v[half][i] = load_fresh(from);
            else to.v[half][i] = *from;
        }
    }
}

struct Softmax {  // running softmax of two rows (g and g + 8): arXiv:2205.14135
    float peak[2], mass[2];
    Tile out[4];  // of tile j, columns 8 q + j (c[0], c[2]) and 8 q + 4 + j (c[1], c[3]) of the head
};

// Folds up to 32 keys in. CAUSAL: key n is visible to rows from n on.
template <bool CAUSAL>
DEVICE void fold(Softmax& soft, const uint4& low, const uint4& high, const Keys& keys, int count, int g, int q) {
    Tile s[4];
    UNROLL
    for (int j = 0; j < 4; ++j) {
        s[j] = Tile{};
        mma(s[j].c, low.x, high.x, low.y, high.y, keys.k[j].x, keys.k[j].y);
        mma(s[j].c, low.z, high.z, low.w, high.w, keys.k[j].z, keys.k[j].w);
        UNROLL
        for (int i = 0; i < 4; ++i) {
            const int token = 8 * j + 2 * q + (i & 1), row = g + 8 * (i >> 1);
            if (CAUSAL && token > row) s[j].c[i] = -INFINITY;
        }
    }
    if (count < BN) {
        UNROLL
        for (int i = 0; i < 16; ++i)
            if (8 * (i / 4) + 2 * q + (i & 1) >= count) s[i / 4].c[i % 4] = -INFINITY;
    }
    UNROLL
    for (int h = 0; h < 2; ++h) {
        float top = soft.peak[h];
        UNROLL
        for (int j = 0; j < 4; ++j) top = fmaxf(top, fmaxf(s[j].c[2 * h], s[j].c[2 * h + 1]));
        top = quad_max(top);
        const float fade = exp2_(soft.peak[h] - top);
        float sum = 0;
        UNROLL
        for (int j = 0; j < 4; ++j) {
            s[j].c[2 * h] = exp2_(s[j].c[2 * h] - top);
            s[j].c[2 * h + 1] = exp2_(s[j].c[2 * h + 1] - top);
            sum += s[j].c[2 * h] + s[j].c[2 * h + 1];
            soft.out[j].c[2 * h] *= fade;
            soft.out[j].c[2 * h + 1] *= fade;
        }
        soft.mass[h] = soft.mass[h] * fade + sum;  // of this thread's keys; added up over the quad at the end
        soft.peak[h] = top;
    }
    UNROLL
    for (int half = 0; half < 2; ++half) {
        const Tile &a = s[2 * half], &b = s[2 * half + 1];
        const unsigned p0 = pack(a.c[0], a.c[1]), p1 = pack(a.c[2], a.c[3]);
        const unsigned p2 = pack(b.c[0], b.c[1]), p3 = pack(b.c[2], b.c[3]);
        UNROLL
        for (int j = 0; j < 4; ++j) {
            const uint2* v = keys.v[half];
            const unsigned select = j % 2 ? 0x7632 : 0x5410;
            const unsigned b0 = permute(j < 2 ? v[0].x : v[0].y, j < 2 ? v[1].x : v[1].y, select);
            const unsigned b1 = permute(j < 2 ? v[2].x : v[2].y, j < 2 ? v[3].x : v[3].y, select);
            mma(soft.out[j].c, p0, p1, p2, p3, b0, b1);
        }
    }
}
