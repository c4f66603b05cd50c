"""The memory that a FastConformer takes beside its weights: full attention grows with the square of a recording."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from runtime.fastconformer.settings import (
    FastConformerDims,
    FastConformerFrontend,
    FastConformerSettings,
    encoder_bytes,
)
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


def attention_memory(
    network: type[FastConformerDims], decoding: type[FastConformerSettings]
) -> Callable[[Content, int], AttentionMemory]:
    """Return what tells from a manifest what an artifact takes, by its family's models of `dims` and `settings`.

    It raises pydantic's ValidationError where the manifest is another network's.
    """

    def memory(content: Content, item_bytes: int) -> AttentionMemory:
        dims = network.model_validate(content.dims)
        frontend = FastConformerFrontend.model_validate(content.frontend)
        limit_s = decoding.model_validate(content.settings).full_attention_s
        n_frames = round(limit_s * frontend.sample_rate / (frontend.hop_length * dims.subsampling_factor))
        return AttentionMemory(limit_s, encoder_bytes(dims, n_frames, item_bytes))

    return memory
