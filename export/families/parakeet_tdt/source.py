"""What golden outputs are compared with: transformers' encoder and torch's own layers, nothing folded or unrolled.

transformers has no search of NeMo's semantics and needs equal widths of prediction and joint net, so that around its
encoder stand torch.stft, torch.nn.LSTM, and NeMo's greedy search as a plain loop over frames.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import nn
from transformers import ParakeetEncoder, ParakeetEncoderConfig

from export.families.parakeet_tdt.checkpoint import ParakeetCheckpoint
from export.families.parakeet_tdt.standin import RandomParakeet
from export.families.parakeet_tdt.transformers_folder import TransformersFolder
from export.fastconformer.source import (
    EncoderWeights,
    SourceFrontend,
    cleaned,
    encoder_config,
    give_frequencies,
    load_weights,
)
from export.golden import Golden
from export.parity import arrays_of, tensors_of
from runtime.audio import open_audio
from runtime.engines.base import Array, Floats
from runtime.families.parakeet_tdt.settings import JOIN, STEP, ParakeetDims
from runtime.fastconformer.settings import ENCODER, FRONTEND
from runtime.fastconformer.tokenizer import SubwordTokenizer
from runtime.manifest import Recording, TeacherForced
from runtime.silence import is_silent

_BIAS = re.compile(r"(?P<lstm>.*\.lstm)\.bias_(?P<side>ih|hh)_l(?P<layer>\d+)")

States = tuple[torch.Tensor, torch.Tensor]


@dataclass
class _Row:
    """Where the search of one recording is; `predicted` [J] and `states` [L, 1, H] are those after `token`."""

    t: int
    token: int
    count: int
    predicted: torch.Tensor
    states: States


class SourceParakeet:
    """The unfolded network in fp32 with the tensors of a checkpoint, or with random ones from `weights`."""

    def __init__(self, checkpoint: ParakeetCheckpoint | RandomParakeet, weights: Path) -> None:
        version = transformers.__version__
        self.implementation = f"transformers {version}: ParakeetEncoder; torch {torch.__version__}: stft, LSTM"
        self.dims, self._frontend, self._settings = checkpoint.dims, checkpoint.frontend, checkpoint.settings
        self._vocabulary = checkpoint.tokenizer
        self.front = SourceFrontend(checkpoint.frontend, checkpoint.window, checkpoint.filters)
        unfolded = checkpoint.stored if isinstance(checkpoint, ParakeetCheckpoint) else FoldedWeights(weights)
        self.encoder = transformers_encoder(self.dims)
        load_weights(
            self.encoder,
            {name: TransformersFolder.nemo_name(f"encoder.{name}") for name in self.encoder.state_dict()},
            unfolded.read,
        )
        self.decoder = _Decoder(self.dims)
        self._dtype = torch.float32
        load_weights(
            self.decoder,
            {name: TransformersFolder.nemo_name(name) for name in self.decoder.state_dict()},
            unfolded.read,
        )

    def run(self, graph: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return what the network computes where `graph` does."""
        tensors = tensors_of(inputs, torch.float32 if graph == FRONTEND else self._dtype)
        run: dict[str, Callable[..., dict[str, torch.Tensor]]]
        run = {FRONTEND: self.front.features, ENCODER: self.frames, STEP: self._step, JOIN: self._join}
        with torch.inference_mode():
            outputs = run[graph](**tensors) if graph in run else self._decode(int(graph.rpartition("_")[2]), **tensors)
        return arrays_of(outputs)

    def cast(self, dtype: torch.dtype) -> None:
        """Compute in `dtype` from now on, all but the front-end."""
        self.encoder.to(dtype)
        self.decoder.to(dtype)
        self._dtype = dtype

    def teacher_forced(self, golden: Golden, run: TeacherForced) -> Floats:
        """Return logits [n, V + 1 + D] along the golden search through golden frames, whatever its own would choose."""
        case = next(case for case in golden.cases if case.name == run.encoder_case)
        frames = tensors_of({"frames": golden.arrays[case.outputs["frames"].key]}, self._dtype)["frames"][0]
        given, rows = torch.from_numpy(golden.arrays[run.logits]), []
        with torch.inference_mode():
            row = self._start()
            for logits in given:
                rows.append(self.decoder.logits(frames[row.t], row.predicted))
                self._advance(row, logits)
        return np.stack([row.float().numpy() for row in rows])

    def agrees(self, path: Path, recording: Recording) -> bool:
        """Return whether a plain search finds the tokens that the golden run found.

        A hotword is one token, which gains its weight where it is likelier than the blank, and the blank is not best.
        """
        audio = np.concatenate(list(open_audio(path).blocks(self._frontend.sample_rate)))
        if is_silent(audio):
            return not recording.result["segments"]  # nobody reads digital silence
        samples = torch.from_numpy(audio)[None]
        with torch.inference_mode():
            features = self.front.features(samples, torch.tensor([samples.shape[1]]))
            encoded = self.frames(**features)
            row, tokens, hotwords = self._start(), [], self._hotwords(recording)
            while row.t < int(encoded["frames_len"]):
                frame = encoded["frames"][0, row.t]
                logits = self.decoder.logits(frame, row.predicted)
                blank = logits[self.dims.blank]
                if logits[: self.dims.blank].max() >= blank:
                    for hotword, weight in hotwords.items():
                        logits[hotword] += weight if logits[hotword] > blank else 0.0
                token = self._advance(row, logits)[0]
                tokens += [token] if token >= 0 else []
        return tokens == [token for segment in recording.result["segments"] for token in segment["tokens"]]

    def _hotwords(self, recording: Recording) -> dict[int, float]:
        """Return the weights of a recording's hotwords, each of which is one token."""
        found = {}
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, self._settings.tokenizer_file)
            file.write_bytes(self._vocabulary)
            for phrase, weight in recording.options.get("hotwords", ()):
                [token] = SubwordTokenizer(file, self.dims.n_vocab).encode(phrase)
                found[token] = float(weight)
        return found

    def frames(self, features: torch.Tensor, features_len: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the encoder's frames behind the joint net's projection, zero where there are none."""
        clean, live = cleaned(features, features_len)
        outputs = self.encoder(input_features=clean, attention_mask=live)
        mask = outputs.attention_mask.bool()
        frames = self.decoder.encoder_projector(outputs.last_hidden_state).masked_fill(~mask[:, :, None], 0.0)
        return {"frames": frames, "frames_len": mask.sum(dim=1)}

    def _step(
        self, token: torch.Tensor, h: torch.Tensor, c: torch.Tensor, frame: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        predicted, (h, c) = self.decoder.predict(token, (h, c))
        return {"logits": self.decoder.logits(frame, predicted), "predicted": predicted, "new_h": h, "new_c": c}

    def _join(self, frame: torch.Tensor, predicted: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.decoder.logits(frame, predicted)}

    def _decode(self, n_steps: int, frames: torch.Tensor, **state: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return `n_steps` of the search of each recording; one that has ended looks at its last frame."""
        columns: list[list[tuple[int, int, int, float, float, float]]] = []
        rows = []
        lengths = state["frames_len"].tolist()
        for place, (recording, length) in enumerate(zip(frames, lengths, strict=True)):
            t, token, count = (int(state[name][place]) for name in ("t", "token", "count"))
            states = (state["h"][:, place : place + 1], state["c"][:, place : place + 1])
            row = _Row(t, token, count, state["predicted"][place], states)
            column = []
            for _ in range(n_steps):
                logits = self.decoder.logits(recording[max(min(row.t, length - 1), 0)], row.predicted)
                scores = logits[: self.dims.blank + 1]
                logit, total = float(scores.max()), float(scores.logsumexp(dim=0))
                at = row.t
                token, duration = self._advance(row, logits, ended=at >= length)
                column.append((token, at, duration, logit, total, float(scores.softmax(dim=0) @ scores)))
            columns.append(column)
            rows.append(row)
        outputs = {
            name: torch.tensor([[step[place] for step in column] for column in columns])
            for place, name in enumerate(("tokens", "at", "durations", "logit", "log_sum_exp", "mean_logit"))
        }
        outputs |= {
            f"new_{name}": torch.tensor([getattr(row, name) for row in rows]) for name in ("t", "token", "count")
        }
        outputs["new_predicted"] = torch.stack([row.predicted for row in rows])
        return outputs | {f"new_{name}": torch.cat([row.states[i] for row in rows], 1) for i, name in enumerate("hc")}

    def _start(self) -> _Row:
        """Return where a search begins: the blank is what the prediction net starts from."""
        empty = torch.zeros(self.dims.pred_layers, 1, self.dims.pred_hidden, dtype=self._dtype)
        predicted, states = self.decoder.predict(torch.tensor([self.dims.blank]), (empty, empty))
        return _Row(0, self.dims.blank, 0, predicted[0], states)

    def _advance(self, row: _Row, logits: torch.Tensor, *, ended: bool = False) -> tuple[int, int]:
        """Make a step of NeMo's GreedyTDTInfer (rnnt_greedy_decoding.py); return its token or -1, and its duration."""
        best = int(logits[: self.dims.blank + 1].argmax())
        duration = self._settings.durations[int(logits[self.dims.blank + 1 :].argmax())]
        if ended:
            return -1, duration
        if best == self.dims.blank:
            row.t, row.count = row.t + max(duration, 1), 0
            return -1, duration
        row.token, row.count = best, row.count + 1
        predicted, row.states = self.decoder.predict(torch.tensor([best]), row.states)
        row.predicted = predicted[0]
        # A frame that has emitted as many symbols as it may is left.
        skip = duration or int(row.count >= self._settings.max_symbols)
        if skip:
            row.t, row.count = row.t + skip, 0
        return best, duration


class _Decoder(nn.Module):
    """Prediction and joint net with transformers' names of the parameters."""

    def __init__(self, dims: ParakeetDims) -> None:
        super().__init__()
        with torch.device("meta"):
            self.encoder_projector = nn.Linear(dims.d_model, dims.joint_hidden)
            lstm = nn.LSTM(dims.pred_hidden, dims.pred_hidden, dims.pred_layers, batch_first=True)
            projector = nn.Linear(dims.pred_hidden, dims.joint_hidden)
            embedding = nn.Embedding(dims.n_vocab + 1, dims.pred_hidden)
            head = nn.Linear(dims.joint_hidden, dims.n_vocab + 1 + dims.n_durations)
        self.decoder = nn.ModuleDict({"embedding": embedding, "lstm": lstm, "decoder_projector": projector})
        self.joint = nn.ModuleDict({"head": head})

    def predict(self, token: torch.Tensor, states: States) -> tuple[torch.Tensor, States]:
        """Return predicted [B, J] and states [L, B, H] after `token` i64 [B]."""
        decoder = self.decoder
        outputs, after = decoder["lstm"](decoder["embedding"](token)[:, None], states)
        return decoder["decoder_projector"](outputs[:, 0]), after

    def logits(self, frame: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
        """Return logits [..., V + 1 + D]."""
        logits: torch.Tensor = self.joint["head"](torch.relu(frame + predicted))
        return logits


class FoldedWeights(EncoderWeights):
    """A weights.safetensors as a checkpoint holds it; the second bias of an LSTM layer is 0."""

    def read(self, name: str) -> torch.Tensor:
        """Return one tensor by NeMo's name."""
        if match := _BIAS.fullmatch(name):
            bias = self.tensors[f"{match['lstm']}.bias_l{match['layer']}"]
            return bias if match["side"] == "ih" else torch.zeros_like(bias)
        return super().read(name)


def transformers_encoder(dims: ParakeetDims) -> ParakeetEncoder:
    """Return transformers' encoder on the meta device."""
    with torch.device("meta"):
        encoder = ParakeetEncoder(ParakeetEncoderConfig(**encoder_config(dims)))
    give_frequencies(encoder)
    return encoder
