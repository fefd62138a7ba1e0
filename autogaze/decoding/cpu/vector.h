// Short vectors in GCC's and Clang's vector extension: the compiler lowers them to whatever the processor has.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
constexpr int LANES = 16;
constexpr int REGISTERS = 32;
#elif defined(__AVX__)
constexpr int LANES = 8;
constexpr int REGISTERS = 16;
#elif defined(__aarch64__)
constexpr int LANES = 4;
constexpr int REGISTERS = 32;
#else
constexpr int LANES = 4;
constexpr int REGISTERS = 16;
#endif

typedef float vec __attribute__((vector_size(LANES * 4)));
typedef int32_t ivec __attribute__((vector_size(LANES * 4)));
typedef float loose __attribute__((vector_size(LANES * 4), aligned(4), may_alias));  // at any address

inline vec load(const float* from) { return *reinterpret_cast<const loose*>(from); }
inline void store(float* to, vec x) { *reinterpret_cast<loose*>(to) = x; }
inline vec all(float x) { return x - vec{}; }

inline vec larger(vec a, vec b) {
#if defined(__AVX512F__)
    return reinterpret_cast<vec>(_mm512_maskz_max_ps(0xffff, reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
#else
    return a > b ? a : b;
#endif
}

inline vec root(vec x) {
    for (int i = 0; i < LANES; i++) x[i] = __builtin_sqrtf(x[i]);
    return x;
}

inline float sum(vec x) {
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) x[i] += x[i + half];
    return x[0];
}

inline float most(vec x) {
    float best = x[0];
    for (int i = 1; i < LANES; i++) best = x[i] > best ? x[i] : best;
    return best;
}

// 0, 1, 2, ...
inline ivec counting() {
    ivec lanes;
    for (int i = 0; i < LANES; i++) lanes[i] = i;
    return lanes;
}

// 2 to the power x, for x from -126 to 126; below, 2^-126. Relative error 3e-7: a Taylor series around the nearest
// integer, which is added to the exponent. Adding 1.5 x 2^23 leaves that integer in the low bits.
inline vec power_of_two(vec x) {
    x = larger(x, all(-126.f));
    const vec shifter = all(12582912.f), shifted = x + shifter;
    const vec rest = x - (shifted - shifter);
    vec series = all(1.54035304e-4f);
    series = series * rest + 1.33335581e-3f;
    series = series * rest + 9.61812911e-3f;
    series = series * rest + 5.55041087e-2f;
    series = series * rest + 2.40226507e-1f;
    series = series * rest + 6.93147181e-1f;
    series = series * rest + 1.f;
    return reinterpret_cast<vec>(reinterpret_cast<ivec>(series) + (reinterpret_cast<ivec>(shifted) << 23));
}

// x / (1 + e^-x)
inline vec silu(vec x) {
    vec exponent = x * -1.44269504f;
    exponent = -larger(-exponent, all(-126.f));
    return x / (1.f + power_of_two(exponent));
}
