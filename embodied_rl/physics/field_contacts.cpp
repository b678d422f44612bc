// Contacts of a ball with a height field: one for each point of the ground that is nearest to the ball's centre among its neighbours.
//
// MuJoCo takes a field for so many prisms, each a body of its own, and a ball beside the edge of two for a ball beside a wall: on
// level ground its contact with the farther one leans by acos(1 - depth / radius), and trips who walks there.  Here the ground is
// one surface.  A point on an edge counts where the ground has no nearer one beside it, so that an edge which does not stick out
// is none, a ridge gives one contact, a corner two, and a level field does what a plane does.
//
// The surface is MuJoCo's: two triangles a cell, parted from the corner of least x and y.

#include <mujoco/mujoco.h>

#include <algorithm>
#include <cmath>

namespace {

constexpr int TRIANGLES = 512;  // in reach of one ball, at most
constexpr int CONTACTS = mjMAXCONPAIR;
constexpr double SAME = 1e-9;   // distance of two points that are one [m]
constexpr double NONE = 1e-6;   // distance from the surface that has no direction [m]

struct Vector {
  double x, y, z;
};

inline Vector operator+(Vector a, Vector b) { return {a.x + b.x, a.y + b.y, a.z + b.z}; }
inline Vector operator-(Vector a, Vector b) { return {a.x - b.x, a.y - b.y, a.z - b.z}; }
inline Vector operator*(double s, Vector a) { return {s * a.x, s * a.y, s * a.z}; }
inline double dot(Vector a, Vector b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
inline double length(Vector a) { return std::sqrt(dot(a, a)); }

struct Triangle {
  Vector a, b, c, normal;
  Vector nearest;  // its point that is nearest to the ball's centre
  double away;     // how far that is [m]
  bool inside;     // whether it is on no edge
};

// Find the point of a triangle that is nearest to p, and whether it is on no edge, by the region of Voronoi that p is in
// (Ericson, Real-Time Collision Detection, 2005, section 5.1.5).
Vector nearest(const Triangle& t, Vector p, bool* inside) {
  const Vector ab = t.b - t.a, ac = t.c - t.a, ap = p - t.a, bp = p - t.b, cp = p - t.c;
  *inside = false;
  const double ab_a = dot(ab, ap), ac_a = dot(ac, ap);
  if (ab_a <= 0.0 && ac_a <= 0.0) return t.a;
  const double ab_b = dot(ab, bp), ac_b = dot(ac, bp);
  if (ab_b >= 0.0 && ac_b <= ab_b) return t.b;
  const double of_c = ab_a * ac_b - ab_b * ac_a;
  if (of_c <= 0.0 && ab_a >= 0.0 && ab_b <= 0.0) return t.a + (ab_a / (ab_a - ab_b)) * ab;
  const double ab_c = dot(ab, cp), ac_c = dot(ac, cp);
  if (ac_c >= 0.0 && ab_c <= ac_c) return t.c;
  const double of_b = ab_c * ac_a - ab_a * ac_c;
  if (of_b <= 0.0 && ac_a >= 0.0 && ac_c <= 0.0) return t.a + (ac_a / (ac_a - ac_c)) * ac;
  const double of_a = ab_b * ac_c - ab_c * ac_b, along = ac_b - ab_b, back = ab_c - ac_c;
  if (of_a <= 0.0 && along >= 0.0 && back >= 0.0) return t.b + (along / (along + back)) * (t.c - t.b);
  *inside = true;
  return p - dot(ap, t.normal) * t.normal;
}

// One of the two triangles of a cell whose corner of least x and y is at (x, y): the one below the diagonal, or above it.
Triangle half_cell(double x, double y, double dx, double dy, const double z[4], bool below) {
  Triangle t;
  const Vector first{x, y, z[0]}, far{x + dx, y + dy, z[3]};
  const double along_x = below ? z[1] - z[0] : z[3] - z[2], along_y = below ? z[3] - z[1] : z[2] - z[0];
  t.a = first;
  t.b = below ? Vector{x + dx, y, z[1]} : far;
  t.c = below ? far : Vector{x, y + dy, z[2]};
  const Vector normal{-along_x / dx, -along_y / dy, 1.0};
  t.normal = (1.0 / length(normal)) * normal;
  return t;
}

mjfCollision mujocos = nullptr;  // what serves fields whose cells are many to a ball
thread_local bool prisms = false;  // whether it serves this thread altogether

int field_and_ball(const mjModel* m, mjData* d, mjPreContact* contacts, int field, int ball, mjtNum margin) {
  if (prisms) return mujocos(m, d, contacts, field, ball, margin);
  const int index = m->geom_dataid[field], rows = m->hfield_nrow[index], columns = m->hfield_ncol[index];
  const mjtNum *size = m->hfield_size + 4 * index, *at = d->geom_xpos + 3 * field, *turn = d->geom_xmat + 9 * field;
  const float* shares = m->hfield_data + m->hfield_adr[index];
  const double radius = m->geom_size[3 * ball], reach = radius + margin;
  const mjtNum* centre = d->geom_xpos + 3 * ball;
  const Vector from{centre[0] - at[0], centre[1] - at[1], centre[2] - at[2]};
  const Vector p{turn[0] * from.x + turn[3] * from.y + turn[6] * from.z, turn[1] * from.x + turn[4] * from.y + turn[7] * from.z,
                 turn[2] * from.x + turn[5] * from.y + turn[8] * from.z};
  if (!(p.z - reach <= size[2] && p.z >= -size[3])) return 0;  // nor where it is not finite

  const double dx = 2.0 * size[0] / (columns - 1), dy = 2.0 * size[1] / (rows - 1);
  const double x = (p.x + size[0]) / dx, y = (p.y + size[1]) / dy, over_x = reach / dx, over_y = reach / dy;
  if (!(x + over_x >= 0.0 && x - over_x <= columns - 1 && y + over_y >= 0.0 && y - over_y <= rows - 1)) return 0;
  const int left = std::max(0, (int)std::floor(x - over_x)), right = std::min(columns - 2, (int)std::floor(x + over_x));
  const int front = std::max(0, (int)std::floor(y - over_y)), back = std::min(rows - 2, (int)std::floor(y + over_y));
  if (2.0 * (right - left + 1) * (back - front + 1) > TRIANGLES) return mujocos(m, d, contacts, field, ball, margin);

  const auto add = [&](mjPreContact& contact, Vector on, Vector normal, double dist) {
    const Vector middle = on + 0.5 * dist * normal;
    const double position[3] = {middle.x, middle.y, middle.z}, direction[3] = {normal.x, normal.y, normal.z};
    contact.dist = dist;
    for (int row = 0; row < 3; row++) {
      contact.pos[row] = at[row];
      contact.normal[row] = contact.tangent[row] = 0.0;
      for (int k = 0; k < 3; k++) {
        contact.pos[row] += turn[3 * row + k] * position[k];
        contact.normal[row] += turn[3 * row + k] * direction[k];
      }
    }
  };

  Triangle triangles[TRIANGLES];
  int count = 0, found = 0;
  for (int row = front; row <= back; row++) {
    for (int column = left; column <= right; column++) {
      const float* share = shares + row * columns + column;
      const double z[4] = {size[2] * share[0], size[2] * share[1], size[2] * share[columns], size[2] * share[columns + 1]};
      if (std::max({z[0], z[1], z[2], z[3]}) < p.z - reach) continue;
      const double u = x - column, v = y - row;
      const bool over = u >= 0.0 && u <= 1.0 && v >= 0.0 && v <= 1.0;
      for (const bool below : {true, false}) {
        Triangle& t = triangles[count++] = half_cell(column * dx - size[0], row * dy - size[1], dx, dy, z, below);
        const double height = dot(p - t.a, t.normal);
        if (over && below == (u > v) && height <= 0.0) {  // the centre is in the ground: out by the way of the triangle above
          add(contacts[0], p - height * t.normal, t.normal, height - radius);
          return 1;
        }
        t.nearest = nearest(t, p, &t.inside);
        t.away = length(p - t.nearest);
      }
    }
  }

  for (int i = 0; i < count && found < CONTACTS; i++) {
    const Triangle& t = triangles[i];
    const auto faces = [&](const Triangle& one) { return dot(p - t.nearest, one.normal) >= -NONE; };
    bool counts = t.away < reach, outside = faces(t);
    for (int j = 0; j < count && counts && !t.inside; j++) {
      bool inside;
      if (j == i || length(nearest(triangles[j], t.nearest, &inside) - t.nearest) > SAME) continue;  // it is not at this point
      // one that is, and whose own nearest point is another, has a nearer one; of twins the last counts, or who has it inside
      const bool twin = length(triangles[j].nearest - t.nearest) < SAME;
      counts = twin && j < i && !triangles[j].inside;
      outside = outside || faces(triangles[j]);
    }
    if (counts && outside) {  // from within the ground, as through a thin ridge, all is the other way round
      const Vector normal = t.inside || t.away < NONE ? t.normal : (1.0 / t.away) * (p - t.nearest);
      add(contacts[found++], t.nearest, normal, t.away - radius);
    }
  }
  return found;
}

}  // namespace

// Let every simulation of this process use it; `table` is MuJoCo's mjCOLLISIONFUNC.
extern "C" void install(void* table) {
  mjfCollision& entry = static_cast<mjfCollision(*)[mjNGEOMTYPES]>(table)[mjGEOM_HFIELD][mjGEOM_SPHERE];
  if (entry != field_and_ball) mujocos = entry;
  entry = field_and_ball;
}

// Let the calling thread have MuJoCo's own instead, or no longer.
extern "C" void take_prisms(int wanted) { prisms = wanted; }
