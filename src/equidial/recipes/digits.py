"""The embedded model: a small vision transformer on scikit-learn's digits, and the command that made its weights.

python -m equidial.recipes.digits --output src/equidial/recipes/assets/digits_vit.safetensors
"""

from __future__ import annotations

import argparse
import logging
from importlib import resources
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from equidial.data import DEMO_SIZE, demo_digits, loader

logger = logging.getLogger("equidial")

WEIGHTS = "assets/digits_vit.safetensors"


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[n, tokens, width]`` to the same."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.proj(attended)
        return x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))


class DigitsViT(nn.Module):
    """Vision transformer for 16 x 16 grey images: 4 x 4 patches, 16 tokens and a class token, 10 classes."""

    def __init__(self, width: int = 64, depth: int = 4, heads: int = 4, patch: int = 4):
        super().__init__()
        tokens = (DEMO_SIZE // patch) ** 2
        self.patch_embed = nn.Conv2d(1, width, patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, tokens + 1, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits ``[n, 10]`` of images ``[n, 1, 16, 16]``."""
        tokens = self.patch_embed(x).flatten(2).mT
        x = torch.cat([self.class_token.expand(len(x), -1, -1), tokens], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def pretrained_digits_vit() -> DigitsViT:
    """The embedded model with its shipped weights, in evaluation mode."""
    model = DigitsViT()
    with resources.as_file(resources.files("equidial.recipes") / WEIGHTS) as path:
        model.load_state_dict(load_file(path))
    return model.eval()


def train(epochs: int = 60, seed: int = 0) -> tuple[DigitsViT, float]:
    """Train from scratch on the 1,257 training scans; returns the model and its test accuracy."""
    torch.manual_seed(seed)
    model, images = DigitsViT(), demo_digits()
    batches = loader(images.train, 64, seed=seed, augment="crop")
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, epochs * len(batches))
    for epoch in range(epochs):
        for x, y in batches:
            optimizer.zero_grad()
            functional.cross_entropy(model(x), y, label_smoothing=0.05).backward()
            optimizer.step()
            schedule.step()
        logger.info("epoch %d of %d", epoch + 1, epochs)
    model.eval()
    with torch.no_grad():
        hits = sum(int((model(x).argmax(-1) == y).sum()) for x, y in loader(images.test, 540))
    return model, hits / len(images.test)


def main() -> None:
    """Train the embedded model and write its weights."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    model, accuracy = train(arguments.epochs, arguments.seed)
    logger.info("test accuracy %.4f", accuracy)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    metadata = {
        "format": "pt",
        "made_by": "python -m equidial.recipes.digits",
        "epochs": str(arguments.epochs),
        "seed": str(arguments.seed),
        "test_accuracy": f"{accuracy:.4f}",
    }
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, arguments.output, metadata=metadata)


if __name__ == "__main__":
    main()
