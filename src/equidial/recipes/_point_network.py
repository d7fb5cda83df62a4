"""A classifier of point clouds, from exactly invariant to rotations to free."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

import equidial as ed
from equidial.errors import ArgumentError, explain
from equidial.groups import Group
from equidial.recipes._product_network import ProductNetwork, ProductSizes
from equidial.representations import Trivial

GROUP = ed.groups.SO(3)
NEIGHBOURS = (8, 32)


def point_vectors(clouds: torch.Tensor, neighbours: Sequence[int] = NEIGHBOURS) -> torch.Tensor:
    """Vectors of every point: from the centroid to it, and from it to the mean of its ``k`` nearest, each ``k``.

    ``[..., n, 3]`` to ``[..., n, (1 + len(neighbours)) * 3]``. The mean offset is small on flat pieces, points inwards
    on curved ones, and along the surface at a rim. Turning the cloud turns every vector, where no two distances tie.
    Raises ``ArgumentError`` for clouds of other shape or with too few points. Cost O(n^2) a cloud.
    """
    if clouds.ndim < 2 or clouds.shape[-1] != 3 or clouds.shape[-2] <= max(neighbours):
        wanted = f"clouds [..., n, 3] of more than {max(neighbours)} points"
        raise ArgumentError(explain(wanted, f"shape {tuple(clouds.shape)}", "sample more points"))
    x = clouds - clouds.mean(-2, keepdim=True)
    distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    order = distance.topk(max(neighbours) + 1, largest=False).indices[..., 1:]  # the nearest of all is the point itself
    rows = order.flatten(-2)[..., None].expand(*x.shape[:-2], -1, 3)
    near = x.gather(-2, rows).unflatten(-2, order.shape[-2:])
    return torch.cat((x, *(near[..., :k, :].mean(-2) - x for k in neighbours)), dim=-1)


class PointNetwork(nn.Module):
    """A product network at every point, the mean over points of its numbers, and a linear classifier.

    The numbers of a point go through silu before the mean. All that carries the group is in ``features``: at softness
    0 they are exactly invariant, and so are the logits; at softness 1 all weights are free. The vectors of a point are
    divided by their root mean squares in ``vectors``, one number a kind, which keeps what commutes with rotations.

    Args:
        vectors: training data, of :func:`point_vectors`.
        classes: how many.
        sizes: of the product network.
        features: numbers of each point.
    """

    scale: torch.Tensor

    def __init__(
        self,
        vectors: torch.Tensor,
        classes: int,
        sizes: ProductSizes,
        features: int = 32,
        group: Group = GROUP,
    ):
        super().__init__()
        kinds = vectors.unflatten(-1, (-1, 3))
        size = kinds.square().mean(dim=[d for d in range(kinds.ndim) if d != kinds.ndim - 2]).sqrt()
        self.register_buffer("scale", size.repeat_interleave(3))
        self.features = ProductNetwork(group, len(size), 0, features * Trivial(group), sizes)
        self.classifier = nn.Linear(features, classes)

    def config(self, softness: float) -> ed.SoftEquivarianceConfig:
        """Every layer that carries the group, at one softness."""
        named = {rf"features\.{name}": pair for name, pair in self.features.representations().items()}
        return ed.SoftEquivarianceConfig(group=self.features.group, softness=softness, representations=named)

    def forward(self, clouds: torch.Tensor) -> torch.Tensor:
        """Logits ``[n, classes]`` of clouds ``[n, points, 3]``."""
        return self.of_vectors(point_vectors(clouds))

    def of_vectors(self, vectors: torch.Tensor) -> torch.Tensor:
        """Logits of clouds whose vectors ``[n, points, 3 kinds]`` are known."""
        return self.classifier(functional.silu(self.features(vectors / self.scale)).mean(-2))
