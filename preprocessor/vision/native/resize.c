/* The functions that Python calls: a resizer for frames of one size, made once, which then writes frame after frame. */
#include "resize.h"

#include <stdlib.h>
#include <string.h>

#define EXPORTED __attribute__((visibility("default")))

static size_t round_up(size_t value, size_t step) {
    return (value + step - 1) / step * step;
}

/* Variants that the CPU has, the fastest first; NULL behind the last. */
static const Variant *variant_at(int32_t index) {
    const Variant *variants[4] = {0};
    int count = 0;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl"))
        variants[count++] = &AVX512;
    if (__builtin_cpu_supports("avx2"))
        variants[count++] = &AVX2;
#endif
    variants[count++] = &PORTABLE;
    return index >= 0 && index < count ? variants[index] : NULL;
}

EXPORTED const char *resizer_variant(int32_t index) {
    const Variant *variant = variant_at(index);
    return variant == NULL ? NULL : variant->name;
}

/* Pairs of middle lines for every output line, and how many have to be kept. */
static int plan_columns(Resizer *resizer, const Axis *axis) {
    size_t most_weights = (size_t)axis->tap_count + 3; /* whole pairs, whatever line they begin with */
    int32_t done = 0;                                  /* pairs made so far */
    resizer->columns = calloc((size_t)axis->target, sizeof *resizer->columns);
    resizer->column_weights = calloc((size_t)axis->target * most_weights, sizeof *resizer->column_weights);
    if (resizer->columns == NULL || resizer->column_weights == NULL)
        return 0;
    for (int32_t y = 0; y < axis->target; ++y) {
        const int16_t *weights = axis->weights + (size_t)y * (size_t)axis->tap_count;
        int32_t first = 0, stop = axis->tap_count;
        while (stop > 1 && weights[stop - 1] == 0)
            stop--;
        while (first < stop - 1 && weights[first] == 0)
            first++;
        int32_t line = axis->starts[y] + first, line_stop = axis->starts[y] + stop;
        Column column = {line / 2, (line_stop + 1) / 2 - line / 2, line_stop, (int32_t)((size_t)y * most_weights)};
        memcpy(resizer->column_weights + column.weights + line % 2, weights + first, (size_t)(stop - first) * sizeof *weights);
        resizer->columns[y] = column;
        int32_t needed = (int32_t)round_up((size_t)line_stop, BATCH_LINES) / 2;
        if (needed > done)
            done = needed;
        int32_t kept = done - column.first_pair / BATCH_PAIRS * BATCH_PAIRS;
        if (kept > resizer->ring_pairs)
            resizer->ring_pairs = kept;
    }
    return 1;
}

static int copy_axis(Axis *copy, const Axis *axis) {
    size_t weight_count = (size_t)axis->target * (size_t)axis->tap_count;
    int32_t *starts = malloc((size_t)axis->target * sizeof *starts);
    int16_t *weights = malloc(weight_count * sizeof *weights);
    *copy = *axis;
    copy->starts = starts;
    copy->weights = weights;
    if (starts == NULL || weights == NULL)
        return 0;
    memcpy(starts, axis->starts, (size_t)axis->target * sizeof *starts);
    memcpy(weights, axis->weights, weight_count * sizeof *weights);
    return 1;
}

static int allocate(Resizer *resizer) {
    const Cut *cut = &resizer->cut;
    const size_t line_bytes = 3 * (size_t)resizer->width, patch_count = (size_t)(cut->canvas_width / cut->patch);
    const size_t feature_count = 3 * (size_t)cut->frames * (size_t)cut->patch * (size_t)cut->patch;
    const size_t merge = (size_t)cut->merge;
    resizer->plane_stride = round_up((size_t)cut->canvas_width, CHUNK);
    resizer->pair_bytes = 2 * round_up((size_t)resizer->value_count, CHUNK);
    resizer->line = calloc(1, 3 * resizer->plane_stride + CHUNK);
    resizer->planes = malloc(STRIP_LINES * 3 * resizer->plane_stride);
    resizer->patch_offsets = malloc(patch_count * sizeof *resizer->patch_offsets);
    if (resizer->line == NULL || resizer->planes == NULL || resizer->patch_offsets == NULL)
        return 0;
    for (size_t column = 0; column < patch_count; ++column)
        resizer->patch_offsets[column] = (column / merge * merge * merge + column % merge) * feature_count;
    if (resizer->columns == NULL)
        return 1;
    resizer->ring = aligned_alloc(CHUNK, (size_t)resizer->ring_pairs * resizer->pair_bytes);
    resizer->pairs = malloc((size_t)resizer->ring_pairs * sizeof *resizer->pairs);
    if (resizer->ring == NULL || resizer->pairs == NULL)
        return 0;
    memset(resizer->ring, 0, (size_t)resizer->ring_pairs * resizer->pair_bytes);
    if (line_bytes < (size_t)resizer->variant->window_bytes)
        resizer->copy_stride = (size_t)resizer->variant->window_bytes;
    size_t copies_bytes = resizer->variant->window_bytes == 0 ? BATCH_LINES * line_bytes * sizeof(int16_t) : BATCH_LINES * resizer->copy_stride;
    resizer->copies = calloc(1, copies_bytes + 1);
    return resizer->copies != NULL;
}

EXPORTED void resizer_free(Resizer *resizer) {
    if (resizer == NULL)
        return;
    free(resizer->program.windows);
    free(resizer->program.steps);
    free((void *)resizer->horizontal.starts);
    free((void *)resizer->horizontal.weights);
    free(resizer->columns);
    free(resizer->column_weights);
    free(resizer->ring);
    free(resizer->pairs);
    free(resizer->copies);
    free(resizer->line);
    free(resizer->planes);
    free(resizer->patch_offsets);
    free(resizer);
}

/* A resizer, or NULL where memory is short. `horizontal` and `vertical` are read here only. */
EXPORTED Resizer *resizer_new(const Axis *horizontal, const Axis *vertical, const Cut *cut, int32_t variant) {
    Resizer *resizer = calloc(1, sizeof *resizer);
    if (resizer == NULL)
        return NULL;
    resizer->variant = variant_at(variant);
    resizer->cut = *cut;
    resizer->width = horizontal->source;
    resizer->height = vertical->source;
    resizer->new_width = horizontal->target;
    resizer->new_height = vertical->target;
    resizer->value_count = 3 * horizontal->target;
    resizer->line_precision = horizontal->precision;
    resizer->column_precision = vertical->precision;
    int is_resized = resizer->width != resizer->new_width || resizer->height != resizer->new_height;
    int is_made = resizer->variant != NULL;
    if (is_made && is_resized)
        is_made = copy_axis(&resizer->horizontal, horizontal) && plan_columns(resizer, vertical) &&
                  build_program(&resizer->program, horizontal, resizer->variant);
    if (is_made && allocate(resizer))
        return resizer;
    resizer_free(resizer);
    return NULL;
}

/* Resize the batch of lines that begins at `first` into its place in the ring. Behind the last line that one is repeated. */
static void make_batch(Resizer *resizer, const uint8_t *frame, ptrdiff_t stride, int32_t first) {
    const uint8_t *lines[BATCH_LINES];
    for (int32_t line = 0; line < BATCH_LINES; ++line) {
        int32_t y = first + line < resizer->height ? first + line : resizer->height - 1;
        lines[line] = frame + y * stride;
        if (resizer->copy_stride > 0) {
            uint8_t *copy = resizer->copies + (size_t)line * resizer->copy_stride;
            memcpy(copy, lines[line], 3 * (size_t)resizer->width);
            lines[line] = copy;
        }
    }
    uint8_t *batch = resizer->ring + (size_t)(first / 2 % resizer->ring_pairs) * resizer->pair_bytes;
    resizer->variant->resize_lines(resizer, lines, batch);
}

static void make_line(Resizer *resizer, int32_t y) {
    const Column *column = &resizer->columns[y];
    for (int32_t pair = 0; pair < column->pair_count; ++pair)
        resizer->pairs[pair] = resizer->ring + (size_t)((column->first_pair + pair) % resizer->ring_pairs) * resizer->pair_bytes;
    resizer->variant->resize_columns(
        resizer, resizer->pairs, resizer->column_weights + column->weights, column->pair_count, resizer->line);
}

/* Copy lines of planes into the rows of a line of patches, a patch at a time, so that what is written lies side by side. */
static inline void
copy_strip(const Resizer *resizer, uint8_t *rows, size_t patch, size_t line_count, size_t first_frame, size_t stop_frame) {
    const size_t patch_count = (size_t)resizer->cut.canvas_width / patch, frames = (size_t)resizer->cut.frames;
    const size_t stride = resizer->plane_stride;
    for (size_t column = 0; column < patch_count; ++column)
        for (size_t channel = 0; channel < 3; ++channel)
            for (size_t frame = first_frame; frame < stop_frame; ++frame) {
                const uint8_t *values = resizer->planes + channel * stride + column * patch;
                uint8_t *out = rows + resizer->patch_offsets[column] + (channel * frames + frame) * patch * patch;
                for (size_t line = 0; line < line_count; ++line, values += 3 * stride, out += patch)
                    memcpy(out, values, patch);
            }
}

/* Take `resizer->line`, line y of the canvas, and write a strip of lines when it is complete. */
static void cut_line(Resizer *resizer, int32_t y, uint8_t *rows, size_t first_frame, size_t stop_frame) {
    const Cut *cut = &resizer->cut;
    const size_t patch = (size_t)cut->patch, merge = (size_t)cut->merge, patch_row = (size_t)y / patch, y_in_patch = (size_t)y % patch;
    const size_t y_in_strip = y_in_patch % STRIP_LINES, feature_count = 3 * (size_t)cut->frames * patch * patch;
    const size_t row = patch_row / merge * merge * ((size_t)cut->canvas_width / patch) + patch_row % merge * merge;
    uint8_t *planes = resizer->planes + 3 * resizer->plane_stride * y_in_strip;
    resizer->variant->split(resizer->line, planes, resizer->plane_stride);
    if (y_in_strip + 1 < STRIP_LINES && y_in_patch + 1 < patch)
        return;
    rows += row * feature_count + (y_in_patch - y_in_strip) * patch;
    if (patch == 16) /* known lengths, which compilers copy without a call */
        copy_strip(resizer, rows, 16, y_in_strip + 1, first_frame, stop_frame);
    else if (patch == 14)
        copy_strip(resizer, rows, 14, y_in_strip + 1, first_frame, stop_frame);
    else
        copy_strip(resizer, rows, patch, y_in_strip + 1, first_frame, stop_frame);
}

/* Resize a frame and write it into its places of the rows of a temporal patch.
 *
 * frame: RGB bytes, 3 * width a line, lines `stride` bytes apart.
 * rows: [patches of the canvas][3 * frames * patch * patch], ordered channel, frame, y, x.
 * first_frame, stop_frame: the frame's places in a patch. */
EXPORTED void
resizer_write(Resizer *resizer, const uint8_t *frame, int64_t stride, uint8_t *rows, int32_t first_frame, int32_t stop_frame) {
    int32_t made = 0; /* lines of the frame */
    for (int32_t y = 0; y < resizer->new_height; ++y) {
        if (resizer->columns == NULL)
            memcpy(resizer->line, frame + y * (ptrdiff_t)stride, 3 * (size_t)resizer->width);
        else {
            for (; made < resizer->columns[y].line_stop; made += BATCH_LINES)
                make_batch(resizer, frame, (ptrdiff_t)stride, made);
            make_line(resizer, y);
        }
        cut_line(resizer, y, rows, (size_t)first_frame, (size_t)stop_frame);
    }
    if (resizer->cut.canvas_height > resizer->new_height)
        memset(resizer->line, 0, 3 * resizer->plane_stride);
    for (int32_t y = resizer->new_height; y < resizer->cut.canvas_height; ++y)
        cut_line(resizer, y, rows, (size_t)first_frame, (size_t)stop_frame);
}
