"""Maps of the plane on triangles: where a network is affine exactly, and preimages by location.

A `Triangulation` covers the square |z_i| <= radius. On each triangle the map is affine: exactly for
a network with LeakyReLUs, cut where a neuron changes sign (`affine_triangulation`); by
interpolation for any other map (`grid_triangulation`). A point x then has a preimage in each
triangle whose image contains x, and nowhere else in the square.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from specbp.models import Bottleneck, BottleneckResNet

Map = Callable[[Tensor], Tensor]

BATCH = 1024  # points located at once
PIECES = 4096  # triangles cut at once: more fall out of the cache
AREA_EPS = 1e-14  # of the square: smaller pieces are rounding and are dropped
SIGN_EPS = 1e-12  # of the largest value of a layer: smaller ones are no change of sign


@dataclass(frozen=True, eq=False)
class Triangulation:
    """Triangles that cover the square |z_i| <= radius, and the images of their corners.

    Attributes:
        corners: Counterclockwise (t, 3, 2), float64.
        images: f at the corners (t, 3, 2).
        radius: Half the side of the square.
    """

    corners: Tensor
    images: Tensor
    radius: float

    @property
    def areas(self) -> Tensor:
        """Areas of the triangles (t,)."""
        return twice_area(self.corners) / 2

    @property
    def determinants(self) -> Tensor:
        """det J of the affine map on each triangle (t,), signed."""
        return twice_area(self.images) / twice_area(self.corners)

    def locate(self, x: Tensor, slack: float = 0.0) -> Preimages:
        """All preimages of points ``x`` (m, 2) under the affine maps of the triangles.

        With ``slack`` also those outside a triangle by that much in barycentric coordinates, which
        are candidates only: near a fold an interpolant may miss what the map has.
        """
        corner = self.images.amin(1), self.images.amax(1)
        margin = slack * (corner[1] - corner[0])
        bounds = corner[0] - margin, corner[1] + margin
        # Points of one part lie in a strip, which few triangles meet.
        strips = x[:, 1].argsort().split(BATCH)
        parts = [(strip, *_locate(self.images, bounds, x[strip], slack)) for strip in strips]
        point = torch.cat([strip[p] for strip, p, _, _ in parts])
        triangle = torch.cat([t for _, _, t, _ in parts])
        weights = torch.cat([w for _, _, _, w in parts])
        z = (weights.unsqueeze(-1) * self.corners[triangle]).sum(1)
        return Preimages(len(x), point, z, self.determinants[triangle])

    def boundary(self) -> Tensor:
        """The image of the edge of the square, a closed polygon (b, 2), counterclockwise in z."""
        z, x = self.corners.flatten(0, 1), self.images.flatten(0, 1)
        on_edge = (z.abs() == self.radius).any(-1)  # exact: cuts of an edge stay on it
        z, x = z[on_edge], x[on_edge]
        return x[_perimeter(z / self.radius).argsort()]


@dataclass(frozen=True, eq=False)
class Preimages:
    """Preimages of m points as one list of pairs.

    Of a point on an edge between triangles, rounding may count a preimage twice or not at all.

    Attributes:
        num_points: m.
        point: Index of the point each preimage belongs to (k,).
        z: The preimages (k, 2).
        determinant: det J there (k,).
    """

    num_points: int
    point: Tensor
    z: Tensor
    determinant: Tensor

    @property
    def count(self) -> Tensor:
        """Number of preimages of each point (m,)."""
        return torch.bincount(self.point, minlength=self.num_points)

    @property
    def degree(self) -> Tensor:
        """Sum of the signs of det J over the preimages of each point (m,)."""
        return self._zeros().index_add(0, self.point, self.determinant.sign()).round().long()

    def log_sum(self, log_terms: Tensor) -> Tensor:
        """Log of the sum over the preimages of exp(log_terms) (k,), for each point (m,)."""
        top = self.log_max(log_terms)
        shift = torch.where(top.isfinite(), top, 0)
        sums = self._zeros().index_add(0, self.point, (log_terms - shift[self.point]).exp())
        return sums.log() + shift

    def log_max(self, log_terms: Tensor) -> Tensor:
        """Greatest of log_terms (k,) over the preimages of each point (m,)."""
        lowest = self._zeros() - torch.inf
        return lowest.scatter_reduce(0, self.point, log_terms, "amax")

    def _zeros(self) -> Tensor:
        return torch.zeros(self.num_points, dtype=torch.float64)


def grid_triangulation(f: Map, radius: float, resolution: int) -> Triangulation:
    """Halved cells of a regular grid, and the piecewise affine interpolant of ``f`` on them."""
    corners = _halved_cells(radius, resolution)
    with torch.no_grad():
        images = f(corners.flatten(0, 1)).double().view_as(corners)
    return Triangulation(corners, images, radius)


def affine_triangulation(f: BottleneckResNet, radius: float) -> Triangulation:
    """Triangles of the square |z_i| <= radius on each of which the network is affine.

    Layer by layer, every triangle that a neuron crosses is cut along the neuron's zero. The values
    of f's layers at the corners are carried along, so that nothing is fitted: up to rounding the
    result is exact.

    Raises:
        TypeError: If ``f`` is no `BottleneckResNet` with ``dim=2``.
    """
    if not isinstance(f, BottleneckResNet) or f.dim != 2:
        msg = f"need a BottleneckResNet with dim=2, got {f}; for other maps use grid_triangulation."
        raise TypeError(msg)
    network = copy.deepcopy(f).double().cpu()
    z = _halved_cells(radius, 2)
    state = torch.cat([z, z], -1)  # columns: z, then x
    smallest = AREA_EPS * (2 * radius) ** 2
    with torch.no_grad():
        for block in network.blocks:
            assert isinstance(block, Bottleneck)
            parts = state.split(PIECES)
            state = torch.cat([p for part in parts for p in _through(block, part, smallest)])
    return Triangulation(state[..., :2], state[..., 2:], radius)


def winding_number(polygon: Tensor, x: Tensor) -> Tensor:
    """How often a closed polygon (b, 2) turns around each point ``x`` (m, 2), counterclockwise."""
    return torch.cat([_turns(polygon, part) for part in x.split(BATCH)])


def twice_area(triangles: Tensor) -> Tensor:
    """Twice the signed area of triangles (..., 3, 2), positive if counterclockwise."""
    a, b = triangles[..., 1, :] - triangles[..., 0, :], triangles[..., 2, :] - triangles[..., 0, :]
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _halved_cells(radius: float, resolution: int) -> Tensor:
    axis = torch.linspace(-radius, radius, resolution + 1, dtype=torch.float64)
    low, high = axis[:-1], axis[1:]
    a, b = torch.cartesian_prod(low, low), torch.cartesian_prod(high, high)
    c, d = torch.stack([b[:, 0], a[:, 1]], -1), torch.stack([a[:, 0], b[:, 1]], -1)
    return torch.cat([torch.stack([a, c, b], 1), torch.stack([a, b, d], 1)])


def _through(block: Bottleneck, state: Tensor, smallest: float) -> Iterator[Tensor]:
    """State (t, 3, 4) with the block applied to x, on triangles cut where its neurons vanish."""
    for first in _cut(_append(block.linear1, state, state[..., 2:]), smallest):
        hidden = F.leaky_relu(first[..., 4:], block.slope)
        for part in _append(block.linear2, first[..., :4], hidden).split(PIECES):
            for second in _cut(part, smallest):
                hidden = F.leaky_relu(second[..., 4:], block.slope)
                x = second[..., 2:4] + block.linear3(hidden)
                yield torch.cat([second[..., :2], x], -1)


def _append(layer: torch.nn.Linear, state: Tensor, inputs: Tensor) -> Tensor:
    return torch.cat([state, layer(inputs)], -1)


def _cut(state: Tensor, smallest: float) -> Iterator[Tensor]:
    """Pieces (t, 3, 4 + width) within which none of the last ``width`` columns changes sign.

    Pieces of an area up to ``smallest`` are left out.
    """
    scale = state[..., 4:].abs().amax()
    while len(state):
        low, high = state[..., 4:].amin(1), state[..., 4:].amax(1)
        balance = torch.minimum(high, -low)
        crossed = (balance > SIGN_EPS * scale).any(1)
        if not crossed.all():
            yield state[~crossed]
        state, balance, width = state[crossed], balance[crossed], (high - low)[crossed]
        # The most balanced cut leaves the fewest slivers.
        state = _split(state, 4 + (balance / width).nan_to_num(0).argmax(1))
        state = state[twice_area(state[..., :2]) > 2 * smallest]


def _split(state: Tensor, column: Tensor) -> Tensor:
    """Cut each triangle (t, 3, c) along the zero of its own column: three pieces (3t, 3, c)."""
    rows = torch.arange(len(state))
    positive = state[rows, :, column] > 0
    # The corner whose sign differs from the two others comes first; the orientation is kept.
    lone = (positive == (positive.sum(1) == 1).unsqueeze(1)).int().argmax(1)
    order = (lone.unsqueeze(1) + torch.arange(3)) % 3
    a, b, c = state.gather(1, order.unsqueeze(-1).expand_as(state)).unbind(1)
    ab, ac = _zero(a, b, column), _zero(a, c, column)
    return torch.cat([torch.stack(p, 1) for p in ((a, ab, ac), (ab, b, c), (ab, c, ac))])


def _zero(a: Tensor, b: Tensor, column: Tensor) -> Tensor:
    """The point between a and b (t, c) at which the column vanishes."""
    rows = torch.arange(len(a))
    values = a[rows, column], b[rows, column]
    t = (values[0] / (values[0] - values[1])).unsqueeze(-1)
    point = a + t * (b - a)
    point[rows, column] = 0
    return point


def _locate(
    images: Tensor, bounds: tuple[Tensor, Tensor], x: Tensor, slack: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs (point, triangle) and barycentric coordinates (k, 3); bounds are of the images."""
    bottom, top = x[:, 1].aminmax() if len(x) else (torch.inf, -torch.inf)
    strip = ((bounds[0][:, 1] <= top) & (bounds[1][:, 1] >= bottom)).nonzero().squeeze(1)
    low, high = bounds[0][strip], bounds[1][strip]
    # Candidates: the points are sorted by x1, a triangle meets a range of them.
    x1, order = x[:, 0].sort()
    first = torch.searchsorted(x1, low[:, 0].contiguous())
    number = torch.searchsorted(x1, high[:, 0].contiguous(), right=True) - first
    row = torch.arange(len(strip)).repeat_interleave(number)
    offset = torch.arange(len(row)) - (number.cumsum(0) - number)[row]
    point = order[first[row] + offset]
    x2 = x[point, 1]
    near = (x2 >= low[row, 1]) & (x2 <= high[row, 1])
    point, triangle = point[near], strip[row[near]]
    weights = _barycentric(images[triangle], x[point])
    inside = (weights >= -slack).all(1)  # NaN, from an image without area, is not inside
    return point[inside], triangle[inside], weights[inside]


def _barycentric(triangle: Tensor, x: Tensor) -> Tensor:
    """Coordinates (k, 3) of x (k, 2) in triangles (k, 3, 2): areas of the opposite parts."""
    parts = []
    for i in range(3):
        part = triangle.clone()
        part[:, i] = x
        parts.append(twice_area(part))
    return torch.stack(parts, -1) / twice_area(triangle).unsqueeze(-1)


def _perimeter(z: Tensor) -> Tensor:
    """Position (b,) of points on the edge of the square [-1, 1]², counterclockwise, in [0, 8]."""
    u, v = z.unbind(-1)
    return torch.where(
        v == -1,
        u + 1,
        torch.where(u == 1, v + 3, torch.where(v == 1, 5 - u, 7 - v)),
    )


def _turns(polygon: Tensor, x: Tensor) -> Tensor:
    d = polygon.unsqueeze(0) - x.unsqueeze(1)
    e = d.roll(-1, 1)
    cross = d[..., 0] * e[..., 1] - d[..., 1] * e[..., 0]
    angle = torch.atan2(cross, (d * e).sum(-1))
    return (angle.sum(1) / (2 * torch.pi)).round().long()
