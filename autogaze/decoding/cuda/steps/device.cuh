// What the kernels need of a GPU, in one place: the emulator of the tests has the same names.

#define DEVICE __device__ __forceinline__
#define GLOBAL __global__
#define CLUSTER(n) __cluster_dims__(n, 1, 1)
#define LAUNCH_BOUNDS(n) __launch_bounds__(n, 1)
#define PARAMETER __grid_constant__
#define UNROLL _Pragma("unroll")
#define UNROLL_BY_1 _Pragma("unroll 1")
#define UNROLL_BY_4 _Pragma("unroll 4")
#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#endif

using bf16 = unsigned short;

DEVICE int thread_index() { return threadIdx.x; }
DEVICE int block_index() { return blockIdx.x; }

template <class T>
DEVICE T& shared() {
    extern __shared__ __align__(16) char memory[];
    return *reinterpret_cast<T*>(memory);
}

// The same place in the shared memory of another block of the cluster.
template <class T>
DEVICE T* remote(T* here, int block) {
    T* there;
    asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(here), "r"(block));
    return there;
}

DEVICE void sync_block() { __syncthreads(); }
DEVICE void sync_warp() { __syncwarp(); }
DEVICE void sync_cluster() {
    __syncwarp();
    asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

DEVICE unsigned vote(bool yes) { return __ballot_sync(0xffffffffu, yes); }
DEVICE int popcount(unsigned bits) { return __popc(bits); }
DEVICE float shuffle(float value, int lane) { return __shfl_sync(0xffffffffu, value, lane); }
DEVICE unsigned warp_max(unsigned value) { return __reduce_max_sync(0xffffffffu, value); }
DEVICE unsigned warp_min(unsigned value) { return __reduce_min_sync(0xffffffffu, value); }
DEVICE float warp_sum(float value) {
    UNROLL
    for (int step = 16; step; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
    return value;
}
DEVICE float quad_max(float value) {
    value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 1));
    return fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 2));
}
DEVICE float quad_sum(float value) {
    value += __shfl_xor_sync(0xffffffffu, value, 1);
    return value + __shfl_xor_sync(0xffffffffu, value, 2);
}

DEVICE bf16 to_bf16(float value) {
    bf16 rounded;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(rounded) : "f"(value));
    return rounded;
}
DEVICE float from_bf16(bf16 value) { return __uint_as_float((unsigned)value << 16); }
DEVICE unsigned pack(float low, float high) {
    unsigned both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}
DEVICE unsigned permute(unsigned low, unsigned high, unsigned select) { return __byte_perm(low, high, select); }
DEVICE float exp2_(float value) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
    return result;
}
DEVICE float log2_(float value) {
    float result;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
    return result;
}
DEVICE float float_of(unsigned bits) { return __uint_as_float(bits); }
// Floats as unsigned integers of the same order.
DEVICE unsigned ordered(float value) {
    const unsigned bits = __float_as_uint(value);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// c (16 x 8) += a (16 x 16) b (16 x 8), bfloat16 operands; PTX mma.m16n8k16, row by column.
DEVICE void mma(float* c, unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Volatile: a load stays before the barrier that it was written before.
DEVICE uint4 load_constant(const bf16* from) {
    uint4 value;
    asm volatile("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(from));
    return value;
}
// Past the first cache, which does not see what other blocks write.
DEVICE uint4 load_fresh(const uint4* from) {
    uint4 value;
    asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(from)
                 : "memory");
    return value;
}
DEVICE uint2 load_fresh(const uint2* from) {
    uint2 value;
    asm volatile("ld.global.cg.v2.u32 {%0, %1}, [%2];" : "=r"(value.x), "=r"(value.y) : "l"(from) : "memory");
    return value;
}
DEVICE void atomic_add(int* to, int value) { atomicAdd(to, value); }
