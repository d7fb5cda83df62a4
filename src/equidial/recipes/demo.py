"""The demo: the embedded transformer under C4, adapted at five dial positions, no network needed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from equidial.recipes.adapt import Adapt


@dataclass(frozen=True)
class Demo:
    """Turn the dial of an embedded vision transformer on real scans of digits; under two minutes on two cores."""

    output: Path = Path("runs/demo")
    """Folder of the run; an earlier demo in it is replaced."""
    group: str = "C4"
    """C4, D4, C8, SO2, Flip, ..."""
    softness: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Dial positions: 0 exactly symmetric, 1 untouched."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One fine-tuning per seed and dial position."""
    epochs: int = 8
    """Passes over the 1,257 training scans."""

    def adaptation(self) -> Adapt:
        """The same as a full configuration."""
        return Adapt(
            model="demo",
            data="demo",
            output=self.output,
            group=self.group,
            softness=self.softness,
            seeds=self.seeds,
            epochs=self.epochs,
            batch_size=64,
            learning_rate=1e-3,
            augment="group",
        )
