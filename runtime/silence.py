"""Digital silence: nothing can be heard in it, but models make words up."""

from __future__ import annotations

import numpy as np

from runtime.engines.base import Floats

_LOUDEST = 2.0**-24  # half a step of 24-bit samples: what the resampler leaves of digital silence is below


def is_silent(samples: Floats) -> bool:
    """Tell whether samples f32 [n] are digital silence."""
    return not np.abs(samples).max(initial=0) >= _LOUDEST
