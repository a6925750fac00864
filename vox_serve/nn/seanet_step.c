/* Runs the convolutions of SEANet's decoder over one frame of each row in one call; `seanet.py`
 * needs some 200 torch operations.  `seanet_step.py` compiles it; its tests compare it with plain
 * torch.
 *
 * Everything is float32.  A row's result does not depend on the other rows.
 */
#include "wide.h"

#define COLUMNS 4
#define BLOCK (COLUMNS * WIDE)
#define TILE_ROWS 8

typedef struct {
    const float *weight; /* blocks of BLOCK outputs, the last one of a multiple of WIDE: [in, outputs] */
    const float *bias;   /* [out], padded to a multiple of WIDE */
    int64_t in, out;     /* of the matrix: a window, and all outputs of one */
    int64_t channels, stride, inputs, before; /* outputs per time step; of the input: time steps
                                                 between windows, channels, time steps to keep */
    int64_t elu, adds; /* apply ELU to the input; add the input of the convolution before */
} Conv;

static void elu(const float *x, int64_t size, float *y) {
    for (int64_t i = 0; i < size; i += WIDE) {
        wide v = load(x + i), e = exponential(v) - 1.0f;
        for (int j = 0; j < WIDE; j++)
            v[j] = v[j] > 0.0f ? v[j] : e[j];
        memcpy(y + i, &v, sizeof v);
    }
}

/* One block of outputs for some windows.  Each caller passes constants as `columns` and `rows`, so
 * that all sums stay in registers. */
static inline __attribute__((always_inline)) void tile(const float *weight, const float *bias,
                                                       int64_t in, int columns, int rows,
                                                       const float *const *x, float *y,
                                                       int64_t out, int64_t count) {
    wide sums[TILE_ROWS][COLUMNS];
    for (int row = 0; row < rows; row++)
        for (int i = 0; i < columns; i++)
            sums[row][i] = load(bias + i * WIDE);
    for (int64_t k = 0; k < in; k++) {
        wide w[COLUMNS];
        for (int i = 0; i < columns; i++)
            w[i] = load(weight + (k * columns + i) * WIDE);
        for (int row = 0; row < rows; row++)
            for (int i = 0; i < columns; i++)
                sums[row][i] += w[i] * x[row][k];
    }
    for (int row = 0; row < rows; row++)
        memcpy(y + row * out, sums[row], count * sizeof(float));
}

/* The windows of each row: `steps` of them, `hop` numbers apart; the rows are `span` apart. */
static void product(const Conv *c, const float *x, int64_t rows, int64_t span, int64_t steps,
                    int64_t hop, float *y) {
    const float *weight = c->weight;
    for (int64_t n = 0; n < c->out; n += BLOCK) {
        int64_t count = c->out - n < BLOCK ? c->out - n : BLOCK;
        int columns = (count + WIDE - 1) / WIDE, most = columns > 2 ? 4 : 8;
        for (int64_t i = 0, done; i < rows * steps; i += done) {
            int64_t left = rows * steps - i;
            done = left >= most ? most : left >= 2 ? 2 : 1;
            const float *windows[TILE_ROWS];
            for (int64_t row = 0; row < done; row++)
                windows[row] = x + (i + row) / steps * span + (i + row) % steps * hop;
#define TILE(columns, rows)                                                                        \
    case 10 * columns + rows:                                                                      \
        tile(weight, c->bias + n, c->in, columns, rows, windows, y + i * c->out + n, c->out,       \
             count);                                                                               \
        break;
            switch (10 * columns + done) {
                TILE(4, 4) TILE(4, 2) TILE(4, 1) TILE(3, 4) TILE(3, 2) TILE(3, 1)
                TILE(2, 8) TILE(2, 2) TILE(2, 1) TILE(1, 8) TILE(1, 2) TILE(1, 1)
            }
        }
        weight += columns * WIDE * c->in;
    }
}

/* x [rows, time, inputs of the first] to out [rows, time and channels of the last].  before, after:
 * [rows, width], what each convolution keeps of its input, one after the other.  `work` has room
 * for the outputs of three convolutions, `room` each, and the windows of one. */
void seanet_step(const Conv *convs, int64_t count, int64_t rows, int64_t time, const float *x,
                 const float *before, float *after, int64_t width, float *work, int64_t room,
                 float *out) {
    float *windows = work + 3 * room;
    const float *earlier = x;
    for (int64_t n = 0; n < count; n++) {
        const Conv *c = convs + n;
        int64_t own = time * c->inputs, kept = c->before * c->inputs, span = kept + own;
        for (int64_t row = 0; row < rows; row++) {
            float *window = windows + row * span;
            memcpy(window, before + row * width, kept * sizeof(float));
            if (c->elu)
                elu(x + row * own, own, window + kept);
            else
                memcpy(window + kept, x + row * own, own * sizeof(float));
            memcpy(after + row * width, window + own, kept * sizeof(float));
        }
        before += kept;
        after += kept;
        int64_t steps = time / c->stride;
        float *y = n == count - 1 ? out : work + n % 3 * room;
        product(c, windows, rows, span, steps, c->stride * c->inputs, y);
        if (c->adds)
            add(y, earlier, rows * steps * c->out);
        earlier = x;
        x = y;
        time = steps * c->out / c->channels;
    }
}
