"""Contacts of balls with height fields in MuJoCo Warp: what `field_contacts.cpp` finds in C, in place of Warp's prisms.

Its prisms (mujoco-warp 4.0) push a ball sideways at inner edges, as MuJoCo's do.  Where a ball's centre is in the ground the
search for the depth goes astray besides: contacts 2 to 7 m deep were there in 5 % of the steps of robots of g1_legs_rough, whose
feet end in small balls, and threw one away every thousandth step.

Coordinates are counted from the corner of the cells in reach, so that float32 has the width of a few cells to say and not that of
the field.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable

import mujoco_warp
import warp
from mujoco_warp._src import collision_convex
from mujoco_warp._src.collision_core import contact_params, write_contact
from mujoco_warp._src.math import make_frame
from mujoco_warp._src.types import vec5

log = logging.getLogger("embodied_rl")

_FIELD, _BALL = int(mujoco_warp.GeomType.HFIELD), int(mujoco_warp.GeomType.SPHERE)
#: Distance of two points that are one, and from the surface that has no direction [m]; float32's of a few decimetres.
_SAME, _NONE = 1e-6, 1e-6


@functools.cache
def smooth_fields() -> bool:
    """Let height fields push balls as planes do, from now on and everywhere in this process.

    Returns:
        Whether they do: not where this MuJoCo Warp hands other things to its kernel.
    """
    theirs = collision_convex.ccd_hfield_kernel_builder
    kernel = theirs(_FIELD, _BALL, 1, 1, 0, 0)
    if list(inspect.signature(kernel.func).parameters) != list(inspect.signature(_field_and_ball.func).parameters):
        log.warning(
            "MuJoCo Warp %s takes height fields otherwise than the version that we know: on rough ground feet are pushed "
            "sideways at the edges of cells, and small ones thrown",
            mujoco_warp.__version__,
        )
        return False

    def builder(first: int, second: int, *others: int) -> Callable:
        return _field_and_ball if (first, second) == (_FIELD, _BALL) else theirs(first, second, *others)

    collision_convex.ccd_hfield_kernel_builder = builder
    return True


@warp.struct
class _Triangle:
    """One of the two triangles of a cell."""

    a: warp.vec3
    b: warp.vec3
    c: warp.vec3
    normal: warp.vec3


@warp.func
def _half_cell(x: float, y: float, dx: float, dy: float, z: warp.vec4, half: int) -> _Triangle:
    """Make the triangle below the diagonal (0), or above it, of the cell whose corner of least x and y is at (x, y)."""
    t = _Triangle()
    first, far = warp.vec3(x, y, z[0]), warp.vec3(x + dx, y + dy, z[3])
    t.a = first
    if half == 0:
        t.b = warp.vec3(x + dx, y, z[1])
        t.c = far
        t.normal = warp.normalize(warp.vec3((z[0] - z[1]) / dx, (z[1] - z[3]) / dy, 1.0))
    else:
        t.b = far
        t.c = warp.vec3(x, y + dy, z[2])
        t.normal = warp.normalize(warp.vec3((z[2] - z[3]) / dx, (z[0] - z[2]) / dy, 1.0))
    return t


@warp.func
def _nearest(t: _Triangle, p: warp.vec3) -> tuple[warp.vec3, bool]:
    """Find the point of a triangle that is nearest to p, and whether it is on no edge.

    By the region of Voronoi that p is in (Ericson, Real-Time Collision Detection, 2005, section 5.1.5).
    """
    ab, ac, ap, bp, cp = t.b - t.a, t.c - t.a, p - t.a, p - t.b, p - t.c
    ab_a, ac_a = warp.dot(ab, ap), warp.dot(ac, ap)
    if ab_a <= 0.0 and ac_a <= 0.0:
        return t.a, False
    ab_b, ac_b = warp.dot(ab, bp), warp.dot(ac, bp)
    if ab_b >= 0.0 and ac_b <= ab_b:
        return t.b, False
    of_c = ab_a * ac_b - ab_b * ac_a
    if of_c <= 0.0 and ab_a >= 0.0 and ab_b <= 0.0:
        return t.a + (ab_a / (ab_a - ab_b)) * ab, False
    ab_c, ac_c = warp.dot(ab, cp), warp.dot(ac, cp)
    if ac_c >= 0.0 and ab_c <= ac_c:
        return t.c, False
    of_b = ab_c * ac_a - ab_a * ac_c
    if of_b <= 0.0 and ac_a >= 0.0 and ac_c <= 0.0:
        return t.a + (ac_a / (ac_a - ac_c)) * ac, False
    of_a, along, back = ab_b * ac_c - ab_c * ac_b, ac_b - ab_b, ab_c - ac_c
    if of_a <= 0.0 and along >= 0.0 and back >= 0.0:
        return t.b + (along / (along + back)) * (t.c - t.b), False
    return p - warp.dot(ap, t.normal) * t.normal, True


@warp.func
def _heights(data: warp.array[float], adr: int, columns: int, row: int, column: int, scale: float) -> warp.vec4:
    """Read the heights of a cell's corners [m], along x first."""
    at = adr + row * columns + column
    return scale * warp.vec4(data[at], data[at + 1], data[at + columns], data[at + columns + 1])


@warp.func
def _is_low(z: warp.vec4, height: float) -> bool:
    return warp.max(warp.max(z[0], z[1]), warp.max(z[2], z[3])) < height


@warp.func
def _is_the_only_one(
    data: warp.array[float],
    adr: int,
    columns: int,
    scale: float,
    first: warp.vec2i,
    last: warp.vec2i,
    dx: float,
    dy: float,
    p: warp.vec3,
    low: float,
    row: int,
    column: int,
    half: int,
    point: warp.vec3,
    faces: bool,
) -> bool:
    """Say whether a point on the edge of a triangle, its nearest to p, is a contact.

    It is if no other triangle that it is on has a nearer one or stands for it, and one of them at least faces p: from within the
    ground, as through a thin ridge, all is the other way round.
    """
    own = (row * columns + column) * 2 + half
    outside = bool(faces)
    for j in range(warp.max(first[1], row - 1), warp.min(last[1], row + 1) + 1):
        for i in range(warp.max(first[0], column - 1), warp.min(last[0], column + 1) + 1):
            z = _heights(data, adr, columns, j, i, scale)
            if _is_low(z, low):
                continue
            for k in range(2):
                other = (j * columns + i) * 2 + k
                if other == own:
                    continue
                t = _half_cell(float(i - first[0]) * dx, float(j - first[1]) * dy, dx, dy, z, k)
                shared, _on_no_edge = _nearest(t, point)
                if warp.length(shared - point) > _SAME:
                    continue
                theirs, inside = _nearest(t, p)
                # of twins the last counts, or who has it inside
                if warp.length(theirs - point) >= _SAME or other > own or inside:
                    return False
                outside = outside or warp.dot(p - point, t.normal) >= -_NONE
    return outside


# its parameters are those of MuJoCo Warp's kernel in whose place it is launched
@warp.kernel(module="unique", enable_backward=False, grid_stride=False)
def _field_and_ball(
    opt_ccd_tolerance: warp.array[float],
    geom_type: warp.array[int],
    geom_condim: warp.array[int],
    geom_dataid: warp.array2d[int],
    geom_priority: warp.array[int],
    geom_solmix: warp.array2d[float],
    geom_solref: warp.array2d[warp.vec2],
    geom_solimp: warp.array2d[vec5],
    geom_size: warp.array2d[warp.vec3],
    geom_rbound: warp.array2d[float],
    geom_friction: warp.array2d[warp.vec3],
    geom_margin: warp.array2d[float],
    geom_gap: warp.array2d[float],
    geom_adhesion: warp.array2d[float],
    mesh_vertadr: warp.array[int],
    mesh_vertnum: warp.array[int],
    mesh_graphadr: warp.array[int],
    mesh_vert: warp.array[warp.vec3],
    mesh_graph: warp.array[int],
    mesh_polynum: warp.array[int],
    mesh_polyadr: warp.array[int],
    mesh_polynormal: warp.array[warp.vec3],
    mesh_polyvertadr: warp.array[int],
    mesh_polyvertnum: warp.array[int],
    mesh_polyvert: warp.array[int],
    mesh_polymapadr: warp.array[int],
    mesh_polymapnum: warp.array[int],
    mesh_polymap: warp.array[int],
    hfield_size: warp.array[warp.vec4],
    hfield_nrow: warp.array[int],
    hfield_ncol: warp.array[int],
    hfield_adr: warp.array[int],
    hfield_data: warp.array[float],
    pair_dim: warp.array[int],
    pair_solref: warp.array2d[warp.vec2],
    pair_solreffriction: warp.array2d[warp.vec2],
    pair_solimp: warp.array2d[vec5],
    pair_margin: warp.array2d[float],
    pair_gap: warp.array2d[float],
    pair_adhesion: warp.array2d[float],
    pair_friction: warp.array2d[vec5],
    geom_xpos_in: warp.array2d[warp.vec3],
    geom_xmat_in: warp.array2d[warp.mat33],
    naconmax_in: int,
    naccdmax_in: int,
    ncollision_in: warp.array[int],
    collision_pair_in: warp.array[warp.vec2i],
    collision_pairid_in: warp.array[warp.vec2i],
    collision_worldid_in: warp.array[int],
    epa_vert_in: warp.array2d[warp.vec3],
    epa_vert_index_in: warp.array2d[int],
    epa_face_in: warp.array2d[int],
    epa_pr_in: warp.array2d[warp.vec3],
    epa_norm2_in: warp.array2d[float],
    epa_horizon_in: warp.array2d[int],
    nccd_in: warp.array[int],
    contact_dist_out: warp.array[float],
    contact_pos_out: warp.array[warp.vec3],
    contact_frame_out: warp.array[warp.mat33],
    contact_includemargin_out: warp.array[float],
    contact_friction_out: warp.array[vec5],
    contact_solref_out: warp.array[warp.vec2],
    contact_solreffriction_out: warp.array[warp.vec2],
    contact_solimp_out: warp.array[vec5],
    contact_dim_out: warp.array[int],
    contact_geom_out: warp.array[warp.vec2i],
    contact_efc_address_out: warp.array2d[int],
    contact_worldid_out: warp.array[int],
    contact_type_out: warp.array[int],
    contact_geomcollisionid_out: warp.array[int],
    contact_adhesion_out: warp.array[float],
    nacon_out: warp.array[int],
    overflow_out: warp.array[int],
):
    collision = warp.tid()
    if collision >= ncollision_in[0]:
        return
    geoms = collision_pair_in[collision]
    ground, ball, world = geoms[0], geoms[1], collision_worldid_in[collision]
    if geom_type[ground] != _FIELD or geom_type[ball] != _BALL:
        return
    field = geom_dataid[world % geom_dataid.shape[0], ground]
    rows, columns, size, adr = hfield_nrow[field], hfield_ncol[field], hfield_size[field], hfield_adr[field]
    at, turn = geom_xpos_in[world, ground], geom_xmat_in[world, ground]
    _, margin, gap, condim, friction, solref, solreffriction, solimp, adhesion = contact_params(
        geom_condim,
        geom_priority,
        geom_solmix,
        geom_solref,
        geom_solimp,
        geom_friction,
        geom_margin,
        geom_gap,
        geom_adhesion,
        pair_dim,
        pair_solref,
        pair_solreffriction,
        pair_solimp,
        pair_margin,
        pair_gap,
        pair_adhesion,
        pair_friction,
        collision_pair_in,
        collision_pairid_in,
        collision,
        world,
    )
    radius = geom_size[world % geom_size.shape[0], ball][0]
    reach = radius + margin + gap
    centre = warp.transpose(turn) @ (geom_xpos_in[world, ball] - at)
    if not (centre[2] - reach <= size[2] and centre[2] >= -size[3]):  # nor where it is not finite
        return
    dx, dy = 2.0 * size[0] / float(columns - 1), 2.0 * size[1] / float(rows - 1)
    x, y, over_x, over_y = (centre[0] + size[0]) / dx, (centre[1] + size[1]) / dy, reach / dx, reach / dy
    if not (x + over_x >= 0.0 and x - over_x <= float(columns - 1) and y + over_y >= 0.0 and y - over_y <= float(rows - 1)):
        return
    left, right = warp.max(0, int(warp.floor(x - over_x))), warp.min(columns - 2, int(warp.floor(x + over_x)))
    front, back = warp.max(0, int(warp.floor(y - over_y))), warp.min(rows - 2, int(warp.floor(y + over_y)))
    first, last = warp.vec2i(left, front), warp.vec2i(right, back)

    # from the corner of the cells in reach on
    corner = warp.vec3(float(left) * dx - size[0], float(front) * dy - size[1], 0.0)
    p, low = centre - corner, centre[2] - reach

    # where the centre is in the ground it goes out by the way of the triangle above, and that is all
    begin, end, above = first, last, -1
    column, row = int(warp.floor(x)), int(warp.floor(y))
    if column >= left and column <= right and row >= front and row <= back:
        z = _heights(hfield_data, adr, columns, row, column, size[2])
        u, v = p[0] / dx - float(column - left), p[1] / dy - float(row - front)
        half = warp.where(u > v, 0, 1)
        t = _half_cell(float(column - left) * dx, float(row - front) * dy, dx, dy, z, half)
        if warp.dot(p - t.a, t.normal) <= 0.0:
            begin = warp.vec2i(column, row)
            end = begin
            above = half

    found = int(0)  # noqa: RUF046, UP018  a variable of Warp's, and no constant
    for row in range(begin[1], end[1] + 1):
        for column in range(begin[0], end[0] + 1):
            z = _heights(hfield_data, adr, columns, row, column, size[2])
            if _is_low(z, low):
                continue
            for half in range(2):
                t = _half_cell(float(column - left) * dx, float(row - front) * dy, dx, dy, z, half)
                nearest, inside = _nearest(t, p)
                away, normal = warp.length(p - nearest), 1.0 * t.normal
                faces = warp.dot(p - nearest, t.normal) >= -_NONE
                if above >= 0:
                    away = warp.dot(p - t.a, t.normal)
                    nearest = p - away * t.normal
                    counts = half == above
                elif away >= reach:
                    continue
                elif inside:
                    counts = faces
                else:
                    counts = _is_the_only_one(
                        hfield_data, adr, columns, size[2], first, last, dx, dy, p, low, row, column, half, nearest, faces
                    )
                    if away >= _NONE:
                        normal = (p - nearest) / away
                if not counts:
                    continue
                dist = away - radius
                on = corner + nearest + 0.5 * dist * normal
                write_contact(
                    naconmax_in,
                    found,
                    dist,
                    turn @ on + at,
                    make_frame(turn @ normal),
                    margin,
                    gap,
                    condim,
                    friction,
                    solref,
                    solreffriction,
                    solimp,
                    adhesion,
                    geoms,
                    collision_pairid_in[collision],
                    world,
                    contact_dist_out,
                    contact_pos_out,
                    contact_frame_out,
                    contact_includemargin_out,
                    contact_friction_out,
                    contact_solref_out,
                    contact_solreffriction_out,
                    contact_solimp_out,
                    contact_dim_out,
                    contact_geom_out,
                    contact_efc_address_out,
                    contact_worldid_out,
                    contact_type_out,
                    contact_geomcollisionid_out,
                    contact_adhesion_out,
                    nacon_out,
                )
                found += 1
