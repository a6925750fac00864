/* Vectors of 16 floats, for the C files beside it. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define WIDE 16
typedef float wide __attribute__((vector_size(4 * WIDE)));
typedef int32_t wide_int __attribute__((vector_size(4 * WIDE)));

static inline wide load(const float *x) {
    wide v;
    memcpy(&v, x, sizeof v);
    return v;
}

/* Cephes' expf: a power of two times a polynomial.  NaN stays NaN. */
static inline wide exponential(wide x) {
    for (int i = 0; i < WIDE; i++)
        x[i] = x[i] > 88.0f ? 88.0f : x[i] < -87.0f ? -87.0f : x[i];
    wide n = x * 1.44269504f + 12582912.0f; /* rounds to a whole number */
    wide_int power = (wide_int)n;
    n -= 12582912.0f;
    wide r = x - n * 0.693359375f + n * 2.12194440e-4f;
    wide p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * (wide)((power << 23) + 0x3f800000);
}

static inline void add(float *x, const float *y, int64_t size) {
    for (int64_t i = 0; i < size; i++)
        x[i] += y[i];
}
