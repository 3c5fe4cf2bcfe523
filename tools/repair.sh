#!/usr/bin/env bash
# A wheel for Linux with GNU's OpenMP runtime in it: auditwheel's, but for the runtime's name, which stays libgomp.so.1. So
# the loader knows it from any other of that name, PyTorch's or the system's, and a process has one runtime, whose idle
# threads are everybody's. docs/wheels.md has the figures. Usage: tools/repair.sh WHEEL FOLDER
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

auditwheel repair --wheel-dir "$work/repaired" "$1"
python -m wheel unpack --dest "$work" "$work"/repaired/*.whl
root=$(ls -d "$work"/rmsfast-*)
copies=("$root"/rmsfast.libs/libgomp-*)
for extension in "$root"/rmsfast/_core/*.so; do
    patchelf --replace-needed "$(basename "${copies[0]}")" libgomp.so.1 "$extension"
done
mv "${copies[@]}" "$root/rmsfast.libs/libgomp.so.1"
patchelf --set-soname libgomp.so.1 "$root/rmsfast.libs/libgomp.so.1"
mkdir -p "$2"
python -m wheel pack --dest-dir "$2" "$root"
