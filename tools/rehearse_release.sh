#!/usr/bin/env bash
# A release, rehearsed: what tools/wheels.sh has made is checked, uploaded to an index on this machine, and installed from
# there as a user would, in fresh environments, without a compiler. Each runs the README's program. Usage:
# tools/rehearse_release.sh [FOLDER], which tools/wheels.sh has filled; without one, that is done first
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
server=""
finish() {
    if [ -n "$server" ]; then kill "$server" && wait "$server" || true; fi
    rm -rf "$work"
}
trap finish EXIT
made=$(realpath -m "${1:-$work/made}")
if [ $# = 0 ]; then tools/wheels.sh "$made"; fi
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_QUIET=1 LC_ALL=C.UTF-8

say() { printf '\n--- %s\n' "$*"; }

version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' rmsfast/__init__.py)
say "rmsfast $version: what would be published"
mkdir "$work/dist" "$work/index"
cp "$made"/dist/*.tar.gz "$made"/3.*/dist/*.whl "$work/dist"
ls "$work/dist"
tools=$made/tools/bin # where tools/wheels.sh has installed the extra `wheels`
"$tools/twine" check --strict "$work"/dist/*
check=$(sed -n '/name: The tag is the version/{n;s/^ *run: //p}' .github/workflows/wheels.yml)
(cd "$work" && GITHUB_REF_NAME=v$version bash -euxc "$check")

say "an index on this machine: upload"
cp "$made"/3.*/wheels/numpy-*.whl "$work/index" # all that rmsfast needs
port=$("$tools/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$tools/pypi-server" run --interface 127.0.0.1 --port "$port" --authenticate . --passwords . --disable-fallback \
    "$work/index" >"$work/server.log" 2>&1 &
server=$!
index=http://127.0.0.1:$port
for _ in {1..100}; do
    if "$tools/python" -c "import urllib.request; urllib.request.urlopen('$index/simple/')" 2>/dev/null; then break; fi
    kill -0 "$server" || { cat "$work/server.log"; exit 1; }
    sleep 0.1
done
"$tools/twine" upload --repository-url "$index" --username nobody --password nothing --disable-progress-bar \
    --non-interactive "$work"/dist/* >"$work/upload.log" 2>&1 || { cat "$work/upload.log" "$work/server.log"; exit 1; }

sed -n '/^```python$/,/^```$/{/^```/!p;/^```$/q}' README.md >"$work/program.py"
grep -q rmsfast "$work/program.py"
for python in "$made"/3.*/bin/python; do
    say "$("$python" -V): install, run the README's program"
    rm -rf "$work/venv"
    "$python" -m venv "$work/venv"
    (
        cd "$work"
        # Nothing else of this machine: no compiler, no settings, no cache, no other index.
        clean=("$(command -v env)" -i HOME="$work/home" PIP_CONFIG_FILE=/dev/null PATH="$work/venv/bin")
        for compiler in cc gcc clang; do
            if "${clean[@]}" "$BASH" -c "command -v $compiler"; then echo "expected no compiler"; exit 1; fi
        done
        start=${EPOCHREALTIME/./}
        "${clean[@]}" pip install --quiet --disable-pip-version-check --index-url "$index/simple/" rmsfast
        "${clean[@]}" python -P program.py
        echo "from an empty environment to the end of the program: $(((${EPOCHREALTIME/./} - start) / 1000)) ms"
        "${clean[@]}" pip check --disable-pip-version-check
        found=$("${clean[@]}" python -P -c 'import rmsfast; print(rmsfast.__version__)')
        if [ "$found" != "$version" ]; then echo "installed: $found, expected $version"; exit 1; fi
    )
done
say "the release of $version was rehearsed"
