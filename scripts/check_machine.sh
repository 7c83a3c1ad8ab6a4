#!/usr/bin/env bash
# Checks the machine before anything is downloaded: says what is missing and what to do. scripts/setup.sh runs it.
#
#   scripts/check_machine.sh cpu|gpu VENV          CHECK_MACHINE=no skips it
set -euo pipefail

extra=${1:?usage: scripts/check_machine.sh cpu|gpu VENV}
venv=${2:?usage: scripts/check_machine.sh cpu|gpu VENV}

GLIBC=2.28            # torch and vLLM: manylinux_2_28 wheels
GLIBC_LLGUIDANCE=2.31 # llguidance 1.7, which vLLM needs, has manylinux_2_31 wheels only
DRIVER=580            # the first NVIDIA driver for CUDA 13, which torch 2.14 and vLLM 0.33 are built for
case $extra in gpu) disk_gib=15 ;; *) disk_gib=6 ;; esac # the installed environment takes 11 and 5

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: error: %s\n  what to do: %s\n' "$1" "$2" >&2; exit 1; }
older() { [ "$1" != "$2" ] && [ "$(printf '%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]; } # version $1 is before $2

[ "${CHECK_MACHINE:-yes}" != no ] || exit 0

case $(uname -sm) in
  'Linux x86_64') ;;
  *) die "this is $(uname -sm); the locked wheels are for Linux on x86_64" "use such a machine, or build an image from the Dockerfile" ;;
esac

glibc=$(ldd --version 2>&1 | head -n 1 | grep -oE '[0-9]+\.[0-9]+$' || true)
if [ -z "$glibc" ]; then
  die "no glibc was found (musl, as in Alpine?); torch and vLLM have wheels for glibc only" \
      "use the image of the Dockerfile, or a distribution with glibc $GLIBC_LLGUIDANCE or newer"
elif older "$glibc" "$GLIBC"; then
  die "glibc $glibc is too old: torch and vLLM need $GLIBC or newer" \
      "use the image of the Dockerfile (docs/at-scale.md shows it under Slurm), or a newer distribution"
elif older "$glibc" "$GLIBC_LLGUIDANCE" && ! command -v cargo >/dev/null; then
  die "glibc $glibc is too old for llguidance's wheel ($GLIBC_LLGUIDANCE), and there is no Rust to build it from source" \
      "install Rust (https://rustup.rs) and a C compiler and run this again, or use the image of the Dockerfile"
elif older "$glibc" "$GLIBC_LLGUIDANCE"; then
  say "glibc $glibc: llguidance is built from source with $(command -v cargo); its wheel needs $GLIBC_LLGUIDANCE"
fi

# A folder that does not exist yet will be on the disk of its nearest existing parent.
place=$venv
until [ -d "$place" ]; do place=$(dirname "$place"); done
free_gib=$(($(df -Pk "$place" | awk 'NR == 2 {print $4}') / 1024 / 1024))
# An existing environment needs no further space: its packages are kept or replaced.
[ -x "$venv/bin/python" ] || [ "$free_gib" -ge "$disk_gib" ] ||
  die "$free_gib GiB are free for $venv, $disk_gib are needed" "free some space, or name another place: VENV=/scratch/venv scripts/setup.sh $extra"

[ "$extra" = gpu ] || exit 0
if ! command -v nvidia-smi >/dev/null; then
  say "no nvidia-smi here, so the driver is not checked: the machines with the GPUs need $DRIVER or newer"
elif ! driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>&1); then
  say "nvidia-smi finds no GPU here ($(head -n 1 <<<"$driver")), so the driver is not checked: the machines with the GPUs need $DRIVER or newer"
elif driver=$(head -n 1 <<<"$driver") && older "$driver" "$DRIVER"; then
  die "NVIDIA driver $driver is too old: the CUDA 13 wheels need $DRIVER or newer" \
      "update the driver, or (data-centre cards only) install NVIDIA's package cuda-compat-13-0, put its folder first in LD_LIBRARY_PATH and run CHECK_MACHINE=no make setup EXTRA=gpu"
fi
