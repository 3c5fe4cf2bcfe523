#!/usr/bin/env bash
# What the gate needs beside Python and gcc, as Debian and Ubuntu call it. Installs what is missing, as root or by sudo.
set -euo pipefail
packages=(
    clang libomp-dev                   # LLVM's runtime, and what tells the thread sanitizer of its barriers
    valgrind                           # bench.instructions
    qemu-user                          # tools/elsewhere.sh, tools/wheels.sh: other processors
    gcc-aarch64-linux-gnu libc6-dev-arm64-cross gcc-s390x-linux-gnu libc6-dev-s390x-cross musl-tools
    gcc-mingw-w64-x86-64 wine wine64   # Windows
    debootstrap debian-archive-keyring # tools/next_python.sh
)
# tests/playground. Ubuntu's chromium is a snap; but where Ubuntu runs a workflow, Chrome is there.
command -v node >/dev/null || packages+=(nodejs)
command -v chromium google-chrome >/dev/null || packages+=(chromium)

missing=()
for package in "${packages[@]}"; do
    [ "$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
done
if [ ${#missing[@]} = 0 ]; then exit; fi

echo "apt-get install ${missing[*]}"
as_root=()
if [ "$(id -u)" != 0 ]; then as_root=(sudo); fi
log=$(mktemp)
trap 'rm "$log"' EXIT
{
    "${as_root[@]}" apt-get -q update
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q install --yes --no-install-recommends "${missing[@]}"
} </dev/null >"$log" 2>&1 || { cat "$log"; echo "$0: not installed: ${missing[*]}"; exit 1; }
