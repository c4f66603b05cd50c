"""Names of the files that a checkpoint may consist of."""

from __future__ import annotations

from pathlib import Path

from export.checkpoint import CHECKPOINT_LAYOUTS

NEMO_SUFFIX = ".nemo"
TORCH_SUFFIX = ".pt"
# Single files that are a whole checkpoint.
FILE_SUFFIXES = (NEMO_SUFFIX, TORCH_SUFFIX)
CONFIG = "config.json"
TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "normalizer.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
)
# Either is enough to make a tokenizer of.
TOKENIZERS = ("tokenizer.json", "vocab.json")
ADAPTER_CONFIG = "adapter_config.json"
# What a checkpoint may have beside its tensors; the model card for its licence.
SIDE_FILES = (
    "README.md",
    ADAPTER_CONFIG,
    "classes.txt",
    CONFIG,
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    *TOKENIZER_FILES,
)
INDEXES = tuple(f"{name}.index.json" for name in CHECKPOINT_LAYOUTS)
# The tensors of an adapter that PEFT trained, which may lie beside a checkpoint.
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
CTRANSLATE2_MODEL = "model.bin"
CTRANSLATE2_VOCABULARIES = ("vocabulary.txt", "vocabulary.json")


def layout_of(folder: Path) -> str | None:
    """Return the name of the file or index with a folder's tensors, None if it has none that export reads."""
    names = [name for pair in zip(CHECKPOINT_LAYOUTS, INDEXES, strict=True) for name in pair]
    return next((name for name in (*names, CTRANSLATE2_MODEL) if (folder / name).is_file()), None)


def nemo_files(folder: Path) -> list[Path]:
    """Return the .nemo files of a folder."""
    return sorted(folder.glob(f"*{NEMO_SUFFIX}"))
