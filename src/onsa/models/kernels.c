/* Kernels: what a block does to each value, in one go through memory (see kernels.py).
 *
 * Built once for values of fp32, and once for those of bf16 (with BF16 defined). All is computed in fp32; where the
 * plain way rounds in between, so do these. Tensors lie dense, but for the strides that `rotate` is given.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define PARALLEL _Pragma("omp parallel for num_threads(threads) schedule(static)")
#define EACH _Pragma("omp simd")

static inline float of_bits(uint32_t bits) {
    float number;
    memcpy(&number, &bits, sizeof number);
    return number;
}

#ifdef BF16
typedef uint16_t value;

static inline float load(value given) { return of_bits((uint32_t)given << 16); }

/* To nearest, ties to even; what is no number stays none. */
static inline value narrow(float number) {
    uint32_t bits;
    memcpy(&bits, &number, sizeof bits);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : (value)rounded;
}

static inline float rounded(float number) { return load(narrow(number)); }
#else
typedef float value;

static inline float load(value given) { return given; }
static inline value narrow(float number) { return number; }
static inline float rounded(float number) { return number; }
#endif

/* e to the power of x: 2 to a whole power, and a polynomial over what is left (Cephes, expf; error below 1e-7). A call
 * of the library's own would keep these loops from being done for several values at once. */
static inline float exponential(float x) {
    float near = x > 88.0f ? 88.0f : x < -87.0f ? -87.0f : x;
    float whole = floorf(near * 1.44269504088896341f + 0.5f);
    float left = near - whole * 0.693359375f + whole * 2.12194440e-4f;
    float power = 1.9875691500e-4f;
    power = power * left + 1.3981999507e-3f;
    power = power * left + 8.3334519073e-3f;
    power = power * left + 4.1665795894e-2f;
    power = power * left + 1.6666665459e-1f;
    power = power * left + 5.0000001201e-1f;
    power = power * left * left + left + 1.0f;
    float found = power * of_bits((uint32_t)((int32_t)whole + 127) << 23);
    return x != x ? x : x > 88.0f ? INFINITY : found;
}

/* y = w x r, where r = 1 / sqrt(mean(x^2) + eps), one of each row. */
void norm_forward(const value *x, const value *w, value *y, float *r, int64_t rows, int64_t width, float eps,
                  int threads) {
    PARALLEL
    for (int64_t row = 0; row < rows; row++) {
        const value *from = x + row * width;
        value *to = y + row * width;
        float sum = 0;
        _Pragma("omp simd reduction(+ : sum)")
        for (int64_t i = 0; i < width; i++) sum += load(from[i]) * load(from[i]);
        float scale = 1.0f / sqrtf(sum / (float)width + eps);
        r[row] = scale;
        EACH
        for (int64_t i = 0; i < width; i++) to[i] = narrow(load(w[i]) * rounded(load(from[i]) * scale));
    }
}

/* dx = r (w dy) - x r^3 mean(w dy x). */
void norm_backward(const value *dy, const value *x, const value *w, const float *r, value *dx, int64_t rows,
                   int64_t width, int threads) {
    PARALLEL
    for (int64_t row = 0; row < rows; row++) {
        const value *from = x + row * width, *above = dy + row * width;
        value *to = dx + row * width;
        float dot = 0, scale = r[row];
        _Pragma("omp simd reduction(+ : dot)")
        for (int64_t i = 0; i < width; i++) dot += load(above[i]) * load(w[i]) * load(from[i]);
        float mean = dot * scale * scale * scale / (float)width;
        EACH
        for (int64_t i = 0; i < width; i++) to[i] = narrow(scale * load(above[i]) * load(w[i]) - mean * load(from[i]));
    }
}

/* dw = sum over rows of dy x r, in their order whatever the threads. */
void norm_weight(const value *dy, const value *x, const float *r, float *dw, int64_t rows, int64_t width,
                 int threads) {
    PARALLEL
    for (int64_t part = 0; part < threads; part++) {
        int64_t begin = width * part / threads, end = width * (part + 1) / threads;
        for (int64_t row = 0; row < rows; row++) {
            const value *from = x + row * width, *above = dy + row * width;
            float scale = r[row];
            EACH
            for (int64_t i = begin; i < end; i++) dw[i] += load(above[i]) * rounded(load(from[i]) * scale);
        }
    }
}

/* h = g sigmoid(g) u. */
void gate_forward(const value *g, const value *u, value *h, int64_t values, int threads) {
    _Pragma("omp parallel for simd num_threads(threads) schedule(static)")
    for (int64_t i = 0; i < values; i++) {
        float gate = load(g[i]);
        h[i] = narrow(rounded(gate / (1.0f + exponential(-gate))) * load(u[i]));
    }
}

void gate_backward(const value *dh, const value *g, const value *u, value *dg, value *du, int64_t values,
                   int threads) {
    _Pragma("omp parallel for simd num_threads(threads) schedule(static)")
    for (int64_t i = 0; i < values; i++) {
        float gate = load(g[i]), above = load(dh[i]);
        float open = 1.0f / (1.0f + exponential(-gate));
        float slope = open * (1.0f + gate * (1.0f - open));
        dg[i] = narrow(rounded(above * load(u[i])) * slope);
        du[i] = narrow(above * rounded(gate * open));
    }
}

/* y = x cos + turned(x) sin, or back: halves of each head as the two parts of complex numbers. Strides are those of rows,
 * heads and tokens; cos and sin are there for each row, or once (`shared`). */
void rotate(const value *x, const int64_t *x_strides, const value *cos, const value *sin, value *y,
            const int64_t *y_strides, int64_t rows, int64_t heads, int64_t tokens, int64_t width, int64_t shared,
            int64_t back, int threads) {
    int64_t half = width / 2;
    _Pragma("omp parallel for collapse(2) num_threads(threads) schedule(static)")
    for (int64_t vector = 0; vector < rows * heads; vector++)
        for (int64_t token = 0; token < tokens; token++) {
            int64_t row = vector / heads, head = vector % heads;
            const value *from = x + row * x_strides[0] + head * x_strides[1] + token * x_strides[2];
            value *to = y + row * y_strides[0] + head * y_strides[1] + token * y_strides[2];
            int64_t angle = ((shared ? 0 : row * tokens) + token) * width;
            const value *c = cos + angle, *s = sin + angle;
            EACH
            for (int64_t i = 0; i < half; i++) {
                float one = load(from[i]), two = load(from[half + i]);
                float up = load(s[i]), down = load(s[half + i]);
                float first = back ? two * down : -two * up, second = back ? -one * up : one * down;
                to[i] = narrow(rounded(one * load(c[i])) + rounded(first));
                to[half + i] = narrow(rounded(two * load(c[half + i])) + rounded(second));
            }
        }
}
