"""A method that somebody else wrote: it says the colour that a unit's exemplars have in the mean, and nothing else."""
from dataclasses import dataclass

import numpy as np

import neuronbench as nb

COLOURS = {
    "red": (206, 52, 46), "orange": (238, 140, 40), "yellow": (244, 208, 63), "green": (64, 148, 74), "blue": (48, 96, 190),
    "black": (42, 42, 48), "white": (240, 240, 236),
}


@dataclass(frozen=True, eq=False)
class MeanColour(nb.Method):
    """Names a unit by the colour of its exemplars, all pixels alike."""

    name, label = "mean-colour", "Mean colour"
    exemplars: int = 10
    pool: str | None = None  # recorded pooling; the layer's default if None

    def traces(self, recording, layer, units, watch=None):
        return [self.trace_of(recording, layer, unit) for unit in units]

    def trace_of(self, recording, layer, unit):
        top = recording.top(layer, unit, self.exemplars, self.pool).image
        if top.empty:
            return nb.Trace(recording, layer, unit, reason="the unit is finite on no image", step="exemplars")
        mean = np.mean([np.asarray(recording.images[image].resize((32, 32))) for image in top], axis=(0, 1, 2))
        likeness = {colour: 1 - np.abs(mean - pixel).mean() / 255 for colour, pixel in COLOURS.items()}
        best = sorted(likeness, key=likeness.get, reverse=True)[:2]
        return nb.Trace(recording, layer, unit, [(colour, likeness[colour]) for colour in best], pool=self.pool)
