"""What the stand-ins refuse, and what runtime and export say of the same chips."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from export.om.precision import SOCS, WITHOUT_BFLOAT16, WITHOUT_FLOAT32_PRODUCTS
from runtime.ascend import EAGER_COMPILER, SOC_FAMILIES
from runtime.engines.devices.npu import _CAPTURE_ON_310P

TESTS = Path(__file__).resolve().parents[1]
LIMITS = json.loads((TESTS / "ascend_limits.json").read_text(encoding="utf-8"))
FACTS = {"products", "bfloat16", "attention", "jit_compile", "capture_from"}


@pytest.mark.parametrize("family", LIMITS["socs"])
def test_the_runtime_says_the_same(family: str) -> None:
    row, ours = LIMITS["socs"][family], SOC_FAMILIES[f"Ascend{family}"]
    assert ours.fp32 == ("float32" in row["products"])
    assert ours.bf16 == (row["bfloat16"] and "bfloat16" in row["products"])
    assert family.startswith(WITHOUT_BFLOAT16) != ours.bf16
    assert family.startswith(WITHOUT_FLOAT32_PRODUCTS) != ours.fp32
    assert FACTS | ({"missing"} if row["missing"] else set()) == set(row["sources"])
    assert all(row["sources"].values())


def test_every_family_and_soc_is_in_the_table() -> None:
    assert {f"Ascend{family}" for family in LIMITS["socs"]} == set(SOC_FAMILIES)
    assert all(soc.startswith(tuple(LIMITS["socs"])) for soc in SOCS)
    assert LIMITS["socs"]["310P"]["capture_from"] == ".".join(map(str, _CAPTURE_ON_310P))
    assert tuple(LIMITS["eager_compiler"]["wheels"]) == EAGER_COMPILER


def test_the_stub_has_no_operator_that_no_cann_has() -> None:
    tables = (TESTS / "torch_npu_stub" / "operators").glob("*.txt")
    written = {f"aclnn{name}" for table in tables for name in re.findall(r"^(\w+)\(", table.read_text(), re.MULTILINE)}
    assert "aclnnMm" in written
    assert not written & set(LIMITS["not_released"]["operators"])
