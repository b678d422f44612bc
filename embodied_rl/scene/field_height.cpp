// Heights of a field at points around robots, float32: what torch says in `HeightField.heights_around`, to the bit, a point in a
// nanosecond or two.

#include <algorithm>
#include <cstdint>

// frames: x, y [m] of each of `robots` robots, then cosine and sine of its heading; ahead and left: coordinates of `count` points
// in each of these frames [m]; table: heights [m], `columns` of them for each x; grid: the distance of two of them, half the
// field's length along x and y [m], and how many cells from the first a point may be along each, that the last one lie in a cell.
extern "C" void field_height(const float* __restrict__ frames, const float* __restrict__ ahead, const float* __restrict__ left,
                             const float* __restrict__ table, const float* __restrict__ grid, float* __restrict__ heights,
                             int64_t robots, int64_t count, int32_t columns) {
  const float cell = grid[0], half_x = grid[1], half_y = grid[2], most_x = grid[3], most_y = grid[4];
  for (int64_t robot = 0; robot < robots; robot++, frames += 4, heights += count) {
    const float here_x = frames[0], here_y = frames[1], c = frames[2], s = frames[3];
    for (int64_t k = 0; k < count; k++) {
      const float x = here_x + c * ahead[k] - s * left[k], y = here_y + s * ahead[k] + c * left[k];
      const float across = std::min(std::max(0.0f, (x + half_x) / cell), most_x);  // what is no number becomes 0
      const float along = std::min(std::max(0.0f, (y + half_y) / cell), most_y);
      const int32_t i = (int32_t)across, j = (int32_t)along;
      const float u = across - (float)i, v = along - (float)j;
      const int32_t at = i * columns + j;
      const float corner = table[at], beside = table[u > v ? at + columns : at + 1], far = table[at + columns + 1];
      heights[k] = corner + std::max(u, v) * (beside - corner) + std::min(u, v) * (far - beside);
    }
  }
}
