// What soft actor-critic learns of a batch, in two passes through the cache: the gradient of both critics, and that of actor and
// log alpha.  They are `SAC._critic_losses` and `SAC._actor_losses` in another language, for critics that say returns themselves,
// and a test holds them together.  One thread; the caller shares rows among threads.
//
// Legend: R rows of the batch, A actions.

#include <vector>

#include "network.hpp"

namespace {

// Where a batch stands; actions are in +-1, observations as the networks know them.
struct SoftBatch {
  const float *obs, *critic_obs, *next_obs, *next_critic_obs;  // (R, inputs)
  const float *actions, *rewards, *discount, *weight;
  const float *next_noise, *noise;    // (R, A)
  const float* log_alpha;
  float* errors;                      // how wrong the critics were, (R,): written
  int64_t inputs, critic_inputs, width;  // of observations; A
  float low, high, entropy;           // of log sigma; the entropy that alpha is for
};

constexpr double HALF_LOG_2_PI = 0.91893853320467274178, LOG_2 = 0.69314718055994530942;

// An action and its log pi.  u = mu + sigma z; a = tanh(u); log pi(a) = log N(u) - sum log(1 - a^2), whose last is taken from u, of
// which tanh leaves nothing far out.
float act(const SoftBatch& b, const float* output, const float* noise, float* action, float* sigma) {
  double log_prob = 0.0;
  for (int64_t a = 0; a < b.width; a++) {
    float log_std = output[b.width + a];
    log_std = log_std < b.low ? b.low : log_std > b.high ? b.high : log_std;
    sigma[a] = std::exp(log_std);
    const float u = output[a] + sigma[a] * noise[a], far = std::fabs(u);
    const float e = std::exp(-2.0f * far), t = -std::expm1(-2.0f * far) / (1.0f + e);
    action[a] = std::copysign(t, u);
    log_prob -= 0.5 * noise[a] * noise[a] + log_std + HALF_LOG_2_PI + 2.0 * (LOG_2 - far - std::log1p(e));
  }
  return (float)log_prob;
}

// What a critic sees of a row.
void show(const Network& q, int64_t row, const float* obs, int64_t size, const float* action, int64_t width) {
  float* to = q.inputs[0] + row * padded(q.widths[0]);
  std::memcpy(to, obs, sizeof(float) * size);
  std::memcpy(to + size, action, sizeof(float) * width);
  std::memset(to + size + width, 0, sizeof(float) * (padded(q.widths[0]) - size - width));
}

// Of two, the lower, and whichever is not a number.
bool second_is_lower(float one, float two) { return two < one || two != two; }

int64_t tile_width(const Network& network) { return std::max(network.widest(), padded(network.widths[0])); }

// A thread's own memory for a pass, call after call.
float* memory(const int64_t* actor_shape, const int64_t* critic_shape) {
  static thread_local std::vector<float> kept;
  const Network actor(actor_shape), critic(critic_shape);
  const int64_t tiles = 2 * TILE * (tile_width(actor) + 2 * tile_width(critic));
  const size_t needed = kept_size(TILE, actor_shape) + 2 * kept_size(TILE, critic_shape) + scratch_size(actor_shape) +
                        2 * scratch_size(critic_shape) + tiles;
  if (kept.size() < needed) kept.resize(needed);
  return kept.data();
}

// Two critics, as `SoftGradients` gives them: where their weights lie, and what `prepare` has left of them.
struct Pair {
  const float* const* weights[2];
  const float* prepared[2];
};

}  // namespace

extern "C" {

// Sums over `count` rows from `start` on of the gradient of both critics, and (rows that count, their loss, what they expect).
void soft_critics(const SoftBatch* batch, int64_t start, int64_t count, const int64_t* actor_shape, const float* actor_prepared,
                  const int64_t* critic_shape, const Pair* critics, const Pair* targets, float* const* const* dweights,
                  float* const* const* dbiases, float* sums) {
  const SoftBatch& b = *batch;
  Network actor(actor_shape), q[2] = {Network(critic_shape), Network(critic_shape)};
  actor.read(actor_prepared);
  // the layers of all are in the same memory, one network's after another's
  float* free = memory(actor_shape, critic_shape);
  float* after = std::max(actor.make_room(TILE, free), std::max(q[0].make_room(TILE, free), q[1].make_room(TILE, free)));
  free = q[1].make_gradient(q[0].make_gradient(after, dweights[0]), dweights[1]);
  const int64_t last = q[0].last();
  float *output = free, *value = output + TILE * std::max(actor.last(), last), *spare = value + TILE * q[0].widest();
  float action[MOST_ACTIONS], sigma[MOST_ACTIONS], target[TILE], cost[TILE], mean[TILE];
  const float alpha = std::exp(*b.log_alpha);
  double counted = 0.0, loss = 0.0, expected = 0.0;

  for (int64_t r = start; r < start + count; r += TILE) {
    const int64_t n = std::min(TILE, start + count - r);
    for (int64_t i = 0; i < n; i++) actor.give(i, b.next_obs + (r + i) * b.inputs);
    actor.forward(n, 0, output);
    for (int64_t i = 0; i < n; i++) {
      cost[i] = alpha * act(b, output + i * actor.last(), b.next_noise + (r + i) * b.width, action, sigma);
      show(q[0], i, b.next_critic_obs + (r + i) * b.critic_inputs, b.critic_inputs, action, b.width);
    }
    for (int c = 0; c < 2; c++) {
      q[c].read(targets->prepared[c]);
      q[c].forward(n, 0, value);
      for (int64_t i = 0; i < n; i++)
        if (c == 0 || second_is_lower(target[i], value[i * last])) target[i] = value[i * last];
    }
    for (int64_t i = 0; i < n; i++) {  // r + gamma^m (min Q'(s', a') - alpha log pi(a'|s'))
      target[i] = b.rewards[r + i] + b.discount[r + i] * (target[i] - cost[i]);
      show(q[0], i, b.critic_obs + (r + i) * b.critic_inputs, b.critic_inputs, b.actions + (r + i) * b.width, b.width);
      mean[i] = 0.0f;
    }
    for (int c = 0; c < 2; c++) {
      q[c].read(critics->prepared[c], critics->weights[c]);
      q[c].forward(n, 0, value);
      for (int64_t i = 0; i < n; i++) {
        float* v = value + i * last;
        const float weight = b.weight[r + i], error = v[0] - target[i];
        loss += 0.5f * error * error * weight;
        mean[i] += 0.5f * v[0];
        std::memset(v, 0, sizeof(float) * last);
        v[0] = error * weight;
      }
      q[c].backward(n, 0, value, spare);
    }
    for (int64_t i = 0; i < n; i++) {
      counted += b.weight[r + i] > 0.0f;
      expected += b.weight[r + i] > 0.0f ? mean[i] : 0.0f;
      b.errors[r + i] = std::fabs(mean[i] - target[i]);
    }
  }
  for (int c = 0; c < 2; c++) q[c].finish(dweights[c], dbiases[c]);
  sums[0] = (float)counted, sums[1] = (float)loss, sums[2] = (float)expected;
}

// Sums over `count` rows from `start` on of the gradient of actor and log alpha, and (rows that count, the actor's loss, the entropy,
// the mean deviation).
void soft_actor(const SoftBatch* batch, int64_t start, int64_t count, const int64_t* actor_shape,
                const float* const* actor_weights, const float* actor_prepared, const int64_t* critic_shape, const Pair* critics,
                float* const* dweights, float* const* dbiases, float* dlog_alpha, float* sums) {
  const SoftBatch& b = *batch;
  Network actor(actor_shape), q[2] = {Network(critic_shape), Network(critic_shape)};
  actor.read(actor_prepared, actor_weights);
  for (int c = 0; c < 2; c++) q[c].read(critics->prepared[c], critics->weights[c]);
  float *seen = actor.make_room(TILE, memory(actor_shape, critic_shape)), *free = q[1].make_room(TILE, q[0].make_room(TILE, seen));
  q[1].inputs[0] = seen;  // both are shown the same
  free = actor.make_gradient(free, dweights);
  const int64_t last = q[0].last(), A = b.width;
  float *output = free, *spare = output + TILE * actor.widest();
  float* tiles[4] = {spare + TILE * actor.widest()};
  for (int t = 1; t < 4; t++) tiles[t] = tiles[t - 1] + TILE * tile_width(q[0]);
  float log_prob[TILE], sigma[MOST_ACTIONS], action[MOST_ACTIONS];
  const float alpha = std::exp(*b.log_alpha);
  double counted = 0.0, loss = 0.0, entropy = 0.0, deviation = 0.0, slope_of_alpha = 0.0;
  int64_t numbers[TILE];

  for (int64_t r = start; r < start + count; r += TILE) {
    const int64_t n = std::min(TILE, start + count - r);
    for (int64_t i = 0; i < n; i++) actor.give(i, b.obs + (r + i) * b.inputs);
    actor.forward(n, 0, output);
    for (int64_t i = 0; i < n; i++) {
      log_prob[i] = act(b, output + i * actor.last(), b.noise + (r + i) * A, action, sigma);
      show(q[0], i, b.critic_obs + (r + i) * b.critic_inputs, b.critic_inputs, action, A);
      double mean = 0.0;
      for (int64_t a = 0; a < A; a++) mean += sigma[a];
      deviation += b.weight[r + i] > 0.0f ? mean / A : 0.0;
    }
    for (int c = 0; c < 2; c++) q[c].forward(n, 0, tiles[c]);
    bool second[TILE];
    for (int64_t i = 0; i < n; i++) {
      const float one = tiles[0][i * last], two = tiles[1][i * last];
      second[i] = second_is_lower(one, two);
      if (!(b.weight[r + i] > 0.0f)) continue;
      counted += 1.0;
      loss += alpha * log_prob[i] - (second[i] ? two : one);
      entropy -= log_prob[i];
      slope_of_alpha -= log_prob[i] + b.entropy;
    }
    for (int c = 0; c < 2; c++) {
      // back through the critic that is the lower one of a row, and through no other: its rows side by side
      int64_t m = 0;
      for (int64_t i = 0; i < n; i++) {
        if (second[i] != (c == 1)) continue;
        for (int l = 1; l < q[c].layers; l++) {
          const int64_t K = padded(q[c].widths[l]);
          if (m != i) std::memcpy(q[c].inputs[l] + m * K, q[c].inputs[l] + i * K, sizeof(float) * K);
        }
        float* d = tiles[2] + m * last;
        std::memset(d, 0, sizeof(float) * last);
        d[0] = b.weight[r + i] > 0.0f ? -1.0f : 0.0f;
        numbers[m++] = i;
      }
      const float* slopes = q[c].slope_of_inputs(m, 0, tiles[2], tiles[3], b.critic_inputs);
      const int64_t K = padded(q[c].widths[0]);
      for (int64_t j = 0; j < m; j++) {
        const int64_t i = numbers[j];
        float* d = output + i * actor.last();
        const float *taken = seen + i * K + b.critic_inputs, *noise = b.noise + (r + i) * A;
        const float each = b.weight[r + i] > 0.0f ? alpha : 0.0f;
        for (int64_t a = 0; a < A; a++) {
          const float raw = d[A + a], t = taken[a];
          // d log pi / du = 2 a by the slope of tanh, and by the action itself what the critic says of it
          const float du = each * 2.0f * t + slopes[j * K + b.critic_inputs + a] * (1.0f - t * t);
          const float log_std = raw < b.low ? b.low : raw > b.high ? b.high : raw;
          d[a] = du;
          d[A + a] = raw < b.low || raw > b.high ? 0.0f : du * std::exp(log_std) * noise[a] - each;
        }
        for (int64_t a = 2 * A; a < actor.last(); a++) d[a] = 0.0f;
      }
    }
    actor.backward(n, 0, output, spare);
  }
  actor.finish(dweights, dbiases);
  *dlog_alpha = (float)slope_of_alpha;
  sums[0] = (float)counted, sums[1] = (float)loss, sums[2] = (float)entropy, sums[3] = (float)deviation;
}
}
