// Perceptrons that answer, and the gradient of a minibatch of PPO, without leaving the second-level cache.  One thread, and the
// caller shares rows among threads; only `infer` has helpers of its own.

#include <cmath>
#include <vector>

#include "helpers.hpp"
#include "network.hpp"

namespace {

constexpr int64_t PIECE = 96;   // rows that a helper takes at a time
constexpr int64_t SQUARE = 16;  // of a matrix that is transposed

Helpers& helpers = *new Helpers;  // never destroyed: its threads wait in it when the process ends

}  // namespace

extern "C" {

// Floats that `prepare` fills.
int64_t prepared_size(const int64_t* shape) {
  const Network network(shape);
  int64_t total = 0;
  for (int l = 0; l < network.layers; l++) {
    int64_t K = padded(network.widths[l]), N = padded(network.widths[l + 1]);
    total += K * N + N + (network.is_whole(l) ? 0 : N * K);
  }
  return total;
}

// Leaves the weights as the products want them: W^T and b of each layer, and W where it is not so already, padded with zeros.
void prepare(const int64_t* shape, const float* const* weights, const float* const* biases, float* prepared) {
  const Network network(shape);
  for (int l = 0; l < network.layers; l++) {
    const int64_t K = network.widths[l], N = network.widths[l + 1], rows = padded(K), columns = padded(N);
    float *forth = prepared, *bias = forth + rows * columns;
    prepared = bias + columns;
    if (N < columns) std::memset(forth, 0, sizeof(float) * rows * columns);
    // in squares: a column of all rows would miss the cache at each of them
    for (int64_t n0 = 0; n0 < N; n0 += SQUARE)
      for (int64_t k0 = 0; k0 < K; k0 += SQUARE)
        for (int64_t k = k0; k < std::min(k0 + SQUARE, K); k++)
          for (int64_t n = n0; n < std::min(n0 + SQUARE, N); n++) forth[k * columns + n] = weights[l][n * K + k];
    std::memset(bias, 0, sizeof(float) * columns);
    std::memcpy(bias, biases[l], sizeof(float) * N);
    if (network.is_whole(l)) continue;
    std::memset(prepared, 0, sizeof(float) * columns * rows);
    for (int64_t n = 0; n < N; n++) std::memcpy(prepared + n * rows, weights[l] + n * K, sizeof(float) * K);
    prepared += columns * rows;
  }
}

// y, (rows, outputs), of x, (rows, inputs), whose rows stand `ldx` apart, with up to `others` helpers: what lies between the two
// stays in a thread's own memory, call after call.
void infer(int64_t rows, const int64_t* shape, const float* x, int64_t ldx, const float* prepared, float* y, int others) {
  helpers.share((rows + PIECE - 1) / PIECE, others, [&](int64_t piece) {
    static thread_local std::vector<float> memory;
    Network network(shape);
    const size_t needed = kept_size(PIECE, shape) + PIECE * network.last();
    if (memory.size() < needed) memory.resize(needed);
    network.read(prepared);
    const int64_t r = piece * PIECE;
    float* scratch = network.make_room(PIECE, memory.data());
    network.answer(std::min(PIECE, rows - r), 0, x + r * ldx, ldx, y + r * network.widths[network.layers], scratch);
  });
}

// A minibatch of PPO with a Gaussian policy: where everything stands.  Columns are counted in a row of the table.
struct Minibatch {
  const float* table;
  int64_t columns;  // of a row of it
  int64_t actor[2], critic[2];  // observations, and mirrored ones
  int64_t action, output, log_prob, value, target, advantage, weight;
  int64_t copies, actions;        // 2: each transition also mirrored; A
  const int64_t* mirror;          // of actions: what comes from where, and its sign, (A,)
  const float* sign;
  const float *std, *old_std;     // (A,)
  const float *scale, *entropy;   // mean and deviation of the advantages; c_H
  float clip, value_coef;
  int64_t clip_value;
};

// Floats of scratch memory that `learn` needs.
int64_t learn_size(const int64_t* actor_shape, const int64_t* critic_shape) {
  int64_t total = 0;
  for (const int64_t* shape : {actor_shape, critic_shape}) total += kept_size(TILE, shape) + scratch_size(shape);
  return total;
}

// Sums over `count` rows of the table of the gradient of PPO's loss, and of what `PPO._losses` sums beside it, in its order:
// the two are one formula in two languages, and a test holds them together.
void learn(const Minibatch* batch, const int64_t* rows, int64_t count, const int64_t* actor_shape, const float* const* actor_weights,
           const float* actor_prepared, const int64_t* critic_shape, const float* const* critic_weights, const float* critic_prepared,
           float* const* actor_dweights, float* const* actor_dbiases, float* const* critic_dweights, float* const* critic_dbiases,
           float* dstd, float* sums, float* scratch) {
  const Minibatch& b = *batch;
  Network actor(actor_shape), critic(critic_shape);
  actor.read(actor_prepared, actor_weights);
  critic.read(critic_prepared, critic_weights);
  float* free = critic.make_room(TILE, actor.make_room(TILE, scratch));
  free = critic.make_gradient(actor.make_gradient(free, actor_dweights), critic_dweights);
  float *mean = free, *spare_actor = mean + TILE * actor.widest();
  float *value = spare_actor + TILE * actor.widest(), *spare_critic = value + TILE * critic.widest();

  const int64_t A = b.actions;
  // what is the same in every state: log sigma + log(2 pi) / 2, the entropy, KL's part of the deviations; summed over actions
  double log_norm = 0.0, entropy_each = 0.0, kl_each = 0.0;
  for (int64_t a = 0; a < A; a++) {
    double log_std = std::log((double)b.std[a]), ratio = b.old_std[a] / (double)b.std[a];
    log_norm += log_std + 0.5 * std::log(2.0 * M_PI);
    entropy_each += log_std + 0.5 + 0.5 * std::log(2.0 * M_PI);
    kl_each += 0.5 * ratio * ratio - std::log(ratio) - 0.5;
  }
  double slopes[MOST_ACTIONS] = {};  // dL/dsigma
  double weights = 0.0, surrogate = 0.0, value_loss = 0.0, kl = 0.0, outside = 0.0;
  const float low = 1.0f - b.clip, high = 1.0f + b.clip, share = 1.0f / (float)b.copies;

  for (int64_t copy = 0; copy < b.copies; copy++)
    for (int64_t r = 0; r < count; r += TILE) {
      const int64_t n = std::min(TILE, count - r);
      for (int64_t i = 0; i < n; i++) {
        const float* row = b.table + rows[r + i] * b.columns;
        actor.give(i, row + b.actor[copy]);
        critic.give(i, row + b.critic[copy]);
      }
      actor.forward(n, 0, mean);
      critic.forward(n, 0, value);
      for (int64_t i = 0; i < n; i++) {
        const float* row = b.table + rows[r + i] * b.columns;
        const float *action = row + b.action, *old_mean = row + b.output, weight = row[b.weight];
        float *mu = mean + i * actor.last(), *v = value + i * critic.last();
        const float advantage = (row[b.advantage] - b.scale[0]) / b.scale[1];
        // log pi(a|s), and r = pi(a|s) / pi_old(a|s)
        float distance = 0.0f, apart = 0.0f, z[MOST_ACTIONS];
        for (int64_t a = 0; a < A; a++) {
          const float acted = copy ? action[b.mirror[a]] * b.sign[a] : action[a], inverse = 1.0f / b.std[a];
          if (!copy) {
            const float shift = (old_mean[a] - mu[a]) * inverse;
            apart += shift * shift;
          }
          z[a] = (acted - mu[a]) * inverse;
          distance += z[a] * z[a];
        }
        const float ratio = std::exp(-0.5f * distance - (float)log_norm - row[b.log_prob]);
        const float clipped = ratio < low ? low : ratio > high ? high : ratio;
        // L_clip = max(-A r, -A clip(r)); what is not finite stays so
        const float free_loss = -advantage * ratio, clipped_loss = -advantage * clipped;
        const bool moves = (ratio >= low && ratio <= high) || !(free_loss <= clipped_loss);
        surrogate += (free_loss <= clipped_loss ? clipped_loss : free_loss) * weight * share;
        const float dlog = moves ? -advantage * ratio * weight * share : 0.0f;
        for (int64_t a = 0; a < A; a++) {
          mu[a] = dlog * z[a] / b.std[a];                         // d log pi / d mu = (a - mu) / sigma^2
          slopes[a] += dlog * (z[a] * z[a] - 1.0f) / b.std[a];  // d log pi / d sigma = (a - mu)^2 / sigma^3 - 1 / sigma
        }
        for (int64_t a = A; a < actor.last(); a++) mu[a] = 0.0f;
        // L_V = (V - R)^2, or the larger of it and that of the clipped value
        float error = v[0] - row[b.target], square = error * error, slope = 2.0f * error;
        if (b.clip_value) {
          const float step = v[0] - row[b.value], bounded = step < -b.clip ? -b.clip : step > b.clip ? b.clip : step;
          const float other = row[b.value] + bounded - row[b.target];
          if (square < other * other) {
            square = other * other;
            if (bounded != step) slope = 0.0f;
          }
        }
        value_loss += square * weight * share;
        v[0] = b.value_coef * slope * weight * share;
        for (int64_t a = 1; a < critic.last(); a++) v[a] = 0.0f;
        outside += std::fabs(ratio - 1.0f) > b.clip ? weight * share : 0.0f;
        if (!copy) {
          weights += weight;
          kl += (0.5f * apart + kl_each) * weight;
        }
      }
      actor.backward(n, 0, mean, spare_actor);
      critic.backward(n, 0, value, spare_critic);
    }
  for (int64_t a = 0; a < A; a++) dstd[a] = (float)(slopes[a] - *b.entropy * weights / b.std[a]);  // - c_H H
  actor.finish(actor_dweights, actor_dbiases);
  critic.finish(critic_dweights, critic_dbiases);
  const double all[] = {weights, surrogate, value_loss, entropy_each * weights, kl, outside, 0.0};
  for (int i = 0; i < 7; i++) sums[i] = (float)all[i];
}
}
