/* AVX2: Intel since Haswell, AMD since Zen. Four outputs of two lines a vector, from windows of 16 bytes. */
#if defined(__x86_64__)
#include "resize.h"

#include <immintrin.h>

#define WITH __attribute__((target("avx2")))

enum { LANES = 4, STEP_BYTES = 8 * LANES };

/* Four vectors of sums → 32 bytes: within each 128 bits four values of each vector, in order. */
WITH static inline __m256i to_bytes(const __m256i *sums, __m128i precision) {
    __m256i ab = _mm256_packs_epi32(_mm256_sra_epi32(sums[0], precision), _mm256_sra_epi32(sums[1], precision));
    __m256i cd = _mm256_packs_epi32(_mm256_sra_epi32(sums[2], precision), _mm256_sra_epi32(sums[3], precision));
    return _mm256_packus_epi16(ab, cd);
}

WITH static inline __m128i load(const uint8_t *bytes) {
    return _mm_loadu_si128((const __m128i *)bytes);
}

WITH static void resize_lines(const Resizer *resizer, const uint8_t *const *lines, uint8_t *batch) {
    const Window *window = resizer->program.windows;
    const uint8_t *step = resizer->program.steps;
    const __m128i precision = _mm_cvtsi32_si128(resizer->line_precision);
    const __m256i half = _mm256_set1_epi32(1 << (resizer->line_precision - 1));
    const size_t pair_bytes = resizer->pair_bytes;
    for (int32_t group = 0; group < resizer->program.group_count; ++group) {
        __m256i sums[BATCH_PAIRS] = {half, half, half, half}, bytes[BATCH_PAIRS]; /* the even line below, the odd one above */
        int is_whole;
        do {
            for (int pair = 0; pair < BATCH_PAIRS; ++pair) {
                __m256i even = _mm256_castsi128_si256(load(lines[2 * pair] + window->base));
                bytes[pair] = _mm256_inserti128_si256(even, load(lines[2 * pair + 1] + window->base), 1);
            }
            for (int32_t count = window->step_count; count > 0; --count, step += STEP_BYTES) {
                __m256i places = _mm256_broadcastsi128_si256(load(step));
                __m256i weights = _mm256_broadcastsi128_si256(load(step + STEP_BYTES / 2));
                for (int pair = 0; pair < BATCH_PAIRS; ++pair) {
                    __m256i values = _mm256_shuffle_epi8(bytes[pair], places);
                    sums[pair] = _mm256_add_epi32(sums[pair], _mm256_madd_epi16(values, weights));
                }
            }
            is_whole = window++->ends_group;
        } while (!is_whole);
        __m256i whole = to_bytes(sums, precision);
        __m128i even = _mm256_castsi256_si128(whole), odd = _mm256_extracti128_si256(whole, 1);
        __m128i first = _mm_unpacklo_epi8(even, odd), second = _mm_unpackhi_epi8(even, odd);
        uint8_t *out = batch + group * 2 * LANES;
        _mm_storel_epi64((__m128i *)out, first);
        _mm_storel_epi64((__m128i *)(out + pair_bytes), _mm_unpackhi_epi64(first, first));
        _mm_storel_epi64((__m128i *)(out + 2 * pair_bytes), second);
        _mm_storel_epi64((__m128i *)(out + 3 * pair_bytes), _mm_unpackhi_epi64(second, second));
    }
}

WITH static void
resize_columns(const Resizer *resizer, const uint8_t *const *pairs, const int16_t *weights, int32_t pair_count, uint8_t *line) {
    const __m128i precision = _mm_cvtsi32_si128(resizer->column_precision);
    const __m256i half = _mm256_set1_epi32(1 << (resizer->column_precision - 1));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    for (int32_t value = 0; value < resizer->value_count; value += 32) {
        __m256i sums[4] = {half, half, half, half};
        for (int32_t pair = 0; pair < pair_count; ++pair) {
            const uint8_t *bytes = pairs[pair] + 2 * (size_t)value;
            __m256i both = _mm256_set1_epi32((uint16_t)weights[2 * pair] | (int32_t)((uint32_t)(uint16_t)weights[2 * pair + 1] << 16));
            for (int part = 0; part < 4; ++part) {
                __m256i values = _mm256_cvtepu8_epi16(load(bytes + 16 * part));
                sums[part] = _mm256_add_epi32(sums[part], _mm256_madd_epi16(values, both));
            }
        }
        _mm256_storeu_si256((__m256i *)(line + value), _mm256_permutevar8x32_epi32(to_bytes(sums, precision), order));
    }
}

/* Where the bytes of a channel of 16 pixels lie in the first, second or third 16 bytes of these; -1 where in another. */
WITH static inline __m128i places_of(int channel, int third) {
    int8_t places[16];
    for (int pixel = 0; pixel < 16; ++pixel) {
        int byte = 3 * pixel + channel - 16 * third;
        places[pixel] = (int8_t)(byte >= 0 && byte < 16 ? byte : -1);
    }
    return _mm_loadu_si128((const __m128i *)places);
}

WITH static void split(const uint8_t *line, uint8_t *planes, size_t stride) {
    __m128i places[3][3];
    for (int channel = 0; channel < 3; ++channel)
        for (int third = 0; third < 3; ++third)
            places[channel][third] = places_of(channel, third);
    for (size_t pixel = 0; pixel < stride; pixel += 16, line += 48) {
        const __m128i thirds[3] = {load(line), load(line + 16), load(line + 32)};
        for (int channel = 0; channel < 3; ++channel) {
            __m128i values = _mm_shuffle_epi8(thirds[0], places[channel][0]);
            values = _mm_or_si128(values, _mm_shuffle_epi8(thirds[1], places[channel][1]));
            values = _mm_or_si128(values, _mm_shuffle_epi8(thirds[2], places[channel][2]));
            _mm_storeu_si128((__m128i *)(planes + (size_t)channel * stride + pixel), values);
        }
    }
}

const Variant AVX2 = {"avx2", LANES, 16, resize_lines, resize_columns, split};
#endif
