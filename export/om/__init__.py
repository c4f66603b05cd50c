"""The profile om: ONNX graphs for ATC, a script that converts them, and a check of what ATC will refuse."""

from export.om.check import Finding, check_onnx, onnx_files
from export.om.convert import om_files
from export.om.precision import soc_of

__all__ = ["Finding", "check_onnx", "om_files", "onnx_files", "soc_of"]
