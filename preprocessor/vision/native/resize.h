/* The two passes of an antialiased resize of RGB frames in fixed point, and cutting the result into patch rows.
 *
 * An output value is clamp((half + sum of source value * weight) >> precision), 0 to 255, where half is 1 << (precision - 1). Lines
 * are resized first and rounded to bytes, then columns of these: so torch does it, and so must be done whatever is to be equal.
 *
 * Values of a line stay in the order of its pixels: R, G, B, R, G, B … Lines that were resized ("middle lines") are kept in pairs, each
 * in the order that its set of instructions wants: with AVX value by value side by side, as one multiplication of pairs of 16 bits takes
 * them. A batch is four pairs. Of middle lines only the batches that are still needed exist, in a ring.
 */
#ifndef RESIZE_H
#define RESIZE_H

#include <stddef.h>
#include <stdint.h>

#define BATCH_LINES 8 /* lines of a frame that are resized together */
#define BATCH_PAIRS (BATCH_LINES / 2)
#define STRIP_LINES 16 /* lines that are written into rows together */
#define CHUNK 64       /* middle lines are a multiple of this many values long */

#define HIDDEN __attribute__((visibility("hidden")))

/* Weights along one side, as the caller gives them. */
typedef struct {
    int32_t source, target; /* px */
    int32_t tap_count;      /* weights of one output */
    int32_t precision;      /* bits behind the point, 1 to 22 */
    const int32_t *starts;  /* [target]: the source pixel of an output's first weight */
    const int16_t *weights; /* [target][tap_count]; a weight of a pixel outside of the source is 0 */
} Axis;

/* How a frame of the new size is cut into rows. Black is added to the right and below up to the canvas. */
typedef struct {
    int32_t canvas_height, canvas_width; /* px, multiples of patch * merge */
    int32_t patch, merge;                /* px of a patch's side; patches of a block's side, whose rows follow one another */
    int32_t frames;                      /* that a patch spans */
} Cut;

/* Source values of one vector of outputs: `step_count` steps read a window of bytes that begins at `base`. */
typedef struct {
    int32_t base;
    int32_t step_count;
    int32_t ends_group; /* whether the vector of outputs is complete behind it */
} Window;

/* A line's resize for vectors of `lane_count` outputs. Each step, for each lane, picks two bytes of the window and holds their two
 * weights: 4 * lane_count bytes of places, each followed by 0x80, then 2 * lane_count weights. Nothing is read behind a line's end. */
typedef struct {
    Window *windows;
    uint8_t *steps;
    int32_t group_count;
} Program;

/* Which middle lines make an output line. */
typedef struct {
    int32_t first_pair, pair_count;
    int32_t line_stop; /* of the source: behind the last one needed */
    int32_t weights;   /* where its weights begin, two a pair */
} Column;

typedef struct Resizer Resizer;

/* One set of instructions. */
typedef struct {
    const char *name;
    int32_t lane_count, window_bytes; /* of `Program`; 0: none is needed */
    void (*resize_lines)(const Resizer *, const uint8_t *const *lines, uint8_t *batch);
    /* All chunks of one output line from pairs of middle lines. */
    void (*resize_columns)(const Resizer *, const uint8_t *const *pairs, const int16_t *weights, int32_t pair_count, uint8_t *line);
    /* RGB pixels → three planes, `stride` bytes apart, a multiple of CHUNK; all bytes of these are written. */
    void (*split)(const uint8_t *line, uint8_t *planes, size_t stride);
} Variant;

struct Resizer {
    const Variant *variant;
    Cut cut;
    int32_t width, height, new_width, new_height;
    int32_t value_count;     /* of a line after resizing: 3 * new_width */
    int32_t line_precision, column_precision;
    size_t pair_bytes;       /* of a pair of middle lines */
    int32_t ring_pairs;
    size_t plane_stride;
    Program program;
    Axis horizontal;         /* its arrays are this struct's own */
    Column *columns;         /* [new_height]; NULL where nothing is resized */
    int16_t *column_weights;
    uint8_t *ring;
    const uint8_t **pairs;   /* of the line that is being made */
    uint8_t *copies;         /* of a batch of lines: where they are shorter than a window, or turned for plain C */
    size_t copy_stride;
    uint8_t *line;           /* one line after resizing, and zeros behind it, a CHUNK more than `split` takes */
    uint8_t *planes;         /* [STRIP_LINES][3][plane_stride] */
    size_t *patch_offsets;   /* bytes from the first row of its line of patches, for each patch of a line */
};

HIDDEN int build_program(Program *program, const Axis *axis, const Variant *variant);

HIDDEN extern const Variant PORTABLE;
#if defined(__x86_64__)
HIDDEN extern const Variant AVX2;
HIDDEN extern const Variant AVX512;
#endif

#endif
