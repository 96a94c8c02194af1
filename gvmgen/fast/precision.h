// Vectors, and the three precisions that numbers are stored in. Layout and reasons: decoder.cpp.
//
// Vectors are GCC's and clang's own vector types, so that AVX2 and NEON get code too; only the integer and
// bfloat16 products have variants by hand.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace {

// As many lanes as a register of the processor has: GCC takes wider vectors through memory, piece by piece.
#if defined(__AVX512VNNI__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef int8_t Bytes __attribute__((vector_size(LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));

template <class To, class From>
To bits(From x) {
    static_assert(sizeof(To) == sizeof(From));
    To y;
    std::memcpy(&y, &x, sizeof y);
    return y;
}

Floats splat(float x) { return x - Floats{}; }
Floats load(const float* x) {
    Floats v;
    std::memcpy(&v, x, sizeof v);
    return v;
}
void store(float* x, Floats v) { std::memcpy(x, &v, sizeof v); }

Floats max(Floats x, Floats y) { return x > y ? x : y; }
Floats absolute(Floats x) { return x < 0.0f ? -x : x; }

// All lanes in one, by halves: a chain of sixteen would take as long as hundreds of products.
template <class Vector, class Join>
auto join_lanes(Vector v, Join join) {
    std::remove_reference_t<decltype(v[0])> lanes[LANES];
    std::memcpy(lanes, &v, sizeof v);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) lanes[i] = join(lanes[i], lanes[i + half]);
    return lanes[0];
}
template <class Vector>
auto sum_lanes(Vector v) {
    return join_lanes(v, [](auto x, auto y) { return x + y; });
}
float max_lane(Floats v) {
    return join_lanes(v, [](float x, float y) { return std::max(x, y); });
}

Floats exp(
    Floats x) {  // e^x for x <= 0: 2^n by the exponent's bits, the rest by a polynomial; relative error 2e-7
    x = max(x, splat(-87.0f));
    Floats scaled = x * 1.44269504f;
    Ints n = __builtin_convertvector(scaled - 0.5f, Ints);
    Floats rest = (scaled - __builtin_convertvector(n, Floats)) * 0.69314718f;
    Floats p = splat(1.0f / 5040);
    p = p * rest + 1.0f / 720;
    p = p * rest + 1.0f / 120;
    p = p * rest + 1.0f / 24;
    p = p * rest + 1.0f / 6;
    p = p * rest + 0.5f;
    p = p * rest + 1.0f;
    p = p * rest + 1.0f;
    return p * bits<Floats>((n + 127) << 23);
}

Floats gelu(Floats x) {  // with erf (Abramowitz and Stegun 7.1.26, error 1.5e-7)
    Floats z = absolute(x) * 0.70710678f;
    Floats t = 1.0f / (1.0f + 0.3275911f * z);
    Floats p = t * (0.254829592f +
                    t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
    Floats tail = 0.5f * p * exp(-z * z);  // the normal distribution beyond |x|
    return x * (x < 0.0f ? tail : 1.0f - tail);
}

// A row of inputs in words, and what turns sums of their products back into numbers.
struct Row {
    uint32_t* words;
    float* scales;    // of each group of inputs; int8 only
    int32_t* starts;  // of each group: what undoes the weights' offset
};

// ---- the three precisions
// -------------------------------------------------------------------------------------------

struct Fp32 {
    using Sum = Floats;
    static constexpr int PER_WORD = 1;
    static constexpr int GROUP_WORDS = 1 << 30;
    static constexpr bool HAS_SCALES = false;

    static Sum dot(Sum sum, Words w, uint32_t input) { return sum + bits<Floats>(w) * bits<float>(input); }
    static void encode(const float* x, int64_t n, Row row) { std::memcpy(row.words, x, 4 * n); }
    static uint32_t stored(uint32_t word) { return word; }
};

struct Bf16 {
    using Sum = Floats;
    static constexpr int PER_WORD = 2;
    static constexpr int GROUP_WORDS = 1 << 30;
    static constexpr bool HAS_SCALES = false;

    static Sum dot(Sum sum, Words w, uint32_t input) {
#if defined(__AVX512BF16__)
        return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)w, (__m512bh)(input - Words{}));
#else
        return sum + bits<Floats>(w << 16) * bits<float>(input << 16) +
               bits<Floats>(w & 0xffff0000u) * bits<float>(input & 0xffff0000u);
#endif
    }
    static void encode(const float* x, int64_t n, Row row) {  // rounds to the nearest, ties to even
        for (int64_t i = 0; i < n; i += LANES) {
            Words word = bits<Words>(load(x + i));
            Halves half = __builtin_convertvector((word + 0x7fff + (word >> 16 & 1)) >> 16, Halves);
            std::memcpy((uint16_t*)row.words + i, &half, sizeof half);
        }
    }
    static uint32_t stored(uint32_t word) { return word; }
};

struct Int8 {  // weights and keys are stored plus 128: AVX-512 multiplies unsigned by signed bytes
    using Sum = Ints;
    static constexpr int PER_WORD = 4;
    static constexpr int GROUP_WORDS =
        64;  // 256 inputs share a scale, so an outlier spoils only its own group
    static constexpr bool HAS_SCALES = true;
    // OFFSET: what `dot` leaves on the weights; a group's start takes it off.
#if defined(__AVX512VNNI__)
    static constexpr int32_t OFFSET = 128;
    static Sum dot(Sum sum, Words w, uint32_t input) {
        return (Ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, _mm512_set1_epi32(int(input)));
    }
#elif defined(__AVXVNNI__)
    static constexpr int32_t OFFSET = 128;
    static Sum dot(Sum sum, Words w, uint32_t input) {
        return (Ints)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)w, _mm256_set1_epi32(int(input)));
    }
#elif defined(__AVX2__)
    static constexpr int32_t OFFSET = 0;
    static Sum dot(Sum sum, Words w, uint32_t input) {
        const __m256i weights = _mm256_xor_si256((__m256i)w, _mm256_set1_epi8(-128));
        const __m256i inputs = _mm256_set1_epi32(int(input));
        // unsigned by signed, so the inputs' signs go to the weights; 2 x 127 x 127 just does not saturate
        const __m256i pairs =
            _mm256_maddubs_epi16(_mm256_abs_epi8(inputs), _mm256_sign_epi8(weights, inputs));
        return sum + (Ints)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    }
#elif defined(__ARM_FEATURE_DOTPROD)
    static constexpr int32_t OFFSET = 0;
    static Sum dot(Sum sum, Words w, uint32_t input) {
        const int8x16_t weights = vreinterpretq_s8_u32((uint32x4_t)(w ^ 0x80808080u));
        return (Ints)vdotq_s32((int32x4_t)sum, weights, vreinterpretq_s8_u32(vdupq_n_u32(input)));
    }
#else
    static constexpr int32_t OFFSET = 128;
    static Sum dot(Sum sum, Words w, uint32_t input) {
        for (int byte = 0; byte < 4; byte++)
            sum += (Ints)(w >> (8 * byte) & 0xffu) * int32_t(int8_t(input >> (8 * byte)));
        return sum;
    }
#endif
    static void encode(const float* x, int64_t n, Row row) {
        const int64_t group = GROUP_WORDS * PER_WORD;
        for (int64_t first = 0; first < n; first += group, row.scales++, row.starts++)
            quantise(x + first, std::min(group, n - first), (int8_t*)row.words + first, row.scales,
                     row.starts);
    }
    static void quantise(const float* x, int64_t n, int8_t* out, float* scale, int32_t* start) {
        const float limit = largest(x, n);
        Ints sum = {};
        for (int64_t i = 0; i < n; i += LANES) {
            const Ints numbers = rounded(load(x + i) * (127 / limit));
            sum += numbers;
            store(out + i, numbers);
        }
        *scale = limit / 127;
        *start = -OFFSET * sum_lanes(sum);
    }
    // Two rows whose sum is x to 16 bits: the second holds what the first rounds off, at most half a unit.
    static void encode_finely(const float* x, int64_t n, Row coarse, Row fine) {
        const int64_t group = GROUP_WORDS * PER_WORD;
        for (int64_t first = 0; first < n; first += group) {
            const int64_t end = std::min(n, first + group), number = first / group;
            const float unit = largest(x + first, end - first) / 127;
            Ints sum = {}, fine_sum = {};
            for (int64_t i = first; i < end; i += LANES) {
                const Floats scaled = load(x + i) * (1 / unit);
                const Ints whole = rounded(scaled);
                const Ints rest = rounded((scaled - __builtin_convertvector(whole, Floats)) * 254);
                sum += whole, fine_sum += rest;
                store((int8_t*)coarse.words + i, whole);
                store((int8_t*)fine.words + i, rest);
            }
            coarse.scales[number] = unit, fine.scales[number] = unit / 254;
            coarse.starts[number] = -OFFSET * sum_lanes(sum);
            fine.starts[number] = -OFFSET * sum_lanes(fine_sum);
        }
    }
    static float largest(const float* x, int64_t n) {  // of the absolute values
        Floats largest = {};
        for (int64_t i = 0; i < n; i += LANES) largest = max(largest, absolute(load(x + i)));
        return std::max(max_lane(largest), 1e-30f);
    }
    static Ints rounded(Floats x) {  // 1.5 x 2^23 rounds, and leaves the integer in the low bits
        return bits<Ints>(x + 12582912.0f) - 0x4b400000;
    }
    static void store(int8_t* to, Ints numbers) {
        Bytes bytes = __builtin_convertvector(numbers, Bytes);
        std::memcpy(to, &bytes, sizeof bytes);
    }
    static uint32_t stored(uint32_t word) { return word ^ 0x80808080u; }
};

template <class Format>
struct Encoded {  // room for some rows of at most `inputs` numbers
    Encoded(int64_t count, int64_t inputs) {
        const int64_t num_words = inputs / Format::PER_WORD,
                      num_groups = (num_words - 1) / Format::GROUP_WORDS + 1;
        words.resize(count * num_words);
        scales.resize(count * num_groups);
        starts.resize(count * num_groups);
        for (int64_t r = 0; r < count; r++)
            rows.push_back({&words[r * num_words], &scales[r * num_groups], &starts[r * num_groups]});
    }
    std::vector<uint32_t> words;
    std::vector<float> scales;
    std::vector<int32_t> starts;
    std::vector<Row> rows;
};

}  // namespace
