"""Settings; each is noted in the record with the number of operators that had run before."""

from __future__ import annotations

from typing import Any

from torch_npu import simulator

_state = {"jit_compile": simulator.limits()["jit_compile"]}


def _note(name: str, value: object) -> None:
    simulator.core.note_event(name, str(value))


def set_compile_mode(jit_compile: bool = False) -> None:  # noqa: FBT001, FBT002 - the real signature
    _state["jit_compile"] = jit_compile
    _note("set_compile_mode.jit_compile", jit_compile)


def is_jit_compile_false() -> bool:
    return not _state["jit_compile"]


def set_option(option: dict[str, Any]) -> None:
    if not isinstance(option, dict):
        raise TypeError("npu option must be a dict.")
    for name, value in option.items():
        _note(f"set_option.{name}", value)
        if name == "ACL_PRECISION_MODE":
            simulator.flags.precision_mode = str(value)
            simulator.flags.apply()


def _hf32(value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"allow_hf32 must be a bool, but got {type(value).__name__}")
    return value


class _Convolution:
    @property
    def allow_hf32(self) -> bool:
        return simulator.flags.conv_hf32

    @allow_hf32.setter
    def allow_hf32(self, value: bool) -> None:
        simulator.flags.conv_hf32 = _hf32(value)
        simulator.flags.apply()
        _note("conv.allow_hf32", value)


class _Matmul:
    @property
    def allow_hf32(self) -> bool:
        return simulator.flags.matmul_hf32

    @allow_hf32.setter
    def allow_hf32(self, value: bool) -> None:
        simulator.flags.matmul_hf32 = _hf32(value)
        simulator.flags.apply()
        _note("matmul.allow_hf32", value)


class _Config:
    """Like the real one, it can be written and not read."""

    def __setattr__(self, name: str, value: object) -> None:
        if name == "allow_internal_format":
            _note("config.allow_internal_format", value)


conv = _Convolution()
matmul = _Matmul()
config = _Config()
