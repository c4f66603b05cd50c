"""Random Granite Speech checkpoints as transformers and the hub write them, small but with the real layout."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

# Ids of the small vocabulary; its last is the audio token, as on the hub.
VOCABULARY = 384
PAD, END_OF_TEXT, AUDIO = 371, 372, 383
SPECIAL = ("<|pad|>", "<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>", *(f"<|unused_{i}|>" for i in range(8)))
# What the template of 4.0 and 4.1 renders: `USER: <|audio|>instruction\n ASSISTANT:`.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}{%- if message['role'] == 'user' -%}{{ 'USER: ' + message['content'] + "
    "'\\n ASSISTANT:' }}{%- else -%}{{ message['content'] + eos_token }}{%- endif -%}{%- endfor -%}"
)
# In the manner of 3.3: a system message that states a date, and a generation prompt.
ROLE_TEMPLATE = (
    "{{- '<|start_of_role|>system<|end_of_role|>Today\\'s Date: ' + strftime_now('%B %d, %Y') + "
    "'.\\nYou are a helpful AI assistant.<|end_of_text|>\\n' -}}"
    "{%- for message in messages -%}{{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + "
    "message['content'] + '<|end_of_text|>\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|start_of_role|>assistant<|end_of_role|>' -}}{%- endif -%}"
)
INSTRUCTIONS = (
    "can you transcribe the speech into a written format?",
    "transcribe the speech with proper punctuation and capitalization.",
    "transcribe the speech to text. Keywords: Atlas, Köln",
    "translate the speech to German with proper punctuation and capitalization.",
)
_TRAINING_TEXT = (*INSTRUCTIONS, "USER: \n ASSISTANT:", "translate the speech to French, Spanish, Portuguese, Japanese")

TemplatePlace = Literal["tokenizer_config.json", "chat_template.jinja", "chat_template.json", "processor_config.json"]


def granite_config(
    *, encoder_layers: int = 2, context_size: int = 40, tied: bool = False, adapter: bool = False
) -> transformers.GraniteSpeechConfig:
    """The configuration of a small Granite Speech: blocks of 40 frames beside windows of 15, so units of 120."""
    return transformers.GraniteSpeechConfig(
        audio_token_index=AUDIO,
        downsample_rate=5,
        window_size=15,
        has_lora_adapter=adapter,
        tie_word_embeddings=tied,
        architectures=["GraniteSpeechForConditionalGeneration"],
        encoder_config={
            "model_type": "granite_speech_encoder",
            "input_dim": 160,
            "num_layers": encoder_layers,
            "hidden_dim": 64,
            "feedforward_mult": 2,
            "num_heads": 4,
            "dim_head": 16,
            "output_dim": 48,
            "context_size": context_size,
            "max_pos_emb": context_size + 24,
            "conv_kernel_size": 15,
            "conv_expansion_factor": 2,
        },
        projector_config={
            "model_type": "blip_2_qformer",
            "hidden_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 96,
            "encoder_hidden_size": 64,
            "cross_attention_frequency": 1,
            "max_position_embeddings": 2048,
            "use_qformer_text_input": False,
        },
        text_config={
            "model_type": "granite",
            "vocab_size": VOCABULARY,
            "hidden_size": 96,
            "intermediate_size": 160,
            "num_hidden_layers": 2,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "attention_multiplier": 0.0625,
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "logits_scaling": 8.0,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 1024,
            "bos_token_id": END_OF_TEXT,
            "eos_token_id": END_OF_TEXT,
            "pad_token_id": PAD,
            "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
            "tie_word_embeddings": tied,
        },
    )


def granite_tokenizer() -> Tokenizer:
    """A byte-level BPE tokenizer: 371 pieces, twelve special tokens, `<|audio|>` last."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=PAD, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(_TRAINING_TEXT * 4, trainer)
    # Where the text above has too few pairs.
    fillers = [f"filler{index}" for index in range(PAD - tokenizer.get_vocab_size())]
    tokenizer.add_tokens(fillers)
    texts = (*SPECIAL[: AUDIO - PAD], "<|audio|>")
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in texts])
    assert (tokenizer.token_to_id("<|pad|>"), tokenizer.token_to_id("<|audio|>")) == (PAD, AUDIO)
    assert tokenizer.token_to_id("<|end_of_text|>") == END_OF_TEXT
    return tokenizer


@torch.no_grad()
def scale_weights(model: torch.nn.Module, seed: int = 0) -> None:
    """Set every parameter at random, scaled by fan-in: transformers' own initialisation hides errors.

    Attention is sharp, normalisations are not the identity, and the first channel of each convolution is as good as
    dead: its running variance is the 4e-10 of the real checkpoint, which only shows when the fold is exact.
    """
    generator = torch.Generator().manual_seed(seed)
    names = dict(model.named_parameters())
    # A tied head prefers the token that was just read, unless the layers add more than the embedding.
    embedding = 1 / 12 if "lm_head.weight" in names else 0.01

    def normal(tensor: torch.Tensor, mean: float, std: float) -> None:
        tensor.copy_(mean + std * torch.randn(tensor.shape, generator=generator))

    for name, tensor in names.items():
        if "norm" in name.lower():
            normal(tensor, 1.0 if name.endswith("weight") else 0.0, 0.2)
        elif name.endswith("query") or tensor.dim() == 1:
            normal(tensor, 0.0, 1.0 if name.endswith("query") else 0.1)
        elif "rel_pos_emb" in name:
            normal(tensor, 0.0, 1.0)
        elif "embed_tokens" in name:
            normal(tensor, 0.0, embedding)
        elif name.endswith("projector.linear.weight"):
            normal(tensor, 0.0, embedding * tensor[0].numel() ** -0.5)
        else:
            normal(tensor, 0.0, _gain(name) * tensor[0].numel() ** -0.5)
    for name, _ in model.named_buffers():
        if name.endswith("running_var"):
            _scale_statistics(model, name.removesuffix(".batch_norm.running_var"), generator)


def _scale_statistics(model: torch.nn.Module, convolution: str, generator: torch.Generator) -> None:
    norm = model.get_submodule(f"{convolution}.batch_norm")
    norm.running_mean.copy_(0.2 * torch.randn(norm.running_mean.shape, generator=generator))
    norm.running_var.copy_(0.3 + torch.rand(norm.running_var.shape, generator=generator))
    norm.running_var[0] = 4e-10
    norm.running_mean[0] *= 1e-3
    model.get_parameter(f"{convolution}.depth_conv.conv.weight")[0] *= 1e-3


def _gain(name: str) -> float:
    """What makes the text that is said depend on the audio and on the text before it."""
    gains = {
        "[qko]_proj.weight|mlp.*.weight|crossattention.*(query|key|value|dense).weight": 3.0,
        "to_(q|kv).weight|(query|key).weight": 1.5,
        "lm_head.weight": 24.0,
    }
    return next((gain for pattern, gain in gains.items() if re.search(pattern, name)), 1.0)


def write_granite_checkpoint(
    folder: Path,
    *,
    encoder_layers: int = 2,
    context_size: int = 40,
    tied: bool = False,
    new_names: bool = False,
    shards: int = 1,
    dtype: torch.dtype = torch.float32,
    template: str = CHAT_TEMPLATE,
    template_place: TemplatePlace = "chat_template.jinja",
    adapter: bool = False,
    seed: int = 0,
) -> Path:
    """Write a checkpoint of about 300,000 parameters into `folder`; transformers' from_pretrained reads it.

    Parameters
    ----------
    folder : Path
        Made here.
    encoder_layers, context_size : int
        Of the encoder.
    tied : bool
        The language model's head is its embedding, and not in the files.
    new_names : bool
        Tensors as transformers 5 calls them (`model.encoder...`, `lm_head`), not as the hub's files do.
    shards : int
        More than one: split files with an index.
    dtype : torch.dtype
        Of the tensors.
    template, template_place : str
        The chat template and the file that holds it.
    adapter : bool
        Add a LoRA adapter, as 3.3 has.
    seed : int
        Another seed, other weights.

    """
    config = granite_config(encoder_layers=encoder_layers, context_size=context_size, tied=tied, adapter=adapter)
    model = transformers.GraniteSpeechForConditionalGeneration(config).eval()
    scale_weights(model, seed)
    model.to(dtype)
    ends = {"bos_token_id": END_OF_TEXT, "eos_token_id": END_OF_TEXT, "pad_token_id": PAD}
    model.generation_config = transformers.GenerationConfig(**ends)
    model.save_pretrained(folder, save_original_format=not new_names)
    if shards > 1:
        _split(folder, shards)
    if adapter:
        write_adapter(folder, seed=seed)
    granite_tokenizer().save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(template, template_place))
    _write_json(folder / "preprocessor_config.json", PREPROCESSOR)
    processor = {"audio_token": "<|audio|>", "processor_class": "GraniteSpeechProcessor"}
    in_processor = {"chat_template": template} if template_place == "processor_config.json" else {}
    _write_json(folder / "processor_config.json", processor | in_processor)
    if template_place == "chat_template.jinja":
        (folder / template_place).write_text(template)
    elif template_place == "chat_template.json":
        _write_json(folder / template_place, {"chat_template": template})
    return folder


PREPROCESSOR = {
    "feature_extractor_type": "GraniteSpeechFeatureExtractor",
    "melspec_kwargs": {"hop_length": 160, "n_fft": 512, "n_mels": 80, "sample_rate": 16000, "win_length": 400},
    "processor_class": "GraniteSpeechProcessor",
    "projector_downsample_rate": 5,
    "projector_window_size": 15,
    "sampling_rate": 16000,
}


def write_adapter(
    folder: Path,
    *,
    rank: int = 4,
    alpha: float = 8.0,
    targets: tuple[str, ...] = ("q_proj", "v_proj"),
    prefix: str = "base_model.model.language_model.model.",
    seed: int = 0,
    **options: Any,
) -> dict[str, torch.Tensor]:
    """Write adapter_config.json and adapter_model.safetensors as peft does; return the adapter's tensors."""
    generator = torch.Generator().manual_seed(seed)
    config = json.loads((folder / "config.json").read_text())["text_config"]
    width, kv = config["hidden_size"], config["num_key_value_heads"]
    kv_width = width // config["num_attention_heads"] * kv
    ffn = config["intermediate_size"]
    sizes = {"q_proj": (width, width), "k_proj": (kv_width, width), "v_proj": (kv_width, width)}
    sizes |= {"o_proj": (width, width), "up_proj": (ffn, width), "gate_proj": (ffn, width), "down_proj": (width, ffn)}
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for target in targets:
            n_out, n_in = sizes[target]
            part = "self_attn" if target[0] in "qkvo" else "mlp"
            module = f"{prefix}layers.{layer}.{part}.{target}"
            tensors[f"{module}.lora_A.weight"] = torch.randn(rank, n_in, generator=generator) * n_in**-0.5
            tensors[f"{module}.lora_B.weight"] = torch.randn(n_out, rank, generator=generator) * 0.5
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    stated = {
        "auto_mapping": None,
        "base_model_name_or_path": "",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": alpha,
        "lora_dropout": 0.1,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": list(targets),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    _write_json(folder / "adapter_config.json", stated | options)
    return tensors


def _tokenizer_config(template: str, place: TemplatePlace) -> dict[str, Any]:
    ids = granite_tokenizer().get_vocab()
    config = {
        "added_tokens_decoder": {
            str(ids[text]): {"content": text, "normalized": False, "special": True}
            for text in (*SPECIAL[: AUDIO - PAD], "<|audio|>")
        },
        "audio_token": "<|audio|>",
        "bos_token": "<|end_of_text|>",
        "eos_token": "<|end_of_text|>",
        "pad_token": "<|pad|>",
        "unk_token": "<|end_of_text|>",
        "tokenizer_class": "GPT2Tokenizer",
    }
    return config | ({"chat_template": template} if place == "tokenizer_config.json" else {})


def _split(folder: Path, shards: int) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    parts = list(_parts(sorted(tensors), shards))
    weight_map = {}
    for number, names in enumerate(parts, 1):
        file = f"model-{number:05}-of-{shards:05}.safetensors"
        save_file({name: tensors[name] for name in names}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    size = sum(tensor.nbytes for tensor in tensors.values())
    _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": weight_map})


def _parts(names: list[str], shards: int) -> Iterator[list[str]]:
    for number in range(shards):
        yield names[number::shards]


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False))
