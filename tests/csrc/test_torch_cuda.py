# SPDX-License-Identifier: Apache-2.0
"""A function of torch's CUDA library is found where Python has loaded that, and missed before."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = 'extern "C" int answer() { return 42; }\n'
ASKS = """
#include "torch_cuda.h"

extern "C" int ask() {
  const auto answer = reinterpret_cast<int (*)()>(torch_cuda_function("answer"));
  return answer == nullptr ? 0 : answer();
}
"""
CALL = """
import ctypes, sys
asks = ctypes.CDLL(sys.argv[1])
before = asks.ask()
library = ctypes.CDLL(sys.argv[2])  # shown to no other, as an import loads one
print(before, asks.ask())
"""


@pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler")
def test_a_function_is_asked_of_the_library_itself(tmp_path):
    def build(name, text, *flags):
        source = tmp_path / f"{name}.cpp"
        source.write_text(text)
        words = [*os.environ.get("CXX", "c++").split(), "-shared", "-fPIC", *flags, str(source)]
        subprocess.run([*words, "-o", str(tmp_path / name), "-ldl"], check=True)
        return str(tmp_path / name)

    asks = build("asks.so", ASKS, f"-I{ROOT / 'csrc'}")
    library = build("libtorch_cuda.so", LIBRARY, "-Wl,-soname,libtorch_cuda.so")
    words = [sys.executable, "-c", CALL, asks, library]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "42"]
