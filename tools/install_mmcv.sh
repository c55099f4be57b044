#!/bin/sh
# Install mmcv with its compiled ops: tools/install_mmcv.sh PYTHON PACKAGE==VERSION
# PYTHON's environment has torch, MMEngine and the build tools. The wheel is the one in the folder
# WHEELHOUSE that fits, else the one that an earlier call has kept in the folder WHEELS, else it is
# built and kept there. MAX_JOBS compilers run at a time, by default one a core.
set -eu
python=$1 package=$2

if [ -n "${WHEELHOUSE:-}" ] && [ ! -d "$WHEELHOUSE" ]; then
    echo "WHEELHOUSE=$WHEELHOUSE must be a folder with a wheel of mmcv, or empty" >&2
    exit 1
fi

# The name of a wheel says for which Python it is. What its ops need besides names its folder here.
kept=$WHEELS/$("$python" -W ignore - <<'END'
import os
import platform

import torch

key = [f'torch-{torch.__version__}', *platform.libc_ver()]
if torch.cuda.is_available() or os.environ.get('FORCE_CUDA') == '1':
    cards = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    archs = os.environ.get('TORCH_CUDA_ARCH_LIST', '').replace(';', ' ').split()
    key += ['cuda', *(archs or [f'{major}.{minor}' for major, minor in sorted(cards)])]
print('-'.join(key))
END
)
mkdir -p "$kept"

install() {
    "$python" -m pip install --quiet --no-deps --force-reinstall "$@"
}

# A build that does not find torch leaves the ops out silently.
has_ops() {
    "$python" -W ignore -c 'import mmcv.ops'
}

for folder in ${WHEELHOUSE:+"$WHEELHOUSE"} "$kept"; do
    if install --no-index --only-binary :all: --find-links "$folder" "$package" 2>/dev/null; then
        has_ops || {
            echo "The ops of the wheel of $package in $folder do not load: remove it" >&2
            exit 1
        }
        echo "took $package from $folder"
        exit
    fi
done

# torch compiles one file after another where there is no ninja on the PATH. pip's own cache is left
# out, because it would take a wheel built against another torch.
new=$(mktemp -d "$kept/new-XXXXXX")
trap 'rm -rf "$new"' EXIT
trap 'exit 1' HUP INT TERM
env PATH="$(cd "$(dirname "$python")" && pwd):$PATH" MAX_JOBS="${MAX_JOBS:-$(nproc)}" MMCV_WITH_OPS=1 CFLAGS=-g0 \
    "$python" -m pip wheel --quiet --no-deps --no-build-isolation --no-cache-dir \
    --no-binary "${package%%==*}" --wheel-dir "$new" "$package"
install "$new"/*.whl
has_ops
mv "$new"/*.whl "$kept"
echo "built $package and kept its wheel in $kept"
