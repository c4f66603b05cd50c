"""How much memory Parakeet takes beside its weights: what grows is full attention, with the square of a recording."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.families.parakeet_tdt.settings import ParakeetDims, ParakeetFrontend, ParakeetSettings, encoder_bytes
from runtime.findings import Finding, binary_size
from runtime.manifest import Content


@dataclass(frozen=True)
class AttentionMemory:
    """Up to how many seconds a recording is encoded whole, and the bytes that the longest takes."""

    full_attention_s: float
    full_attention_bytes: int

    @property
    def least_bytes(self) -> int:
        """Next to nothing."""
        return 0

    def finding(self, weights_bytes: int, about: str, device: str, total: int | None) -> Finding:
        """Say up to which length recordings are encoded whole, and whether the device has the memory for it."""
        found = (
            f"full attention up to {self.full_attention_s:g} s, which takes about "
            f"{binary_size(self.full_attention_bytes)} beside the weights; longer recordings go through in windows"
        )
        if total is not None and weights_bytes + self.full_attention_bytes > total:
            found += f", {device} has {binary_size(total)}"
            return Finding("note", about, found, "pass a lower --full-attention-limit to run")
        return Finding("ok", about, found)


def attention_memory(content: Content, item_bytes: int) -> AttentionMemory:
    """Return what the artifact with this manifest takes; pydantic's ValidationError where it is another network's."""
    dims = ParakeetDims.model_validate(content.dims)
    frontend = ParakeetFrontend.model_validate(content.frontend)
    limit_s = ParakeetSettings.model_validate(content.settings).full_attention_s
    n_frames = round(limit_s * frontend.sample_rate / (frontend.hop_length * dims.subsampling_factor))
    return AttentionMemory(limit_s, encoder_bytes(dims, n_frames, item_bytes))
