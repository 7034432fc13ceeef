#!/bin/sh
# Ends a build stage: leaves behind what an image does not need.
set -eu
# A key file that was forgotten in a source folder, say.
find /opt/recsys -type f ! -name '*.py' ! -name '*.yaml' -delete
# The packages' own tests.
find /opt/venv -type d \( -name tests -o -path '*/tornado/test' \) -prune -exec rm -r {} +
python3 -m compileall -q --invalidation-mode unchecked-hash /opt/recsys
chmod -R a+rX,go-w /opt/recsys
