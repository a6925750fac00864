/* Runs the convolutions of SEANet's decoder over one frame of each row in one call; `seanet.py`
 * needs some 200 torch operations.  `seanet_step.py` compiles it; its tests compare it with plain
 * torch.
 *
 * Everything is float32.  A row's result does not depend on the other rows.
 */
#include "wide.h"

typedef struct {
    Blocks matrix; /* a window to all outputs of one */
    int64_t channels, stride, inputs, before; /* outputs per time step; of the input: time steps
                                                 between windows, channels, time steps to keep */
    int64_t elu, adds; /* apply ELU to the input; add the input of the convolution before */
} Conv;

static void elu(const float *x, int64_t size, float *y) {
    for (int64_t i = 0; i < size; i += WIDE) {
        wide v = load(x + i);
        v = choose(v > 0.0f, v, exponential(v) - 1.0f);
        memcpy(y + i, &v, sizeof v);
    }
}

/* x [rows, time, inputs of the first] to out [rows, time and channels of the last].  before, after:
 * [rows, width], the input that each convolution keeps, concatenated.  `work` has room
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
        product(&c->matrix, windows, rows, span, steps, c->stride * c->inputs, y);
        if (c->adds)
            add(y, earlier, rows * steps * c->matrix.out);
        earlier = x;
        x = y;
        time = steps * c->matrix.out / c->channels;
    }
}
