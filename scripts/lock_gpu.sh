#!/usr/bin/env bash
# Writes requirements-gpu.lock: everything that `mbeir-cot[gpu,dev]` needs, for Python 3.11 and 3.12. Needs uv, but no GPU.
#
#   scripts/lock_gpu.sh                keeps locked versions as far as pyproject.toml allows
#   scripts/lock_gpu.sh --upgrade      takes the newest versions (one package: --upgrade-package vllm)
set -euo pipefail
cd "$(dirname "$0")/.."
lock=requirements-gpu.lock

uv=${UV:-uv}
command -v "$uv" >/dev/null || {
  printf 'lock-gpu: error: no uv on the PATH\n  what to do: pip install uv, or name it: UV=/path/to/uv make lock-gpu\n' >&2
  exit 1
}

# One resolution for both Python versions, so that they differ only where they must (pyproject.toml's tool.uv names the systems).
# The registry's name is left out, because it depends on the machine.
new=$(mktemp)
trap 'rm -f "$new"' EXIT
[ ! -f "$lock" ] || cp "$lock" "$new"
"$uv" pip compile pyproject.toml --extra gpu --extra dev --universal --python-version 3.11 \
  --no-emit-index-url --no-annotate --no-header --quiet --output-file "$new" "$@" >/dev/null

# Only the markers that distinguish 3.11 from 3.12 matter here; the platform is always CPython on Linux x86_64.
{
  echo "# The GPU environment, written by 'make lock-gpu' and installed unchanged by scripts/setup.sh gpu."
  sed -E "s/ ; python_full_version (< '3\.12'|== '3\.12\.\*'|>= '3\.12').*/ ; python_full_version \1/; t; s/ ;.*//" "$new"
} > "$lock"
printf 'lock-gpu: %s packages in %s\n' "$(grep -c == "$lock")" "$lock"
