#!/usr/bin/env bash
# Wheels as users get them, for every CPython >= 3.11 on this machine: built from the sdist, repaired, checked, measured,
# and tested where there is neither a source folder nor a compiler. Usage: tools/wheels.sh [FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
if [ $# = 0 ]; then
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
else
    work=$(realpath -m "$1")
fi
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_QUIET=1 LC_ALL=C.UTF-8
export LDFLAGS=-Wl,-s # no debugging symbols: they are three quarters of the wheel
most_bytes=1500000 most_bytes_installed=3500000
emulator=""
if [ "$(uname -m)" = x86_64 ]; then
    emulator=$(command -v qemu-x86_64) || { echo "expected qemu-x86_64, of Debian's qemu-user: tools/setup_ci.sh"; exit 1; }
fi
first=yes # of the CPythons; the others have the same C

say() { printf '\n--- %s\n' "$*"; }

# One interpreter of each version, the newest releases of pyenv's first.
interpreters() {
    local root python version seen=" "
    root=$(pyenv root 2>/dev/null || echo /nonexistent)
    for python in $(printf '%s\n' "$root"/versions/*/bin/python | sort -rV) $(compgen -c python3. | sort -uV); do
        version=$("$python" -c 'import sys
if sys.implementation.name == "cpython" and sys.version_info >= (3, 11) and "t" not in sys.abiflags:
    print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
        if [ -n "$version" ] && [[ $seen != *" $version "* ]]; then
            seen+="$version "
            command -v "$python"
        fi
    done
}

say "tools and source distribution"
python3 -m venv "$work/tools"
tools=$work/tools/bin
# shellcheck disable=SC2046
"$tools/pip" install $("$tools/python" -c 'import tomllib
print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["wheels"])')
"$tools/python" -m build --sdist --outdir "$work/dist" >"$work/sdist.log" || { cat "$work/sdist.log"; exit 1; }
sdist=$(ls "$work"/dist/*.tar.gz)
"$tools/twine" check --strict "$sdist"
mkdir -p "$work/tests"
tar xf "$sdist" -C "$work/tests" --strip-components 1
rm -r "$work"/tests/{rmsfast,rmsfast.egg-info,setup.py}

for python in $(interpreters); do
    version=$("$python" -c 'import platform; print(platform.python_version())')
    say "CPython $version: build, repair, check"
    "$python" -m venv "$work/$version"
    bin=$work/$version/bin
    "$bin/pip" wheel --no-deps --wheel-dir "$work/$version/built" "$sdist"
    "$tools/auditwheel" show "$work/$version"/built/*.whl
    PATH="$tools:$PATH" tools/repair.sh "$work/$version"/built/*.whl "$work/$version/dist"
    wheel=$(ls "$work/$version"/dist/*.whl)
    "$tools/twine" check --strict "$wheel"
    "$tools/check-wheel-contents" --config pyproject.toml "$wheel"
    bytes=$(stat -c %s "$wheel")
    echo "$(basename "$wheel"): $bytes bytes"
    test "$bytes" -le "$most_bytes"

    say "CPython $version: install and test, without a compiler"
    (
        cd "$work/tests"
        "$bin/pip" download --only-binary :all: --dest "$work/$version/wheels" "$wheel[test]"
        export PATH=$bin CC=false CXX=false
        start=${EPOCHREALTIME/./}
        pip install --no-index --find-links "$work/$version/wheels" rmsfast
        python -P -c 'import numpy, rmsfast; rmsfast.RMSProp(numpy.zeros(3)).step(numpy.ones(3)); print(rmsfast.config())'
        echo "from wheel to first step: $(((${EPOCHREALTIME/./} - start) / 1000)) ms"
        bytes=$(python -P -c 'from importlib.metadata import files
print(sum(file.locate().stat().st_size for file in files("rmsfast")))')
        echo "installed: $bytes bytes"
        test "$bytes" -le "$most_bytes_installed"
        pip install --no-index --find-links "$work/$version/wheels" "rmsfast[test]"
        pytest -k "not every_instruction_set" # which part `tests` of the gate runs
        if [ -n "$emulator" ] && [ -n "$first" ]; then # on a processor without AVX, which OpenBLAS must be told of
            OPENBLAS_CORETYPE=Nehalem "$emulator" -cpu Nehalem "$bin/python" -P -m pytest tests/test_kernel.py \
                -k "not every_instruction_set"
        fi
    )
    first=""
done
say "all wheels passed"
