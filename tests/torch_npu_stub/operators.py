"""Makes the functions of libopapi from tables: one line for an operator, `name(kind argument, ...): expression`.

The order of the kinds is the order of the arguments of aclnn<name>GetWorkspaceSize, which EXEC_NPU_CMD of op-plugin
shows. The expression is ATen's; its result goes to the outputs in their order, an `inout` it writes itself. An
argument without a name is not used. What the expression calls a `factor` of a product is checked beforehand.
"""

from __future__ import annotations

import re
from pathlib import Path
from string import Template
from typing import NamedTuple

TABLES = Path(__file__).parent / "operators"

# The type in C, and the expression that makes the argument of it.
KINDS = {
    "tensor": ("const aclTensor*", "tensor({})"),
    "tensor?": ("const aclTensor*", "optional_tensor({})"),
    "tensors": ("const aclTensorList*", "tensors({})"),
    "inout": ("aclTensor*", "tensor({})"),
    "out": ("aclTensor*", "tensor({})"),
    "out?": ("aclTensor*", "optional_tensor({})"),
    "scalar": ("const aclScalar*", "scalar({})"),
    "scalar?": ("const aclScalar*", "optional_scalar({})"),
    "ints": ("const aclIntArray*", "ints({})"),
    "dtype": ("aclDataType", "dtype_of({})"),
    "text": ("char*", "std::string({})"),
    "bool": ("bool", "{}"),
    "int": ("int64_t", "{}"),
    "int8": ("int8_t", "{}"),
    "double": ("double", "{}"),
}
LINE = re.compile(r"(?P<name>\w+)\((?P<arguments>[^)]*)\): (?P<expression>.+)")
FACTOR = re.compile(r"\bfactor\((\w+, \w+)\)")
FUNCTION = Template("""
#line $line "$file"
extern "C" int aclnn${name}GetWorkspaceSize($parameters, uint64_t* workspace_, aclOpExecutor** executor_) {
  return plan("aclnn$name", workspace_, executor_, [&]() -> Work {
$bindings
    return [=] {
      $body
    };
  });
}
extern "C" int aclnn$name(void*, uint64_t, aclOpExecutor* executor_, aclrtStream stream_) {
  return launch(executor_, stream_);
}
""")


class Argument(NamedTuple):
    kind: str
    name: str


def source_from_tables(tables: Path = TABLES) -> str:
    """Return the C++ source of all operators in the tables."""
    functions = [
        _function(path, number, text)
        for path in sorted(tables.glob("*.txt"))
        for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if text and not text.startswith("#")
    ]
    return '#include "opapi.h"\n\nusing namespace opapi;\n' + "".join(functions)


def _function(path: Path, number: int, text: str) -> str:
    match = LINE.fullmatch(text)
    if match is None:
        raise ValueError(f"{path}:{number}: expected `name(kind argument, ...): expression`, found {text!r}")
    arguments = [Argument(*[*part.split(), ""][:2]) for part in match["arguments"].split(",")]
    if unknown := {argument.kind for argument in arguments} - KINDS.keys():
        raise ValueError(f"{path}:{number}: expected kinds of {', '.join(KINDS)}, found {', '.join(unknown)}")
    used = [argument for argument in arguments if argument.name]
    bindings = [f"const auto {name} = {KINDS[kind][1].format(name + '_')};" for kind, name in used]
    bindings += [f"check_product({factor});" for factor in FACTOR.findall(match["expression"])]
    return FUNCTION.substitute(
        line=number,
        file=path,
        name=match["name"],
        parameters=", ".join(f"{KINDS[kind][0]} {name and name + '_'}" for kind, name in arguments),
        bindings="\n".join(f"    {line}" for line in bindings),
        body=_body(used, match["expression"]),
    )


def _body(arguments: list[Argument], expression: str) -> str:
    outputs = [argument.name for argument in arguments if argument.kind in {"out", "out?"}]
    return f"write_results({expression}, {', '.join(outputs)});" if outputs else f"{expression};"
