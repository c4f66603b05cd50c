"""Versions."""

import os


def get_cann_version(module: str = "CANN") -> str:  # noqa: ARG001 - the real function's signature
    """Return what stands in the place of CANN's version; NPU_SIMULATOR_CANN may name the one that it stands for."""
    return f"{os.environ.get('NPU_SIMULATOR_CANN', '')} simulated".strip()
