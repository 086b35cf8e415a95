#!/usr/bin/env bash
# Creates the environment that the Makefile uses:  requirements/install.sh VENV STACK PYTHON [WHEELS]
#
# The order of the steps matters: torch before the C++ ops, which are compiled against it; the mm packages without their
# dependencies, which would install opencv-python over opencv-contrib-python; OpenCV last.
# The script can be run again at any time: it skips finished steps and recreates an environment whose installation was
# killed.
set -euo pipefail

fail() { echo "install: $*" >&2; exit 1; }

[ $# -ge 3 ] && [ -n "$1" ] || fail "usage: requirements/install.sh VENV STACK PYTHON [WHEELS]"
venv=$1 stack=$2 python=$3 wheels=${4:-}
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case "$stack" in
  onedl) ops=onedl-mmcv mm="onedl-mmengine onedl-mmdetection imaug mmcls mmselfsup" ;;
  openmmlab) ops=mmcv mm="mmengine mmdet mmcls mmselfsup" ;;
  *) fail "STACK=$stack is unknown; use onedl or openmmlab" ;;
esac
pins=requirements/$stack.txt
[ -z "$wheels" ] || [ -d "$wheels" ] || fail "WHEELS=$wheels is not a folder; use a folder of wheels or leave it empty"

# Digest of all files that determine what is installed.
stamp=$(cat requirements/torch.txt requirements/runtime.txt requirements/cluster.txt requirements/demo.txt requirements/tests.txt "$pins" \
  requirements/install.sh setup.py | cksum | tr ' ' '-')-$stack
marks=$venv/.ccop_mm
runs() { "$venv/bin/python" -c '' 2>/dev/null; }
# GPU ops are linked to the CUDA runtime. They are not imported, because mmcv's dependencies are installed later.
gpu_ops() { grep -qs libcudart "$venv"/lib/python*/site-packages/mmcv/_ext*.so; }
# An environment that was created without a GPU is completed where there is one, or with FORCE_CUDA=1.
sees_gpu() { nvidia-smi -L > /dev/null 2>&1; }
lacks_gpu_ops() { { [ ! -f "$marks/gpu" ] && sees_gpu; } || { [ "${FORCE_CUDA:-0}" = 1 ] && ! gpu_ops; }; }
ready() { [ "$(cat "$marks/done" 2>/dev/null)" = "$stamp" ] && runs && ! lacks_gpu_ops; }
! ready || exit 0

"$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null ||
  fail "PYTHON=$python does not run Python 3.10, 3.11 or 3.12; set PYTHON to one of these"
installed=$(cat "$marks/stack" 2>/dev/null || echo "$stack")
[ "$installed" = "$stack" ] || fail "VENV=$venv contains the stack $installed; use another VENV for STACK=$stack"

# One installation at a time. pip inherits the lock, so a pip process that outlives a killed script is waited for.
if command -v flock > /dev/null; then
  exec 9< requirements/install.sh
  flock -n 9 || { echo "install: another installation is running; waiting for it to finish"; flock 9 || true; }
  ! ready || exit 0
fi

# The file "begun" is only left behind by a step that was killed. A package may then be partially installed, which pip does
# not notice. Recreating the environment takes minutes at most, because pip caches downloads and compiled wheels.
if [ -f "$marks/begun" ] || { [ -d "$marks" ] && ! runs; }; then
  echo "install: $venv is incomplete; recreating it"
  rm -rf "$venv"
fi
if [ ! -e "$venv" ]; then
  mkdir -p "$marks"
  : > "$marks/begun"
  "$python" -m venv "$venv"
  rm "$marks/begun"
fi
[ -x "$venv/bin/python" ] || fail "VENV=$venv exists and is not a virtual environment; use another folder"
mkdir -p "$marks"
echo "$stack" > "$marks/stack"
# Run all steps again if the requirements have changed.
if [ "$(cat "$marks/for" 2>/dev/null)" != "$stamp" ]; then
  rm -f "$marks"/step-*
  echo "$stamp" > "$marks/for"
fi

number=0
pip_install() { # title, then the arguments of pip install
  local title=$1
  shift
  : > "$marks/begun"
  # pip prefers a wheel in WHEELS to a source archive of the same version.
  if "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint "$pins" \
    ${wheels:+--find-links "$wheels"} "$@"; then
    rm "$marks/begun"
  else
    [ $? -gt 128 ] || rm "$marks/begun" # unless it is killed, pip leaves no partially installed package
    fail "step $number failed ($title); fix the error that pip reports above and run the same command again"
  fi
}

step() { # title with the expected duration, then the arguments of pip install
  number=$((number + 1))
  [ ! -f "$marks/step-$number" ] || return 0
  echo "install: [$number/7] $1"
  pip_install "$@"
  : > "$marks/step-$number"
}

# mmcv compiles its ops for GPUs if torch sees one or FORCE_CUDA=1, and for the CPU only otherwise.
describe_torch='from ccop_mm.doctor import describe_torch; print(*describe_torch())'
arches= # architectures for which the ops are compiled; empty for the CPU only
cache=  # pip's cache of GPU ops
choose_architectures() {
  read -r torch cuda gpus unsupported <<< "$(CCOP_MM_LAZY=1 "$venv/bin/python" -c "$describe_torch" 2>/dev/null || echo none)"
  [ "$torch" != none ] || fail "torch cannot be imported; run \`$venv/bin/python -c 'import torch'\` for the reason"
  if [ "$gpus" = none ] && [ "${FORCE_CUDA:-0}" != 1 ]; then
    [ "$cuda" = none ] || echo "install: torch sees no GPU, so mmcv's ops are compiled for the CPU only;" \
      "for a GPU node, set FORCE_CUDA=1 and TORCH_CUDA_ARCH_LIST (docs/install.md)"
    return 0
  fi
  [ "$cuda" != none ] ||
    fail "FORCE_CUDA=1 is set, but torch $torch is built without CUDA; install a CUDA build of torch or unset FORCE_CUDA"
  arches=${TORCH_CUDA_ARCH_LIST:-native}
  [ "$arches" != native ] || arches=$gpus
  # pip's cache does not distinguish ops for the CPU from ops for GPUs, nor architectures: GPU ops get their own cache.
  if cache=$("$venv/bin/python" -m pip cache dir 2>/dev/null); then
    cache=$cache/ccop_mm-ops-$(echo "$torch-$arches" | tr -c 'A-Za-z0-9.\n-' _)
  fi
}

# Checks before the compilation of GPU ops, which takes long, what would end it with an error of the compiler or a traceback.
check_compilation() {
  [ "$arches" != none ] || fail "FORCE_CUDA=1 without a visible GPU requires TORCH_CUDA_ARCH_LIST, the capabilities of the" \
    "GPUs to use; set for example TORCH_CUDA_ARCH_LIST='8.0;9.0' for A100 and H100"
  [ "$unsupported" = none ] || [ "$arches" != "$gpus" ] || fail "torch $torch (CUDA $cuda) has no kernels for GPUs of" \
    "capability $unsupported; install a build of torch for an older CUDA, or hide these GPUs by CUDA_VISIBLE_DEVICES"
  check_toolkit
}

# Checks the CUDA toolkit. It is searched where torch searches it.
check_toolkit() {
  local major=${cuda%%.*} nvcc home release folder headers=
  nvcc=$(command -v nvcc || true)
  home=${CUDA_HOME:-${CUDA_PATH:-${nvcc%/bin/nvcc}}}
  home=${home:-/usr/local/cuda}
  [ -x "$home/bin/nvcc" ] || fail "compiling GPU ops requires the CUDA $major toolkit, but $home/bin/nvcc does not exist;" \
    "install the toolkit, or set CUDA_HOME to its folder"
  release=$("$home/bin/nvcc" --version 2>/dev/null | sed -n 's/.*release \([0-9.]*\).*/\1/p' || true)
  [ "${release%%.*}" = "$major" ] || fail "$home/bin/nvcc is of CUDA ${release:-unknown}, but torch is built with CUDA $cuda;" \
    "install the CUDA $major toolkit and set CUDA_HOME to its folder, or install a build of torch for CUDA ${release%%.*}"
  if [ ! -f "$home/include/cusparse.h" ] && ! compgen -G "$home/targets/*/include/cusparse.h" > /dev/null; then
    for folder in "$(cd "$venv" && pwd)"/lib/python*/site-packages/nvidia/cu*/include; do
      headers=$headers${headers:+:}$folder
    done
    compgen -G "$venv/lib/python*/site-packages/nvidia/cu*/include/cusparse.h" > /dev/null ||
      fail "the CUDA toolkit in $home has no library headers (cusparse.h); install the complete toolkit, or set CUDA_HOME to one"
    echo "install: the CUDA toolkit in $home has no library headers (cusparse.h); those that torch installs are used"
    # Searched after the toolkit's own headers, unlike CPATH, so that only missing headers are taken from there.
    export CPLUS_INCLUDE_PATH=${CPLUS_INCLUDE_PATH:+$CPLUS_INCLUDE_PATH:}$headers
  fi
}

started=$SECONDS
echo "install: installing stack $stack into $venv"
step "build tools (seconds)" setuptools wheel ninja
step "torch and torchvision (1 minute; 5-10 for the CUDA build, about 3 GB to download)" --requirement requirements/torch.txt numpy
step "third-party packages (1 minute)" --requirement requirements/runtime.txt --requirement requirements/cluster.txt \
  --requirement requirements/demo.txt --requirement requirements/tests.txt
choose_architectures
[ -z "$arches" ] || gpu_ops || { [ -n "$wheels" ] && compgen -G "$wheels/${ops//-/_}-*.whl" > /dev/null; } || check_compilation
step "mmcv with its C++ ops, compiled here (10-20 minutes on 2 cores the first time, more with CUDA; seconds once built)" \
  --no-build-isolation --no-deps ${cache:+--cache-dir "$cache"} "$ops"
if [ -n "$arches" ] && ! gpu_ops; then # taken from WHEELS, or compiled where no GPU was visible
  echo "install: the installed ops of mmcv are for the CPU only; compiling them for GPUs ($arches)"
  check_compilation
  pip_install "mmcv with its C++ ops for GPUs" --force-reinstall --no-binary "$ops" --no-build-isolation --no-deps \
    ${cache:+--cache-dir "$cache"} "$ops"
  gpu_ops || fail "mmcv's ops were compiled without CUDA; unset MMCV_WITH_OPS and MMCV_WITH_DIOPI"
fi
step "mm packages: ${mm// /, } (seconds)" --no-deps $mm
step "ccop_mm itself, editable (seconds)" --no-build-isolation --no-deps --editable .
# opencv-python and opencv-contrib-python install the same files; the one installed last is used.
step "opencv-contrib-python, last (seconds)" --force-reinstall --no-deps opencv-contrib-python

"$venv/bin/python" -m ccop_mm.doctor || fail "the environment is installed but not usable; fixes are listed above"
! sees_gpu || : > "$marks/gpu"
echo "$stamp" > "$marks/done.new"
mv "$marks/done.new" "$marks/done"
echo "install: ready after $(((SECONDS - started) / 60)) min $(((SECONDS - started) % 60)) s"
