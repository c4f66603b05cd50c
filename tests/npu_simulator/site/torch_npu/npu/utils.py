"""Versions."""


def get_cann_version(module: str = "CANN") -> str:  # noqa: ARG001 - the real function's signature
    """Return what stands in the place of CANN's version."""
    return "simulated"
