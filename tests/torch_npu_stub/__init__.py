"""A CANN of stubs for the real torch_npu wheels; see README.md."""
