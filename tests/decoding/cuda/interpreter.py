"""Imported first by scripts that run the fused kernels under Triton's interpreter, on the CPU."""

import os

os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported

from triton.runtime import interpreter

from autogaze.decoding.cuda import backend

patch_tensor = interpreter._patch_lang_tensor


def patch_index(tensor, scope):
    """Read a loop bound from the interpreter's one-element arrays, which numpy no longer turns into integers."""
    patch_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


interpreter._patch_lang_tensor = patch_index
backend.why_not = lambda model, asked: ""
