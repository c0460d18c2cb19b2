/* Plain C, in loops that compilers turn into vectors. Lines of a batch are turned, so that what is added lies side by side. The middle
 * lines of a pair lie one behind the other. */
#include "resize.h"

enum { PIXEL_VALUES = 3 * BATCH_LINES }; /* of a pixel in all lines of a batch */

static inline uint8_t to_byte(int32_t sum, int32_t precision) {
    int32_t value = sum >> precision;
    return (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value);
}

static void resize_lines(const Resizer *resizer, const uint8_t *const *lines, uint8_t *batch) {
    const Axis *axis = &resizer->horizontal;
    const int32_t precision = resizer->line_precision;
    const size_t byte_count = 3 * (size_t)axis->source, line_bytes = resizer->pair_bytes / 2;
    int16_t *turned = (int16_t *)resizer->copies; /* [byte_count][BATCH_LINES] */
    for (size_t byte = 0; byte < byte_count; ++byte)
        for (size_t line = 0; line < BATCH_LINES; ++line)
            turned[byte * BATCH_LINES + line] = lines[line][byte];
    for (int32_t pixel = 0; pixel < axis->target; ++pixel) {
        const int16_t *weights = axis->weights + (size_t)pixel * (size_t)axis->tap_count;
        int32_t sums[PIXEL_VALUES];
        uint8_t bytes[PIXEL_VALUES];
        for (int at = 0; at < PIXEL_VALUES; ++at)
            sums[at] = 1 << (precision - 1);
        for (int32_t tap = 0; tap < axis->tap_count; ++tap) {
            const int16_t weight = weights[tap];
            if (weight == 0)
                continue; /* its pixel may lie outside of the line */
            const int16_t *values = turned + (ptrdiff_t)(axis->starts[pixel] + tap) * PIXEL_VALUES;
            for (int at = 0; at < PIXEL_VALUES; ++at)
                sums[at] += weight * values[at];
        }
        for (int at = 0; at < PIXEL_VALUES; ++at)
            bytes[at] = to_byte(sums[at], precision);
        for (size_t line = 0; line < BATCH_LINES; ++line)
            for (size_t channel = 0; channel < 3; ++channel)
                batch[line * line_bytes + 3 * (size_t)pixel + channel] = bytes[channel * BATCH_LINES + line];
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
            const uint8_t *even = pairs[pair] + value, *odd = even + resizer->pair_bytes / 2;
            const int16_t even_weight = weights[2 * pair], odd_weight = weights[2 * pair + 1];
            for (int at = 0; at < CHUNK; ++at)
                sums[at] += even_weight * (int16_t)even[at] + odd_weight * (int16_t)odd[at];
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
