// A multilayer perceptron with ELU between its layers, float32: forward, and gradients of the weights.
//
// What BLAS cannot do for it: bias, activation and their derivatives happen while a block is still in registers, and rows are
// taken in tiles that stay in the second-level cache.  One thread; the caller shares rows among threads.
//
// Widths are padded with zeros to whole vectors, so that no kernel has a tail.  Legend: R rows, K inputs, N outputs of a layer.

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace {

#if defined(__AVX512F__)
constexpr int VECTOR = 16, COLUMNS = 4, ROWS = 6;  // 24 accumulators of 32 registers
#elif defined(__AVX2__)
constexpr int VECTOR = 8, COLUMNS = 2, ROWS = 6;  // 12 of 16
#else
constexpr int VECTOR = 4, COLUMNS = 4, ROWS = 6;  // 24 of NEON's 32
#endif
typedef float vec __attribute__((vector_size(VECTOR * 4), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(VECTOR * 4), aligned(4), may_alias));

inline vec load(const float* p) { return *(const vec*)p; }
inline void store(float* p, vec v) { *(vec*)p = v; }
inline vec all(float x) { return vec{} + x; }

// e^x - 1 for x < 0, x itself otherwise; e^x = 2^n e^r, |r| <= ln 2 / 2, by a polynomial of degree 6 (1e-7 of e^r).
inline vec elu(vec x) {
  vec y = x < -87.0f ? all(-87.0f) : x;
  y = y > 0.0f ? all(0.0f) : y;
  vec shifted = y * 1.44269504f + 12582912.0f;  // adding 1.5 * 2^23 rounds to a whole number
  vec n = shifted - 12582912.0f;
  vec r = y - n * 0.693145752f - n * 1.42860677e-6f;
  vec p = all(1.0f / 720.0f);
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r * r + r;  // e^r - 1
  ivec exponent = ((ivec)shifted - 0x4b400000 + 127) << 23;
  vec scale = (vec)exponent;
  return x > 0.0f ? x : scale * p + (scale - 1.0f);
}

// What becomes of a block before it is stored.
enum class After { STORE, ADD, ELU, ELU_GRADIENT };

// C[M x (V vectors)] = A B (+ bias), A[i][k] = a[i * row + k * step], B's rows `ldb` apart.
template <int M, int V, After AFTER>
inline void block(int64_t K, const float* a, int64_t row, int64_t step, const float* b, int64_t ldb, const float* bias,
                  float* c, int64_t ldc, const float* active) {
  vec acc[M][V];
  for (int i = 0; i < M; i++)
    for (int j = 0; j < V; j++) acc[i][j] = bias ? load(bias + j * VECTOR) : vec{};
  for (int64_t k = 0; k < K; k++) {
    vec right[V];
    for (int j = 0; j < V; j++) right[j] = load(b + k * ldb + j * VECTOR);
    for (int i = 0; i < M; i++) {
      vec left = all(a[i * row + k * step]);
      for (int j = 0; j < V; j++) acc[i][j] += left * right[j];
    }
  }
  for (int i = 0; i < M; i++)
    for (int j = 0; j < V; j++) {
      float* out = c + i * ldc + j * VECTOR;
      vec value = acc[i][j];
      if (AFTER == After::ADD) value += load(out);
      if (AFTER == After::ELU) value = elu(value);
      if (AFTER == After::ELU_GRADIENT) {  // elu'(x) by its value y: 1 above zero, y + 1 below
        vec y = load(active + i * ldc + j * VECTOR);
        value = y > 0.0f ? value : value * (y + 1.0f);
      }
      store(out, value);
    }
}

template <int V, After AFTER>
void panel(int64_t M, int64_t K, const float* a, int64_t row, int64_t step, const float* b, int64_t ldb, const float* bias,
           float* c, int64_t ldc, const float* active) {
  int64_t i = 0;
  for (; i + ROWS <= M; i += ROWS)
    block<ROWS, V, AFTER>(K, a + i * row, row, step, b, ldb, bias, c + i * ldc, ldc, active ? active + i * ldc : nullptr);
  for (; i < M; i++)
    block<1, V, AFTER>(K, a + i * row, row, step, b, ldb, bias, c + i * ldc, ldc, active ? active + i * ldc : nullptr);
}

// C (M x N) = A B, N a whole number of vectors.
template <After AFTER>
void product(int64_t M, int64_t N, int64_t K, const float* a, int64_t row, int64_t step, const float* b, int64_t ldb,
             const float* bias, float* c, int64_t ldc, const float* active) {
  int64_t j = 0;
  for (; j + COLUMNS * VECTOR <= N; j += COLUMNS * VECTOR)
    panel<COLUMNS, AFTER>(M, K, a, row, step, b + j, ldb, bias ? bias + j : nullptr, c + j, ldc, active ? active + j : nullptr);
  for (; j < N; j += VECTOR)
    panel<1, AFTER>(M, K, a, row, step, b + j, ldb, bias ? bias + j : nullptr, c + j, ldc, active ? active + j : nullptr);
}

int64_t padded(int64_t n) { return (n + VECTOR - 1) / VECTOR * VECTOR; }

constexpr int64_t TILE = 192;  // rows; a whole number of ROWS

}  // namespace

extern "C" {

// Floats that `forward` leaves in `kept` for `backward`: inputs of every layer, padded.
int64_t kept_size(int64_t rows, int layers, const int64_t* widths) {
  int64_t total = 0;
  for (int l = 0; l < layers; l++) total += rows * padded(widths[l]);
  return total;
}

// Floats of scratch memory that either needs.
int64_t scratch_size(int layers, const int64_t* widths) {
  int64_t total = 0, widest = 0;
  for (int l = 0; l < layers; l++) {
    total += 2 * padded(widths[l]) * padded(widths[l + 1]) + padded(widths[l + 1]);
    widest = std::max(widest, padded(widths[l + 1]));
  }
  return total + 2 * TILE * widest;
}

// Leaves y and what `backward` needs.  x: (rows, widths[0]), rows `ldx` apart; weights[l]: (widths[l + 1], widths[l]); y: (rows, widths[layers]).
void forward(int64_t rows, int layers, const int64_t* widths, const float* x, int64_t ldx, const float* const* weights,
             const float* const* biases, float* y, float* kept, float* scratch) {
  const float *right[16], *bias[16];
  float* free = scratch;
  for (int l = 0; l < layers; l++) {  // W^T, padded
    int64_t K = widths[l], N = widths[l + 1], ld = padded(N);
    float* w = free;
    std::memset(w, 0, sizeof(float) * padded(K) * ld);
    for (int64_t n = 0; n < N; n++)
      for (int64_t k = 0; k < K; k++) w[k * ld + n] = weights[l][n * K + k];
    float* b = w + padded(K) * ld;
    std::memset(b, 0, sizeof(float) * ld);
    std::memcpy(b, biases[l], sizeof(float) * N);
    right[l] = w, bias[l] = b, free = b + ld;
  }
  float* inputs[16];
  for (int l = 0; l < layers; l++) inputs[l] = kept, kept += rows * padded(widths[l]);
  int64_t last = padded(widths[layers]), in = padded(widths[0]);
  for (int64_t r = 0; r < rows; r += TILE) {
    int64_t count = std::min(TILE, rows - r);
    for (int64_t i = r; i < r + count; i++) {
      std::memcpy(inputs[0] + i * in, x + i * ldx, sizeof(float) * widths[0]);
      std::memset(inputs[0] + i * in + widths[0], 0, sizeof(float) * (in - widths[0]));
    }
    for (int l = 0; l < layers; l++) {
      int64_t K = padded(widths[l]), N = padded(widths[l + 1]);
      const float* a = inputs[l] + r * K;
      if (l + 1 < layers)
        product<After::ELU>(count, N, widths[l], a, K, 1, right[l], N, bias[l], inputs[l + 1] + r * N, N, nullptr);
      else
        product<After::STORE>(count, N, widths[l], a, K, 1, right[l], N, bias[l], free, N, nullptr);
    }
    for (int64_t i = 0; i < count; i++)
      std::memcpy(y + (r + i) * widths[layers], free + i * last, sizeof(float) * widths[layers]);
  }
}

// dy: (rows, widths[layers]); dweights[l], dbiases[l]: of the shapes of weights and biases, overwritten.
void backward(int64_t rows, int layers, const int64_t* widths, const float* dy, const float* const* weights, const float* kept,
              float* const* dweights, float* const* dbiases, float* scratch) {
  const float* inputs[16];
  float *right[16], *gradient[16], *bias[16];
  for (int l = 0; l < layers; l++) inputs[l] = kept, kept += rows * padded(widths[l]);
  float* free = scratch;
  int64_t widest = 0;
  for (int l = 0; l < layers; l++) {
    int64_t K = padded(widths[l]), N = padded(widths[l + 1]);
    right[l] = free, gradient[l] = right[l] + N * K, bias[l] = gradient[l] + N * K, free = bias[l] + N;
    std::memset(right[l], 0, sizeof(float) * (2 * N * K + N));
    for (int64_t n = 0; n < widths[l + 1]; n++)
      std::memcpy(right[l] + n * K, weights[l] + n * widths[l], sizeof(float) * widths[l]);
    widest = std::max(widest, N);
  }
  float *d = free, *before = free + TILE * widest;
  for (int64_t r = 0; r < rows; r += TILE) {
    int64_t count = std::min(TILE, rows - r), last = widths[layers];
    for (int64_t i = 0; i < count; i++) {
      std::memcpy(d + i * padded(last), dy + (r + i) * last, sizeof(float) * last);
      std::memset(d + i * padded(last) + last, 0, sizeof(float) * (padded(last) - last));
    }
    for (int l = layers - 1; l >= 0; l--) {
      int64_t K = padded(widths[l]), N = padded(widths[l + 1]);
      const float* a = inputs[l] + r * K;
      product<After::ADD>(widths[l + 1], K, count, d, 1, N, a, K, nullptr, gradient[l], K, nullptr);  // dW += d^T a
      for (int64_t i = 0; i < count; i++)
        for (int64_t n = 0; n < N; n += VECTOR) store(bias[l] + n, load(bias[l] + n) + load(d + i * N + n));
      if (l > 0) {  // d = (d W) elu'
        product<After::ELU_GRADIENT>(count, K, widths[l + 1], d, N, 1, right[l], K, nullptr, before, K, a);
        std::swap(d, before);
      }
    }
  }
  for (int l = 0; l < layers; l++) {
    int64_t K = widths[l], N = widths[l + 1];
    for (int64_t n = 0; n < N; n++) std::memcpy(dweights[l] + n * K, gradient[l] + n * padded(K), sizeof(float) * K);
    std::memcpy(dbiases[l], bias[l], sizeof(float) * N);
  }
}
}
