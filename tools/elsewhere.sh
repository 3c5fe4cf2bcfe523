#!/usr/bin/env bash
# The C of the kernel on processors, systems and C libraries that this machine does not have: compiled with Debian's cross
# compilers, run by qemu-user and wine, and held against the bits that it makes here. tools/setup_ci.sh installs them.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# As in setup.py.
flags=(-O3 -std=gnu11 -ffp-contract=off -fno-math-errno -fno-trapping-math -Wall -Wextra -Werror -static)
csrc=rmsfast/_core/csrc

# Compile tests/bits.c to $1 with the compiler $2 and the instruction sets that follow.
compile() {
    local program=$1 compiler=$2 wide=() objects=() isa
    shift 2
    if [ $# -gt 1 ]; then wide=(-DRMSFAST_WIDE); fi
    for isa in "$@"; do
        local -A extra=([baseline]="" [avx2]="-mavx2 -mfma -mf16c" [avx512]="-mavx512f -mavx512vl -mprefer-vector-width=512")
        # shellcheck disable=SC2086
        "$compiler" "${flags[@]}" ${extra[$isa]} -c "$csrc/isa_$isa.c" -o "$program.$isa.o"
        objects+=("$program.$isa.o")
    done
    "$compiler" "${flags[@]}" "${wide[@]}" -I $csrc tests/bits.c $csrc/{dispatch,overlap,rows,strided}.c "${objects[@]}" -lm -o "$program"
}

# Run the rest of the arguments, called $1, and compare. (Windows ends lines otherwise.)
same() {
    printf '%-34s ' "$1"
    "${@:2}" 2>"$work/isas" | tr -d '\r' >"$work/there"
    cmp "$work/here" "$work/there"
    echo "same bits; $(tail -n 1 "$work/isas")"
}

compile "$work/native" gcc baseline avx2 avx512
"$work/native" >"$work/here"
compile "$work/clang" clang baseline avx2 avx512
same "clang" "$work/clang"
compile "$work/musl" musl-gcc baseline avx2 avx512
same "musl" "$work/musl"
same "x86-64 of 2006 (SSE3, no AVX)" qemu-x86_64 -cpu core2duo "$work/native"
same "x86-64 of 2013 (AVX2)" qemu-x86_64 -cpu Haswell "$work/native"
compile "$work/aarch64" aarch64-linux-gnu-gcc baseline
same "aarch64" qemu-aarch64 "$work/aarch64"
compile "$work/s390x" s390x-linux-gnu-gcc baseline
same "s390x (big-endian)" qemu-s390x "$work/s390x"
compile "$work/windows.exe" x86_64-w64-mingw32-gcc baseline avx2 avx512
export WINEPREFIX=$work/wine WINEDEBUG=-all
same "Windows x86-64 (mingw-w64, wine)" wine "$work/windows.exe"
wineserver --wait
