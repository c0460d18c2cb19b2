/* Plain C, in loops of a fixed length that compilers turn into vectors. The batch of lines is turned, so that what is added lies side
 * by side. */
#include "resize.h"

static inline uint8_t to_byte(int32_t sum, int32_t precision) {
    int32_t value = sum >> precision;
    return (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value);
}

static void resize_lines(const Resizer *resizer, const uint8_t *const *lines, uint8_t *batch) {
    const Axis *axis = &resizer->horizontal;
    const int32_t precision = resizer->line_precision, byte_count = 3 * axis->source;
    uint8_t *turned = resizer->copies; /* [byte_count][BATCH_LINES] */
    for (int line = 0; line < BATCH_LINES; ++line)
        for (int32_t byte = 0; byte < byte_count; ++byte)
            turned[(size_t)byte * BATCH_LINES + (size_t)line] = lines[line][byte];
    for (int32_t value = 0; value < resizer->value_count; ++value) {
        const int32_t pixel = value / 3;
        const int16_t *weights = axis->weights + (size_t)pixel * (size_t)axis->tap_count;
        int32_t sums[BATCH_LINES];
        for (int line = 0; line < BATCH_LINES; ++line)
            sums[line] = 1 << (precision - 1);
        for (int32_t tap = 0; tap < axis->tap_count; ++tap) {
            if (weights[tap] == 0)
                continue; /* its pixel may lie outside of the line */
            const uint8_t *bytes = turned + (size_t)(3 * (axis->starts[pixel] + tap) + value % 3) * BATCH_LINES;
            for (int line = 0; line < BATCH_LINES; ++line)
                sums[line] += weights[tap] * bytes[line];
        }
        for (int line = 0; line < BATCH_LINES; ++line)
            batch[(size_t)(line / 2) * resizer->pair_bytes + 2 * (size_t)value + (size_t)(line % 2)] = to_byte(sums[line], precision);
    }
}

static void
resize_columns(const Resizer *resizer, const uint8_t *const *pairs, const int16_t *weights, int32_t pair_count, uint8_t *line) {
    const int32_t precision = resizer->column_precision;
    for (int32_t value = 0; value < resizer->value_count; value += CHUNK) {
        int32_t sums[CHUNK];
        for (int at = 0; at < CHUNK; ++at)
            sums[at] = 1 << (precision - 1);
        for (int32_t pair = 0; pair < pair_count; ++pair) {
            const uint8_t *bytes = pairs[pair] + 2 * (size_t)value;
            const int32_t even = weights[2 * pair], odd = weights[2 * pair + 1];
            for (int at = 0; at < CHUNK; ++at)
                sums[at] += even * bytes[2 * at] + odd * bytes[2 * at + 1];
        }
        for (int at = 0; at < CHUNK; ++at)
            line[value + at] = to_byte(sums[at], precision);
    }
}

static void split(const uint8_t *restrict line, uint8_t *restrict planes, size_t stride) {
    for (size_t channel = 0; channel < 3; ++channel)
        for (size_t pixel = 0; pixel < stride; ++pixel)
            planes[channel * stride + pixel] = line[3 * pixel + channel];
}

const Variant PORTABLE = {"portable", 0, 0, resize_lines, resize_columns, split};
