"""The number formats that this machine's CPU multiplies in hardware."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Final

_CPUINFO: Final = Path("/proc/cpuinfo")
_BFLOAT16_FLAGS: Final = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""x86: AVX-512 BF16, AMX; Arm: bf16."""


@cache
def cpu_multiplies_bfloat16(cpuinfo: Path = _CPUINFO) -> bool:
    """False if bfloat16 products are emulated (on a Zen 3, 57 times slower than float32), or if the CPU does not list its
    features."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    flags = next((line.partition(":")[2] for line in lines if line.startswith(("flags", "Features"))), "")
    return not _BFLOAT16_FLAGS.isdisjoint(flags.split())
