"""The rivals of the soft convolution: the same layer with one kernel built for every output place.

Each form starts from the features ``phi [P, T, M]`` of the layer, builds the kernels by one product with the weight,
in the order in which that product leaves them, and applies them to the unfolded input by ``torch.bmm``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

from equidial.nn import SoftConv2d

Form = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int], torch.Tensor]


def _kernels(phi: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``[P, T C, O]``, in the order in which the product leaves them."""
    out, into, m = weight.shape
    return (phi.flatten(0, 1) @ weight.permute(2, 1, 0).reshape(m, into * out)).view(len(phi), -1, out)


def taps_first(x: torch.Tensor, phi: torch.Tensor, weight: torch.Tensor, k: int) -> torch.Tensor:
    """Kernels ``[P, T C, O]``; windows ``[P, B, T C]`` of ``[B, H, W, C]``, copied in runs of ``k C``."""
    out, into, _ = weight.shape
    kernels = _kernels(phi, weight)
    places = x.permute(0, 2, 3, 1).contiguous()
    b, h, w = len(x), x.shape[2] - k + 1, x.shape[3] - k + 1
    s = places.stride()
    windows = places.as_strided((h, w, b, k, k, into), (s[1], s[2], s[0], s[1], s[2], 1))
    return torch.bmm(windows.reshape(h * w, b, -1), kernels).view(h, w, b, out).permute(2, 3, 0, 1)


def images_last(x: torch.Tensor, phi: torch.Tensor, weight: torch.Tensor, k: int) -> torch.Tensor:
    """Kernels ``[P, T C, O]``; windows ``[P, T C, B]`` of ``[H, W, C, B]``, copied in runs of ``k C B``."""
    out, into, _ = weight.shape
    kernels = _kernels(phi, weight)
    places = x.permute(2, 3, 1, 0).contiguous()
    b, h, w = len(x), x.shape[2] - k + 1, x.shape[3] - k + 1
    s = places.stride()
    windows = places.as_strided((h, w, k, k, into, b), (s[0], s[1], s[0], s[1], s[2], 1))
    return torch.bmm(kernels.mT, windows.reshape(h * w, -1, b)).view(h, w, out, b).permute(3, 2, 0, 1)


def torch_unfold(x: torch.Tensor, phi: torch.Tensor, weight: torch.Tensor, k: int) -> torch.Tensor:
    """Kernels ``[P, O, C T]`` by a product per place; windows by ``torch.nn.functional.unfold``, nothing permuted."""
    out, into, m = weight.shape
    kernels = torch.matmul(weight.view(out * into, m), phi.mT).view(len(phi), out, -1)
    y = torch.bmm(kernels, functional.unfold(x, k).permute(2, 1, 0))
    h, w = x.shape[2] - k + 1, x.shape[3] - k + 1
    return y.view(h, w, out, len(x)).permute(3, 2, 0, 1)


FORMS: dict[str, Form] = {f.__name__: f for f in (taps_first, images_last, torch_unfold)}


class Materialised(SoftConv2d):
    """:class:`SoftConv2d` with square windows, stride 1, no groups, through one of :data:`FORMS`."""

    form = "taps_first"

    def _in_space(self, x: torch.Tensor) -> torch.Tensor:
        (phi,) = self._features_by_place(tuple(x.shape[-2:]))
        return FORMS[self.form](self.windows.pad(x)[:, :, 0], phi, self.weight, self.windows.kernel[0])[:, :, None]
