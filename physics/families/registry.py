"""The ten families. A new one is a file with its generator and a line here."""

from __future__ import annotations

from physics.families import curvefault, curvevel, flatfault, flatvel, style
from physics.families.family import Family

_ALL = (
    Family("flatvel_a", flatvel.draw_a, "model{}.npy"),
    Family("flatvel_b", flatvel.draw_b, "model{}.npy"),
    Family("curvevel_a", curvevel.draw_a, "model{}.npy"),
    Family("curvevel_b", curvevel.draw_b, "model{}.npy"),
    Family("flatfault_a", flatfault.draw_a, "vel2_1_{}.npy"),
    Family("flatfault_b", flatfault.draw_b, "vel6_1_{}.npy"),
    Family("curvefault_a", curvefault.draw_a, "vel2_1_{}.npy"),
    Family("curvefault_b", curvefault.draw_b, "vel6_1_{}.npy"),
    Family("style_a", style.draw_a, "model{}.npy"),
    Family("style_b", style.draw_b, "model{}.npy"),
)

REGISTRY: dict[str, Family] = {family.name: family for family in _ALL}
