"""Who takes part: our engine, onnx-asr, sherpa-onnx and transformers in eager mode, all in float32 on the CPU.

Each does the same work: the samples of one recording in; features, encoder, greedy search. The peers load what
`atlasport export --layout` writes, with the artifact's weights, and are called as their own entry points call
themselves, so that the parts can be timed.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
import onnxruntime
import torch

from bench.measure import Laps, Run
from export.families.parakeet_tdt.layouts import LAYOUTS
from export.families.parakeet_tdt.layouts.network import NetworkSource
from export.families.parakeet_tdt.layouts.scores import piece_scores
from export.families.parakeet_tdt.source import FoldedWeights, transformers_encoder
from export.families.parakeet_tdt.transformers_folder import TransformersFolder
from export.fastconformer.source import load_weights
from runtime.artifact import Artifact
from runtime.engines import open_engine
from runtime.engines.base import Floats
from runtime.families.parakeet_tdt.settings import JOIN, STEP, ParakeetDims, ParakeetSettings
from runtime.families.parakeet_tdt.transducer import ParakeetTransducer
from runtime.fastconformer.encoder import Encoded
from runtime.fastconformer.settings import ENCODER, FRONTEND, FastConformerFrontend
from runtime.fastconformer.tokenizer import SPACE, SubwordTokenizer

WEIGHTS = "weights.safetensors"


class Contestant(Protocol):
    """One implementation with its weights loaded."""

    name: str

    def run(self, samples: Floats) -> tuple[Run, list[int]]:
        """Return what features, encoder and search of samples f32 [n] cost, and the tokens."""


class Ours:
    """Our engine under what `atlasport run` calls."""

    def __init__(self, artifact: Artifact, threads: int) -> None:
        self.name = "atlasport onnxruntime"
        self._engine = open_engine(artifact, "onnxruntime", "cpu", threads, [FRONTEND, ENCODER, STEP, JOIN])
        self._decoder = ParakeetTransducer(artifact, self._engine)

    def run(self, samples: Floats) -> tuple[Run, list[int]]:
        """Return costs and tokens."""
        put = self._engine.put
        laps = Laps()
        length = np.array([len(samples)], np.int64)
        features = self._engine.run(FRONTEND, {"audio": put(samples[None], "float32"), "length": put(length, "int64")})
        laps.end("frontend")
        outputs = self._engine.run(ENCODER, features)
        laps.end("encoder")
        lengths = self._engine.get(outputs["frames_len"])
        (emissions,) = self._decoder.decode(Encoded(outputs["frames"], outputs["frames_len"], lengths))
        laps.end("decoder")
        return laps.run, [emission.token for emission in emissions]


class OnnxAsr:
    """onnx-asr's model, called as its `recognize_batch` does."""

    name = "onnx-asr"

    def __init__(self, folder: Path, threads: int) -> None:
        import onnx_asr

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        loaded = onnx_asr.load_model(
            "nemo-conformer-tdt", folder, sess_options=options, providers=["CPUExecutionProvider"]
        )
        model: Any = loaded.asr
        # What its recognize_batch calls, in this order; there is no public way to time the parts.
        self._features = model._preprocessor  # noqa: SLF001
        self._encode = model._encode  # noqa: SLF001
        self._search = model._decoding  # noqa: SLF001

    def run(self, samples: Floats) -> tuple[Run, list[int]]:
        """Return costs and tokens."""
        laps = Laps()
        features = self._features(samples[None], np.array([len(samples)], np.int64))
        laps.end("frontend")
        encoded = self._encode(*features)
        laps.end("encoder")
        ((tokens, _, _),) = self._search(*encoded)
        laps.end("decoder")
        return laps.run, list(tokens)

    def frames(self, samples: Floats) -> Floats:
        """Return the encoder's frames f32 [T, d_model]."""
        features = self._features(samples[None], np.array([len(samples)], np.int64))
        frames: Floats = self._encode(*features)[0][0]
        return frames


class SherpaOnnx:
    """sherpa-onnx's recognizer, which encodes and searches in one call.

    The search is timed alone by a second recognizer, whose encoder returns stored frames at once; the encoder's time
    is what the first one's call took above it.

    Parameters
    ----------
    folder : Path
        In sherpa-onnx's layout.
    source : NetworkSource
        What it was written from.
    threads : int
        Threads of each operator.

    """

    name = "sherpa-onnx"

    def __init__(self, folder: Path, source: NetworkSource, threads: int) -> None:
        self._recognizer = _sherpa_recognizer(folder, threads)
        self._folder, self._threads, self._rate = folder, threads, source.frontend.sample_rate
        # Its frames lie half a hop later than NeMo's.
        self._lead = np.zeros(source.frontend.hop_length // 2, np.float32)
        self._ids = {_sherpa_token(piece): index for index, piece in enumerate(source.pieces)}
        self._replay: Any = None

    def replay(self, frames: Floats, folder: Path) -> None:
        """Time the search on these frames f32 [T, d_model] from now on; `folder` is written."""
        write_replay(self._folder, frames, folder)
        self._replay = _sherpa_recognizer(folder, self._threads)

    def run(self, samples: Floats) -> tuple[Run, list[int]]:
        """Return costs, and the tokens found in the stored frames."""
        stream = self._replay.create_stream()
        stream.accept_waveform(self._rate, np.zeros(self._rate // 10, np.float32))
        search = Laps()
        self._replay.decode_stream(stream)
        search.end("decoder")
        tokens = [self._ids[token] for token in stream.result.tokens]

        samples = np.concatenate([self._lead, samples])
        laps = Laps()
        stream = self._recognizer.create_stream()
        stream.accept_waveform(self._rate, samples)
        laps.end("frontend")
        self._recognizer.decode_stream(stream)
        laps.end("encoder")
        decoder = search.run["decoder"]
        return {**laps.run, "encoder": laps.run["encoder"].since(decoder), "decoder": decoder}, tokens


def _sherpa_token(piece: str) -> str:
    """Return how sherpa-onnx spells a piece."""
    return piece.replace(SPACE, " ", 1) if piece.startswith(SPACE) else piece


def _sherpa_recognizer(folder: Path, threads: int) -> Any:
    import sherpa_onnx

    parts = {part: str(folder / f"{part}.onnx") for part in ("encoder", "decoder", "joiner")}
    return sherpa_onnx.OfflineRecognizer.from_transducer(
        **parts, tokens=str(folder / "tokens.txt"), num_threads=threads, model_type="nemo_transducer"
    )


class Transformers:
    """transformers' feature extractor and modules in eager mode, without the overhead of `generate`."""

    name = "transformers eager"

    def __init__(self, artifact: Artifact) -> None:
        from transformers import ParakeetFeatureExtractor

        dims, self._settings = artifact.part("dims", ParakeetDims), artifact.part("settings", ParakeetSettings)
        frontend = artifact.part("frontend", FastConformerFrontend)
        self._blank, self._rate = dims.blank, frontend.sample_rate
        self._extractor = ParakeetFeatureExtractor(feature_size=dims.n_mels, sampling_rate=frontend.sample_rate)
        self.model = transformers_model(dims, self._settings, artifact.file(WEIGHTS))

    @torch.inference_mode()
    def run(self, samples: Floats) -> tuple[Run, list[int]]:
        """Return costs and tokens."""
        laps = Laps()
        features = self._extractor(samples, sampling_rate=self._rate, return_tensors="pt")
        laps.end("frontend")
        encoded = self.model.get_audio_features(**features)
        laps.end("encoder")
        tokens = self._search(encoded.pooler_output[:, : int(encoded.attention_mask.sum())])
        laps.end("decoder")
        return laps.run, tokens

    def _search(self, frames: torch.Tensor) -> list[int]:
        """Search frames [1, T, J] as its `generate` does: the prediction net runs for tokens, not for blanks.

        But for `max_symbols`, which it lacks: without it, random weights may emit at one frame for ever.
        """
        decoder, joint = self.model.decoder, self.model.joint
        n_tokens, durations = self._blank + 1, self._settings.durations
        tokens: list[int] = []
        t, count, token, states, predicted = 0, 0, self._blank, None, None
        while t < frames.shape[1]:
            if token != self._blank or predicted is None:
                output, states = decoder.lstm(decoder.embedding(torch.tensor([[token]])), states)
                predicted = decoder.decoder_projector(output)
            logits = joint(encoder_hidden_states=frames[:, t : t + 1], decoder_hidden_states=predicted)[0, 0]
            token = int(logits[:n_tokens].argmax())
            duration = durations[int(logits[n_tokens:].argmax())]
            if token != self._blank:
                tokens.append(token)
                count += 1
            step = duration or int(token == self._blank or count >= self._settings.max_symbols)
            t, count = t + step, 0 if step else count
        return tokens


def transformers_model(dims: ParakeetDims, settings: ParakeetSettings, weights: Path) -> Any:
    """Return transformers' model with our weights, mapped from their file."""
    from torch import nn
    from transformers import ParakeetForTDT, ParakeetTDTConfig

    encoder = transformers_encoder(dims)
    config = ParakeetTDTConfig(
        vocab_size=dims.n_vocab + 1,
        blank_token_id=dims.blank,
        decoder_hidden_size=dims.pred_hidden,
        num_decoder_layers=dims.pred_layers,
        durations=settings.durations,
        encoder_config=encoder.config,
    )
    with torch.device("meta"):
        model = ParakeetForTDT(config)
        # It has one size for the prediction net and the joint net.
        model.encoder_projector = nn.Linear(dims.d_model, dims.joint_hidden)
        model.decoder.decoder_projector = nn.Linear(dims.pred_hidden, dims.joint_hidden)
        model.joint.head = nn.Linear(dims.joint_hidden, dims.n_vocab + 1 + dims.n_durations)
    model.encoder = encoder
    load_weights(
        model, {name: TransformersFolder.nemo_name(name) for name in model.state_dict()}, FoldedWeights(weights).read
    )
    return model


def write_replay(folder: Path, frames: Floats, target: Path) -> None:
    """Copy a folder in sherpa-onnx's layout with an encoder that returns `frames` f32 [T, d_model] for any features."""
    original = onnx.load(folder / "encoder.onnx", load_external_data=False)
    frames = np.ascontiguousarray(frames.T[None])
    stored = [
        onnx.helper.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(array))
        for name, array in (("outputs", frames), ("encoded_lengths", np.array([frames.shape[2]], np.int64)))
    ]
    graph = onnx.helper.make_graph(stored, "replay", original.graph.input, original.graph.output)
    replay = onnx.helper.make_model(graph, opset_imports=original.opset_import, ir_version=original.ir_version)
    onnx.helper.set_model_props(replay, {prop.key: prop.value for prop in original.metadata_props})
    target.mkdir()
    onnx.save(replay, target / "encoder.onnx")
    for name in ("decoder", "joiner"):
        onnx.save(onnx.load(folder / f"{name}.onnx"), target / f"{name}.onnx")
    shutil.copyfile(folder / "tokens.txt", target / "tokens.txt")


@dataclass(frozen=True)
class Field:
    """All contestants; the search of sherpa-onnx is timed on the encoder frames of onnx-asr."""

    ours: Ours
    onnx_asr: OnnxAsr
    sherpa: SherpaOnnx
    transformers: Transformers

    @property
    def all(self) -> list[Contestant]:
        """Every contestant, ours first."""
        return [self.ours, self.onnx_asr, self.sherpa, self.transformers]


def open_contestants(artifact: Artifact, threads: int, scratch: Path) -> Field:
    """Open our engine, and the peers with the artifact's weights, in layouts that are written into `scratch`."""
    torch.set_num_threads(threads)
    for layout in LAYOUTS:
        source = write_layout(artifact, layout, scratch / layout)
    return Field(
        Ours(artifact, threads),
        OnnxAsr(scratch / "onnx-asr", threads),
        SherpaOnnx(scratch / "sherpa-onnx", source, threads),
        Transformers(artifact),
    )


def write_layout(artifact: Artifact, layout: str, folder: Path) -> NetworkSource:
    """Write the artifact's network in a layout of another package; return what it was written from."""
    content = artifact.content
    dims, settings = artifact.part("dims", ParakeetDims), artifact.part("settings", ParakeetSettings)
    file = artifact.file(settings.tokenizer_file)
    pieces = SubwordTokenizer(file, dims.n_vocab).pieces
    scores = piece_scores(file)[: len(pieces)]
    frontend = artifact.part("frontend", FastConformerFrontend)
    source = NetworkSource(dims, frontend, settings, pieces, scores, content.source.origin, content.source.licence)
    folder.mkdir()
    shutil.copyfile(artifact.file(WEIGHTS), folder / LAYOUTS[layout].weights)
    LAYOUTS[layout].write(source, folder)
    return source
