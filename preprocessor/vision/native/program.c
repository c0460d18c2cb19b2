/* Weights of a line → the steps in which vectors of outputs are made. */
#include "resize.h"

#include <stdlib.h>
#include <string.h>

#define MOST_LANES 16
#define NO_BYTE 0x80

/* What is still to be added to one output: taps from `next` on. Byte positions are those in a line of RGB pixels. */
typedef struct {
    int32_t next, stop;
    int32_t first_byte; /* of tap 0 */
    const int16_t *weights;
} Lane;

static Lane lane_of(const Axis *axis, int32_t value) {
    Lane lane = {0, 0, 0, NULL};
    if (value >= 3 * axis->target)
        return lane; /* behind the end of the line */
    int32_t pixel = value / 3;
    lane.weights = axis->weights + (size_t)pixel * (size_t)axis->tap_count;
    lane.first_byte = 3 * axis->starts[pixel] + value % 3;
    lane.stop = axis->tap_count;
    while (lane.stop > 0 && lane.weights[lane.stop - 1] == 0)
        lane.stop--;
    while (lane.next < lane.stop && lane.weights[lane.next] == 0)
        lane.next++;
    return lane;
}

static int32_t next_byte(const Lane *lane) {
    return lane->next < lane->stop ? lane->first_byte + 3 * lane->next : INT32_MAX;
}

/* The first byte that any lane still needs; INT32_MAX where none does. */
static int32_t first_needed(const Lane *lanes, int32_t lane_count) {
    int32_t first = INT32_MAX;
    for (int32_t lane = 0; lane < lane_count; ++lane)
        if (next_byte(&lanes[lane]) < first)
            first = next_byte(&lanes[lane]);
    return first;
}

/* One step at `base`: up to two taps of each lane. Returns how many taps there are in it. */
static int32_t fill_step(Lane *lanes, const Variant *variant, int32_t base, uint8_t *places, int16_t *weights) {
    int32_t taken = 0;
    for (int32_t half = 0; half < 2 * variant->lane_count; ++half) {
        Lane *lane = &lanes[half / 2];
        int32_t byte = next_byte(lane);
        places[2 * half] = places[2 * half + 1] = NO_BYTE;
        weights[half] = 0;
        if (byte >= base && byte < base + variant->window_bytes) {
            places[2 * half] = (uint8_t)(byte - base);
            weights[half] = lane->weights[lane->next++];
            ++taken;
        }
    }
    return taken;
}

/* The windows and steps of all groups; counted only, where `windows` is NULL. */
static void fill(const Axis *axis, const Variant *variant, Window *windows, uint8_t *steps, size_t *window_count, size_t *step_count) {
    const int32_t lane_count = variant->lane_count, line_bytes = 3 * axis->source;
    const int32_t last_base = line_bytes > variant->window_bytes ? line_bytes - variant->window_bytes : 0;
    const size_t half_bytes = 4 * (size_t)lane_count;
    Lane lanes[MOST_LANES];
    uint8_t places[4 * MOST_LANES];
    int16_t weights[2 * MOST_LANES];
    *window_count = *step_count = 0;
    for (int32_t value = 0; value < 3 * axis->target; value += lane_count) {
        for (int32_t lane = 0; lane < lane_count; ++lane)
            lanes[lane] = lane_of(axis, value + lane);
        int32_t needed = first_needed(lanes, lane_count);
        do { /* at least one window, if only an empty one */
            Window window = {needed < last_base ? needed : last_base, 0, 0};
            while (fill_step(lanes, variant, window.base, places, weights) > 0) {
                if (windows != NULL) {
                    memcpy(steps + *step_count * 2 * half_bytes, places, half_bytes);
                    memcpy(steps + *step_count * 2 * half_bytes + half_bytes, weights, half_bytes);
                }
                ++*step_count;
                ++window.step_count;
            }
            needed = first_needed(lanes, lane_count);
            window.ends_group = needed == INT32_MAX;
            if (windows != NULL)
                windows[*window_count] = window;
            ++*window_count;
        } while (needed != INT32_MAX);
    }
}

int build_program(Program *program, const Axis *axis, const Variant *variant) {
    size_t window_count, step_count;
    if (variant->lane_count == 0)
        return 1;
    fill(axis, variant, NULL, NULL, &window_count, &step_count);
    program->group_count = (3 * axis->target + variant->lane_count - 1) / variant->lane_count;
    program->windows = malloc(window_count * sizeof *program->windows);
    size_t step_bytes = 8 * (size_t)variant->lane_count * step_count;
    program->steps = aligned_alloc(CHUNK, (step_bytes + CHUNK) / CHUNK * CHUNK);
    if (program->windows == NULL || program->steps == NULL)
        return 0;
    fill(axis, variant, program->windows, program->steps, &window_count, &step_count);
    return 1;
}
