#!/bin/sh
# Debian packages that building and testing the C++ runtime takes; quick and silent where they are all there.
# --check only says which are missing.
set -eu
packages="g++ cmake ninja-build pkg-config libavformat-dev libavcodec-dev libavutil-dev libswscale-dev libavdevice-dev
  libonig-dev libutf8proc-dev nlohmann-json3-dev libcli11-dev libgtest-dev"
tools="clang g++-aarch64-linux-gnu qemu-user"  # fuzzing, cross-compiling and running that
installed() { dpkg-query -W -f '${Status}' "$1" 2>/dev/null | grep -q "ok installed"; }
missing=""
for package in $packages $tools; do
  installed "$package" || missing="$missing $package"
done
# clang's sanitizers and libFuzzer: since clang 14 a package of their own, which clang only recommends
clang=$(clang -dumpversion 2>/dev/null || apt-cache depends clang 2>/dev/null | sed -n 's/.*Depends: clang-//p')
sanitizers="libclang-rt-${clang%%.*}-dev"
if ! installed "$sanitizers" && apt-cache show "$sanitizers" >/dev/null 2>&1; then missing="$missing $sanitizers"; fi
[ -n "$missing" ] || exit 0
if [ "${1:-}" = --check ] || ! command -v apt-get >/dev/null; then
  echo "missing:$missing" >&2
  exit 1
fi
sudo=$([ "$(id -u)" = 0 ] || echo sudo)
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086  # lists of words
$sudo apt-get -qq -o=Dpkg::Use-Pty=0 install --no-install-recommends -y $missing >/dev/null 2>&1 ||
  { $sudo apt-get -qq update && $sudo apt-get -qq -o=Dpkg::Use-Pty=0 install --no-install-recommends -y $missing >/dev/null; }
