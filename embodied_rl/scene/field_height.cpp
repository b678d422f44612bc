// Heights of a field at points, float32: what `HeightField.height` says in torch, to the bit, a point in a nanosecond or two.

#include <algorithm>
#include <cstdint>

// x and y: coordinates of `count` points [m]; table: heights [m], `columns` of them for each x.  The field's middle is at 0; the
// last point of each axis lies in its last cell, at most `most_x` or `most_y` cells from the first.
extern "C" void field_height(const float* __restrict__ x, const float* __restrict__ y, const float* __restrict__ table,
                             float* __restrict__ heights, int64_t count, int32_t columns,
                             float cell, float half_x, float half_y, float most_x, float most_y) {
  for (int64_t k = 0; k < count; k++) {
    const float across = std::min(std::max(0.0f, (x[k] + half_x) / cell), most_x);  // what is no number becomes 0
    const float along = std::min(std::max(0.0f, (y[k] + half_y) / cell), most_y);
    const int32_t i = (int32_t)across, j = (int32_t)along;
    const float u = across - (float)i, v = along - (float)j;
    const int32_t at = i * columns + j;
    const float corner = table[at], beside = table[u > v ? at + columns : at + 1], far = table[at + columns + 1];
    heights[k] = corner + std::max(u, v) * (beside - corner) + std::min(u, v) * (far - beside);
  }
}
