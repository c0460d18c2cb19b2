#!/bin/sh
# Unpacks a real Prometheus and promtool below .prometheus/ in the repository root, for tests: Debian's own package, checked by
# apt's signatures, without root. Running it again does nothing.
set -eu

root=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)/.prometheus

say() { printf 'prometheus: %s\n' "$*"; }
stop() { printf 'prometheus: error: %s\n' "$*" >&2; exit 1; }

if [ -x "$root/prometheus" ] && [ -x "$root/promtool" ]; then
    say "already in $root"
    exit 0
fi
if command -v prometheus >/dev/null && command -v promtool >/dev/null; then
    mkdir -p "$root"
    ln -sf "$(command -v prometheus)" "$(command -v promtool)" "$root/"
    say "this machine's own is used"
    exit 0
fi
command -v apt-get >/dev/null && command -v dpkg >/dev/null || stop "neither prometheus nor apt-get is here; install Prometheus"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"  # apt drops its privileges to download
cd "$work"
if ! apt-get download -qq prometheus >/dev/null 2>&1; then
    say "fetching package lists"
    mkdir -p lists/partial archives/partial
    # Lists of its own: the machine's are root's, and may be absent.
    set -- -o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work" -o Debug::NoLocking=1
    apt-get "$@" update -qq && apt-get "$@" download -qq prometheus >/dev/null || stop "apt-get could not download prometheus"
fi
dpkg -x prometheus_*.deb unpacked
mkdir -p "$root"
cp unpacked/usr/bin/prometheus unpacked/usr/bin/promtool "$root/"
"$root/prometheus" --version 2>&1 | head -n 1
say "installed in $root"
