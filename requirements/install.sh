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
ready() { [ "$(cat "$marks/done" 2>/dev/null)" = "$stamp" ] && runs; }
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
step() { # title with the expected duration, then the arguments of pip install
  local title=$1
  shift
  number=$((number + 1))
  [ ! -f "$marks/step-$number" ] || return 0
  echo "install: [$number/7] $title"
  : > "$marks/begun"
  # pip prefers a wheel in WHEELS to a source archive of the same version.
  if "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint "$pins" \
    ${wheels:+--find-links "$wheels"} "$@"; then
    rm "$marks/begun"
    : > "$marks/step-$number"
  else
    [ $? -gt 128 ] || rm "$marks/begun" # unless it is killed, pip leaves no partially installed package
    fail "step $number failed ($title); fix the error that pip reports above and run the same command again"
  fi
}

started=$SECONDS
echo "install: installing stack $stack into $venv"
step "build tools (seconds)" setuptools wheel ninja
step "torch and torchvision (1 minute; 5-10 for the CUDA build, about 3 GB to download)" --requirement requirements/torch.txt numpy
step "third-party packages (1 minute)" --requirement requirements/runtime.txt --requirement requirements/cluster.txt \
  --requirement requirements/demo.txt --requirement requirements/tests.txt
step "mmcv with its C++ ops, compiled here (10-20 minutes on 2 cores the first time, more with CUDA; seconds once built)" \
  --no-build-isolation --no-deps "$ops"
step "mm packages: ${mm// /, } (seconds)" --no-deps $mm
step "ccop_mm itself, editable (seconds)" --no-build-isolation --no-deps --editable .
# opencv-python and opencv-contrib-python install the same files; the one installed last is used.
step "opencv-contrib-python, last (seconds)" --force-reinstall --no-deps opencv-contrib-python

"$venv/bin/python" -m ccop_mm.doctor || fail "the environment is installed but not usable; fixes are listed above"
echo "$stamp" > "$marks/done.new"
mv "$marks/done.new" "$marks/done"
echo "install: ready after $(((SECONDS - started) / 60)) min $(((SECONDS - started) % 60)) s"
