#!/bin/sh
# Fills /opt/venv with what a lock file names, each file checked against its hash: install.sh LOCK [option of uv ...]
# The index is the package tools' own; --build-arg PIP_INDEX_URL=... names another, and a secret `netrc` logs in there.
set -eu
lock=$1
shift
export NETRC=/run/secrets/netrc UV_NO_CACHE=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never
if [ -n "${PIP_INDEX_URL:-}" ]; then export UV_DEFAULT_INDEX="$PIP_INDEX_URL"; else unset PIP_INDEX_URL; fi
python3 -m venv /build/uv
/build/uv/bin/pip install --quiet --no-cache-dir --require-hashes -r /build/build.txt
[ -x /opt/venv/bin/python ] || /build/uv/bin/uv venv --quiet --python "$(command -v python3)" /opt/venv
/build/uv/bin/uv pip install --quiet --compile-bytecode --require-hashes --build-constraints /build/build.txt \
    --python /opt/venv/bin/python -r "$lock" "$@"
# Found from every working folder and by every rank, whatever variables ssh brings along.
echo /opt/recsys > "$(/opt/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/recsys.pth"
