"""A reader of format 1 written from docs/files.md alone: no equidial, no torch.

It knows one action, that of C4 on square windows (quarter turns permute pixels), one layout, ``convolution``, and one
response, ``nearest``. That is enough to hold the specification to its word.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

QUARTER = np.pi / 2  # the length of the generator of C4


class Refused(Exception):
    """The folder is not what the specification says."""


def read(folder: Path, base: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All tensors of the softened model, by plain name, from those of the base model."""
    content = (folder / "soft_equivariance_config.json").read_bytes()
    document = json.loads(content)
    stored = load_file(folder / "soft_equivariance.safetensors")
    check(document, content, stored, base)
    tensors = {key: stored.get(key, base[key]) for key in document["base"]["keys"]}
    for name, row in document["tensors"].items():
        if (row["layout"], row["response"], document["config"]["group"]) != ("convolution", "nearest", "C4"):
            raise Refused(f"{name}: beyond this reader")
        h, w = tensors[name].shape[2:]
        if row["input"] != f"Pixels({h},{w})" or h != w or row["construction"]:
            raise Refused(f"{name}: beyond this reader")
        probe = probe_image((h, w))
        if not np.allclose(probe, stored[f"probe/{name}"], rtol=1e-9, atol=1e-9):
            raise Refused(f"{name}: another filter")
        beta, budget = (float(stored[f"dial/{name}/{key}"][0]) for key in ("threshold", "budget"))
        if f"dial/{name}/learned" in stored:
            share = min(max(float(stored[f"dial/{name}/learned"][0]), 0.0), 1.0)
            stands = share * float(stored[f"dial/{name}/reference"][0]) * (1 + 1e-5 if share == 1 else 1)
            if not np.isclose(beta, stands, rtol=1e-12, atol=0.0):
                raise Refused(f"{name}: a learned dial that stands elsewhere")
        weights = tensors[name].reshape(-1, h, w)
        tensors[name] = nearest(weights, beta, budget).reshape(tensors[name].shape)
    return tensors


def check(document: dict[str, Any], content: bytes, stored: dict[str, np.ndarray], base: dict[str, np.ndarray]) -> None:
    """Version, keys, names and hashes."""
    if document["format_version"] != 1:
        raise Refused("another format")
    if set(document) - {"format_version", "library_version", "config", "tensors", "base", "stored"}:
        raise Refused("unknown keys")
    digits = document["stored"]["document"].encode()
    plain = content.replace(b"\r\n", b"\n").replace(digits, b"0" * 64)
    if hashlib.sha256(plain).hexdigest() != document["stored"]["document"]:
        raise Refused("edited document")
    if {name: hash_of(tensor) for name, tensor in stored.items()} != document["stored"]["tensors"]:
        raise Refused("edited tensors")
    if sorted(base) != document["base"]["keys"]:
        raise Refused("another model")
    if any(hash_of(base[name]) != value for name, value in document["base"]["unchanged"].items()):
        raise Refused("other weights")


def hash_of(tensor: np.ndarray) -> str:
    """SHA-256 of ``torch.<dtype> (<shape>) `` and the bytes, little-endian, row-major."""
    head = f"torch.{tensor.dtype.name} {tuple(tensor.shape)} "
    return hashlib.sha256(head.encode() + np.ascontiguousarray(tensor).tobytes()).hexdigest()


def components(weights: np.ndarray) -> list[tuple[float, Any]]:
    """``(sigma, P W)`` of C4 for ``[copies, n, n]``, by averaging over the group with its real characters."""
    turned = [np.rot90(weights, k, (-2, -1)) for k in range(4)]
    even, odd = sum(turned) / 4, (turned[0] - turned[1] + turned[2] - turned[3]) / 4
    return [(0.0, even), (np.sqrt(2) / QUARTER, (turned[0] - turned[2]) / 2), (2 / QUARTER, odd)]


def nearest(weights: np.ndarray, beta: float, budget: float = 0.0) -> np.ndarray:
    """The nearest weight with ``||L W'|| <= beta ||W'||``: components divided by ``1 + mu (sigma^2 - beta^2)``."""
    if np.isinf(beta):
        return weights
    parts = components(weights.astype(np.float64))
    if beta == 0 and budget == 0:
        return parts[0][1]
    if budget:
        raise Refused("a space without invariants: not C4 on pixels")
    slopes = [sigma**2 - (beta * (1 - 1e-12)) ** 2 for sigma, _ in parts]
    energies = [float(np.sum(part**2)) for _, part in parts]

    def excess(mu: float) -> float:
        return sum(a * e / (1 + mu * a) ** 2 for a, e in zip(slopes, energies, strict=True))

    if excess(0.0) <= 0:
        return weights
    low, high = 0.0, (1 - 1e-3) / -min(slopes)  # an amplification of 1000 is the cap
    if excess(high) > 0:
        raise Refused("the hard case")
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    found: Any = sum(part / (1 + high * a) for a, (_, part) in zip(slopes, parts, strict=True))
    return found


def probe_image(grid: tuple[int, int]) -> np.ndarray:
    """The fingerprint of ``nearest``: its image of a fixed weight at half that weight's own defect."""
    count = 2 * grid[0] * grid[1]
    i = np.arange(count, dtype=np.float64)
    probe = np.sin(1 + 2 * i + i**2 / 7).reshape(2, *grid)
    parts = components(probe)
    defect = np.sqrt(sum(sigma**2 * np.sum(part**2) for sigma, part in parts)) / np.linalg.norm(probe)
    image = nearest(probe, 0.5 * float(defect)).ravel()
    return np.append(image[picks(count)], np.linalg.norm(image))


def picks(count: int) -> np.ndarray:
    """At most 256 evenly spread places, in float64 from both ends, cut off."""
    size = min(count, 256)
    step, i = (count - 1) / (size - 1), np.arange(size)
    return np.where(i < size // 2, step * i, (count - 1) - step * (size - 1 - i)).astype(int)
