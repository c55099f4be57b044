#!/bin/sh
# Install mmcv with its compiled ops: tools/install_mmcv.sh PYTHON PACKAGE==VERSION
# The environment of PYTHON must have torch, MMEngine and the build tools. The script installs a matching
# wheel from the folder WHEELHOUSE, else one that an earlier call kept in the folder WHEELS; else it
# builds a wheel and keeps it there. MAX_JOBS compilers run in parallel, by default one per core.
set -eu
python=$1 package=$2

if [ -n "${WHEELHOUSE:-}" ] && [ ! -d "$WHEELHOUSE" ]; then
    echo "WHEELHOUSE=$WHEELHOUSE must be a folder with a wheel of mmcv, or empty" >&2
    exit 1
fi

# The file name of a wheel gives the Python version. The folder name adds what its ops depend on.
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

# A build that does not find torch silently omits the ops.
has_ops() {
    "$python" -W ignore -c 'import mmcv.ops'
}

for folder in ${WHEELHOUSE:+"$WHEELHOUSE"} "$kept"; do
    if install --no-index --only-binary :all: --find-links "$folder" "$package" 2>/dev/null; then
        has_ops || {
            echo "The ops of the wheel of $package in $folder cannot be loaded; remove it" >&2
            exit 1
        }
        echo "installed $package from $folder"
        exit
    fi
done

# Without ninja on the PATH, torch compiles one file at a time. pip's own cache is disabled, because it
# may hold a wheel that was built against another torch.
new=$(mktemp -d "$kept/new-XXXXXX")
trap 'rm -rf "$new"' EXIT
trap 'exit 1' HUP INT TERM
env PATH="$(cd "$(dirname "$python")" && pwd):$PATH" MAX_JOBS="${MAX_JOBS:-$(nproc)}" MMCV_WITH_OPS=1 CFLAGS=-g0 \
    "$python" -m pip wheel --quiet --no-deps --no-build-isolation --no-cache-dir \
    --no-binary "${package%%==*}" --wheel-dir "$new" "$package"
install "$new"/*.whl
has_ops
mv "$new"/*.whl "$kept"
echo "built $package; its wheel is kept in $kept"
