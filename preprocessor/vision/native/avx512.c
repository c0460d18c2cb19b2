/* AVX-512 with VBMI and VNNI: Intel since Ice Lake, AMD since Zen 4. Sixteen outputs a vector, from windows of 64 bytes. */
#if defined(__x86_64__)
#include "resize.h"

#include <immintrin.h>

#define WITH __attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")))

enum { LANES = 16, STEP_BYTES = 8 * LANES };

/* Four vectors of sums → 64 bytes: within each 128 bits four values of each vector, in order. */
WITH static inline __m512i to_bytes(__m512i a, __m512i b, __m512i c, __m512i d, __m128i precision) {
    __m512i ab = _mm512_packs_epi32(_mm512_sra_epi32(a, precision), _mm512_sra_epi32(b, precision));
    __m512i cd = _mm512_packs_epi32(_mm512_sra_epi32(c, precision), _mm512_sra_epi32(d, precision));
    return _mm512_packus_epi16(ab, cd);
}

WITH static void resize_lines(const Resizer *resizer, const uint8_t *const *lines, uint8_t *batch) {
    const Window *window = resizer->program.windows;
    const uint8_t *step = resizer->program.steps;
    const __m128i precision = _mm_cvtsi32_si128(resizer->line_precision);
    const __m512i half = _mm512_set1_epi32(1 << (resizer->line_precision - 1));
    const __mmask64 low_bytes = 0x5555555555555555;
    uint8_t order[64]; /* of `to_bytes` → lines 0 and 1 in pairs, then lines 2 and 3 */
    for (int byte = 0; byte < 64; ++byte) {
        int value = byte % 32 / 2, line = byte / 32 * 2 + byte % 2;
        order[byte] = (uint8_t)(value / 4 * 16 + line * 4 + value % 4);
    }
    const __m512i pairing = _mm512_loadu_si512(order);
    for (int32_t group = 0; group < resizer->program.group_count; ++group) {
        __m512i sums[BATCH_LINES], bytes[BATCH_LINES];
        for (int line = 0; line < BATCH_LINES; ++line)
            sums[line] = half;
        int is_whole;
        do {
            for (int line = 0; line < BATCH_LINES; ++line)
                bytes[line] = _mm512_loadu_si512(lines[line] + window->base);
            for (int32_t count = window->step_count; count > 0; --count, step += STEP_BYTES) {
                __m512i places = _mm512_load_si512(step), weights = _mm512_load_si512(step + STEP_BYTES / 2);
                for (int line = 0; line < BATCH_LINES; ++line) {
                    __m512i values = _mm512_maskz_permutexvar_epi8(low_bytes, places, bytes[line]);
                    sums[line] = _mm512_dpwssd_epi32(sums[line], values, weights);
                }
            }
            is_whole = window++->ends_group;
        } while (!is_whole);
        uint8_t *out = batch + group * 2 * LANES;
        for (int line = 0; line < BATCH_LINES; line += 4, out += 2 * resizer->pair_bytes) {
            __m512i whole = to_bytes(sums[line], sums[line + 1], sums[line + 2], sums[line + 3], precision);
            whole = _mm512_permutexvar_epi8(pairing, whole);
            _mm256_storeu_si256((__m256i *)out, _mm512_castsi512_si256(whole));
            _mm256_storeu_si256((__m256i *)(out + resizer->pair_bytes), _mm512_extracti64x4_epi64(whole, 1));
        }
    }
}

WITH static void
resize_columns(const Resizer *resizer, const uint8_t *const *pairs, const int16_t *weights, int32_t pair_count, uint8_t *line) {
    const __m128i precision = _mm_cvtsi32_si128(resizer->column_precision);
    const __m512i half = _mm512_set1_epi32(1 << (resizer->column_precision - 1));
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    for (int32_t value = 0; value < resizer->value_count; value += CHUNK) {
        __m512i sums[4] = {half, half, half, half};
        for (int32_t pair = 0; pair < pair_count; ++pair) {
            const uint8_t *bytes = pairs[pair] + 2 * (size_t)value;
            __m512i both = _mm512_set1_epi32((uint16_t)weights[2 * pair] | (int32_t)((uint32_t)(uint16_t)weights[2 * pair + 1] << 16));
            for (int part = 0; part < 4; ++part) {
                __m512i values = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)(bytes + 32 * part)));
                sums[part] = _mm512_dpwssd_epi32(sums[part], values, both);
            }
        }
        __m512i whole = to_bytes(sums[0], sums[1], sums[2], sums[3], precision);
        _mm512_storeu_si512(line + value, _mm512_permutexvar_epi32(order, whole));
    }
}

WITH static void split(const uint8_t *line, uint8_t *planes, size_t stride) {
    uint8_t order[64];
    for (int byte = 0; byte < 64; ++byte)
        order[byte] = (uint8_t)(byte < 48 ? byte % 16 * 3 + byte / 16 : 0);
    const __m512i by_channel = _mm512_loadu_si512(order);
    for (size_t pixel = 0; pixel < stride; pixel += 16) {
        __m512i values = _mm512_permutexvar_epi8(by_channel, _mm512_loadu_si512(line + 3 * pixel));
        _mm_storeu_si128((__m128i *)(planes + pixel), _mm512_castsi512_si128(values));
        _mm_storeu_si128((__m128i *)(planes + stride + pixel), _mm512_extracti32x4_epi32(values, 1));
        _mm_storeu_si128((__m128i *)(planes + 2 * stride + pixel), _mm512_extracti32x4_epi32(values, 2));
    }
}

const Variant AVX512 = {"avx512", LANES, 64, resize_lines, resize_columns, split};
#endif
