"""The prediction and joint nets in plain numpy, as an engine; NeMo's references; and the search by the book."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from runtime.engines.probe import HostProbe
from runtime.families.parakeet_tdt.search import Emission
from runtime.families.parakeet_tdt.settings import JOIN, STEP, ParakeetDims, ParakeetSettings
from runtime.fastconformer.counting import CountingEngine

ROOT = Path(__file__).resolve().parents[2]
NEMO = ROOT / "pocket" / "parakeet-pocket.nemo"
REFERENCE = ROOT / "tests" / "parakeet_reference"
ITEMS: dict[str, Any] = json.loads((REFERENCE / "reference.json").read_text())["items"]
DURATIONS = (0, 1, 2, 3, 4)


def dims_of(n_vocab: int, n_durations: int, pred_hidden: int, pred_layers: int, joint_hidden: int) -> ParakeetDims:
    encoder = dict.fromkeys(ParakeetDims.model_fields, 1)
    return ParakeetDims.model_validate(
        {
            **encoder,
            "n_vocab": n_vocab,
            "n_durations": n_durations,
            "pred_hidden": pred_hidden,
            "pred_layers": pred_layers,
            "joint_hidden": joint_hidden,
        }
    )


@dataclass(frozen=True)
class Nets:
    """Weights by NeMo's names, f64; and how to search with them."""

    weights: Mapping[str, np.ndarray]
    dims: ParakeetDims
    settings: ParakeetSettings

    def predict(self, token: np.ndarray, h: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        x, new_h, new_c = self.weights["embed"][token], [], []
        for layer in range(self.dims.pred_layers):
            gates = (
                x @ self.weights[f"ih{layer}"].T + h[layer] @ self.weights[f"hh{layer}"].T + self.weights[f"b{layer}"]
            )
            i, f, g, o = np.split(gates, 4, axis=1)
            new_c.append(sigmoid(f) * c[layer] + sigmoid(i) * np.tanh(g))
            x = sigmoid(o) * np.tanh(new_c[-1])
            new_h.append(x)
        return x @ self.weights["pred"].T + self.weights["pred_b"], np.stack(new_h), np.stack(new_c)

    def logits(self, frame: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        return np.maximum(frame + predicted, 0) @ self.weights["out"].T + self.weights["out_b"]


class NumpyEngine:
    """An engine of numpy for the graphs of the search, by their contract; what it was called with is kept."""

    name = "numpy"
    device = "cpu"
    probe = HostProbe()

    def __init__(self, nets: Nets) -> None:
        self.nets = nets
        self.called: list[tuple[str, int]] = []  # graph and batch

    def put(self, array: np.ndarray, dtype: str) -> np.ndarray:
        return np.array(array, dtype)

    def get(self, value: np.ndarray) -> np.ndarray:
        return value

    def synchronize(self) -> None:
        pass

    def run(self, graph: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        wide = {
            name: value.astype(np.float64 if value.dtype.kind == "f" else np.int64) for name, value in inputs.items()
        }
        self.called.append((graph, len(wide["predicted"] if "predicted" in wide else wide["token"])))
        if graph == JOIN:
            outputs = {"logits": self.nets.logits(**wide)}
        elif graph == STEP:
            predicted, h, c = self.nets.predict(wide["token"], wide["h"], wide["c"])
            outputs = {"logits": self.nets.logits(wide["frame"], predicted)}
            outputs |= {"predicted": predicted, "new_h": h, "new_c": c}
        else:
            outputs = self._decode(int(graph.removeprefix("decode_")), **wide)
        return {name: v.astype(np.float32 if v.dtype.kind == "f" else np.int64) for name, v in outputs.items()}

    def _decode(self, n_steps: int, frames: np.ndarray, frames_len: np.ndarray, **state: Any) -> dict[str, np.ndarray]:
        """N steps of each row, one row after the other."""
        blank, batch = self.nets.dims.blank, len(frames_len)
        columns = {name: np.full((batch, n_steps), -1, np.int64) for name in ("tokens", "at", "durations")}
        columns |= {name: np.zeros((batch, n_steps)) for name in ("logit", "log_sum_exp", "mean_logit")}
        state = {name: value.copy() for name, value in state.items()}
        for row in range(batch):
            for step in range(n_steps):
                t = state["t"][row]
                if t >= frames_len[row]:
                    break
                logits = self.nets.logits(frames[row, t][None], state["predicted"][row][None])[0]
                token = int(logits[: blank + 1].argmax())
                duration = self.nets.settings.durations[int(logits[blank + 1 :].argmax())]
                if token == blank:
                    state["t"][row] += max(duration, 1)
                    state["count"][row] = 0
                    continue
                scores = logits[: blank + 1]
                logprob = log_softmax(scores)
                summary = (scores[token], scores[token] - logprob[token], np.exp(logprob) @ scores)
                found = (token, t, duration, *summary)
                for column, value in zip(columns.values(), found, strict=True):
                    column[row, step] = value
                hidden = state["h"][:, [row]], state["c"][:, [row]]
                predicted, h, c = self.nets.predict(np.array([token]), *hidden)
                state["predicted"][row], state["h"][:, row], state["c"][:, row] = predicted[0], h[:, 0], c[:, 0]
                state["token"][row] = token
                state["count"][row] += 1
                moved = duration or int(state["count"][row] >= self.nets.settings.max_symbols)
                if moved:
                    state["t"][row] += moved
                    state["count"][row] = 0
        return columns | {f"new_{name}": value for name, value in state.items()}


def counting(nets: Nets) -> CountingEngine:
    return CountingEngine(NumpyEngine(nets))  # type: ignore[arg-type] # what the search needs of an engine


def plain_search(nets: Nets, frames: np.ndarray) -> list[tuple[int, int, int]]:
    """Token, frame and duration by NeMo's rules, written down as in the paper: one recording, all nets every time."""
    layers, blank = nets.dims.pred_layers, nets.dims.blank
    h = c = np.zeros((layers, 1, nets.dims.pred_hidden))
    fed, t, found = blank, 0, []
    while t < len(frames):
        predicted, new_h, new_c = nets.predict(np.array([fed]), h, c)
        logits = nets.logits(frames[t][None].astype(np.float64), predicted)[0]
        token, duration = int(logits[: blank + 1].argmax()), nets.settings.durations[int(logits[blank + 1 :].argmax())]
        if token == blank:
            t += max(duration, 1)
            continue
        found.append((token, t, duration))
        fed, h, c = token, new_h, new_c
        if duration == 0 and sum(frame == t for _, frame, _ in found) >= nets.settings.max_symbols:
            t += 1
        t += duration
    return found


def triples(emissions: Sequence[Emission]) -> list[tuple[int, int, int]]:
    return [(emission.token, emission.frame, emission.duration) for emission in emissions]


def reference_triples(name: str) -> list[tuple[int, int, int]]:
    item = ITEMS[name]
    return list(zip(item["token_ids"], item["frames"], item["durations"], strict=True))


def reference_emissions(name: str) -> list[Emission]:
    return [Emission(*triple, logprob=-0.1, entropy=0.2) for triple in reference_triples(name)]


@cache
def pocket_nets() -> Nets:
    """The pocket model's nets, from its .nemo."""
    with tarfile.open(NEMO) as tar:
        name = next(name for name in tar.getnames() if name.endswith("model_weights.ckpt"))
        weights = torch.load(io.BytesIO(tar.extractfile(name).read()), weights_only=True)
    tensors = {key: value.double().numpy() for key, value in weights.items() if key.startswith(("decoder", "joint"))}
    lstm = "decoder.prediction.dec_rnn.lstm."
    named = {"embed": tensors["decoder.prediction.embed.weight"]}
    for layer in range(2):
        named[f"ih{layer}"] = tensors[f"{lstm}weight_ih_l{layer}"]
        named[f"hh{layer}"] = tensors[f"{lstm}weight_hh_l{layer}"]
        named[f"b{layer}"] = tensors[f"{lstm}bias_ih_l{layer}"] + tensors[f"{lstm}bias_hh_l{layer}"]
    for short, long in {"enc": "joint.enc", "pred": "joint.pred", "out": "joint.joint_net.2"}.items():
        named[short], named[f"{short}_b"] = tensors[f"{long}.weight"], tensors[f"{long}.bias"]
    return Nets(named, dims_of(192, 5, 96, 2, 128), ParakeetSettings(durations=DURATIONS))


@cache
def pocket_frames(name: str) -> np.ndarray:
    """NeMo's encoder output through joint.enc: [T, J] f32."""
    nets = pocket_nets()
    encoder = np.load(REFERENCE / f"{name}.npz")["encoder"].T.astype(np.float64)
    frames: np.ndarray = (encoder @ nets.weights["enc"].T + nets.weights["enc_b"]).astype(np.float32)
    return frames


def padded(recordings: Sequence[np.ndarray], fill: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Recordings' frames as a batch [B, T, J] with `fill` behind the shorter ones, and their lengths."""
    lengths = np.array([len(frames) for frames in recordings], np.int64)
    batch = np.full((len(recordings), lengths.max(), recordings[0].shape[1]), fill, np.float32)
    for row, frames in zip(batch, recordings, strict=True):
        row[: len(frames)] = frames
    return batch, lengths


def random_nets(
    rng: np.random.Generator, durations: tuple[int, ...], max_symbols: int, eagerness: float, haste: float
) -> Nets:
    """Small random nets; `eagerness` works against the blank, `haste` against the duration 0."""
    dims = dims_of(n_vocab=7, n_durations=len(durations), pred_hidden=5, pred_layers=2, joint_hidden=6)
    draw = rng.standard_normal
    weights = {"embed": draw((8, 5)), "pred": draw((6, 5)), "pred_b": draw(6)}
    for layer in range(2):
        weights |= {f"ih{layer}": draw((20, 5)), f"hh{layer}": draw((20, 5)), f"b{layer}": draw(20)}
    weights |= {"out": draw((8 + len(durations), 6)), "out_b": draw(8 + len(durations))}
    weights["out_b"][7] -= eagerness
    weights["out_b"][8] -= haste
    return Nets(weights, dims, ParakeetSettings(durations=durations, max_symbols=max_symbols))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def log_softmax(x: np.ndarray) -> np.ndarray:
    return x - x.max() - np.log(np.exp(x - x.max()).sum())
