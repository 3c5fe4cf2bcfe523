#!/usr/bin/env bash
# Tomorrow's CPython, NumPy and GCC: for each CPython from 3.14 on that Debian's next release has, a wheel is built and all
# tests are run, inside a folder of its own (debootstrap; as root). Packages come from where apt and pip are told
# to get them on this machine. Usage: tools/next_python.sh [FOLDER], which may be from an earlier run
set -euo pipefail
cd "$(dirname "$0")/.."
release=forky
if [ $# = 0 ]; then
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
else
    work=$(realpath -m "$1")
fi
root=$work/$release
if [ "$(id -u)" != 0 ]; then echo "$0: run it as root, which can mount and change the root folder"; exit 1; fi

say() { printf '\n--- %s\n' "$*"; }

# Run a command inside, with this system's devices and processes, which are there for this command only. (pivot_root, since
# the kernel allows no namespaces after chroot, and a test asks for one.)
inside() {
    # shellcheck disable=SC2016
    PATH=/usr/sbin:/usr/bin LC_ALL=C.UTF-8 TMPDIR=/tmp unshare --mount sh -euc '
        cd "$0"
        mount --bind . .
        cd "$0"
        mkdir -p outside
        for folder in proc sys dev; do mount --rbind "/$folder" "$folder"; done
        pivot_root . outside
        umount --lazy /outside
        exec "$@"' "$root" "$@"
}

# Copy what tells apt and pip of this machine's network, and the tree that git knows.
prepare() {
    apt-config dump Acquire >"$root/etc/apt/apt.conf.d/50outside"
    for file in /etc/{hosts,resolv.conf,pip.conf} ~/.pip/pip.conf ~/.config/pip/pip.conf; do
        if [ -e "$file" ]; then install -D --mode=644 "$file" "$root$file"; fi
    done
    inside apt-get -qq update
    mapfile -t versions < <(inside apt-cache pkgnames python3. | sed -n 's/^python\(3\.[0-9]*\)$/\1/p' | sort -V |
        awk -F. '$2 >= 14')
    echo "$release has CPython ${versions[*]}"
    packages=(ca-certificates gcc libc6-dev)
    for version in "${versions[@]}"; do packages+=("python$version"{,-dev,-venv}); done
    inside env DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends "${packages[@]}" \
        >"$work/apt.log" 2>&1 || { tail -n 30 "$work/apt.log"; exit 1; }
    inside gcc --version | head -n 1
    cat /etc/ssl/certs/ca-certificates.crt >"$root/etc/ssl/certs/ca-certificates.crt"
    rm -rf "$root/rmsfast"
    mkdir "$root/rmsfast"
    git ls-files -z | tar c --null --files-from - | tar x -C "$root/rmsfast" --no-same-owner
}

# Build and test with the CPython $1. What follows it goes to pytest.
try() {
    say "CPython $1: build, install, test"
    inside bash -euc '
        cd /rmsfast
        rm -rf "/$0"
        "python$0" -m venv "/$0"
        export PATH=/$0/bin:$PATH RMSFAST_OUTCOMES=/rmsfast/outcomes
        pip wheel --no-deps --wheel-dir "/$0/wheel" .
        pip install --only-binary numpy,scipy "$(echo /$0/wheel/*.whl)[test]"
        python -P -m rmsfast
        pytest "$@"' "$@"
}

if [ ! -e "$work/complete" ]; then
    say "debootstrap $release"
    mkdir -p "$work"
    # An older debootstrap does not know the name, and this is the script of every release since 2022.
    mirror=$(apt-get indextargets --format '$(REPO_URI)' "Origin: Debian" "Label: Debian" | head -n 1)
    debootstrap --variant=minbase $release "$root" "$mirror" /usr/share/debootstrap/scripts/sid >"$work/debootstrap.log" ||
        { tail -n 30 "$work/debootstrap.log"; exit 1; }
    touch "$work/complete"
fi
prepare
options=() # of pytest
for version in "${versions[@]}"; do
    try "$version" "${options[@]}"
    options=(-k "not every_instruction_set") # since the first CPython has had the same C
done
if [ -n "${RMSFAST_OUTCOMES:-}" ]; then cat "$root/rmsfast/outcomes" >>"$RMSFAST_OUTCOMES"; fi
say "CPython ${versions[*]} passed"
