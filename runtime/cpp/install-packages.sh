#!/bin/sh
# Debian packages that building and testing the C++ runtime takes; quick and silent where they are all there.
# --check only says which are missing.
set -eu
packages="g++ cmake ninja-build pkg-config libavformat-dev libavcodec-dev libavutil-dev libswscale-dev libavdevice-dev
  libonig-dev libutf8proc-dev nlohmann-json3-dev libcli11-dev libgtest-dev"
tools="clang g++-aarch64-linux-gnu qemu-user"  # fuzzing, cross-compiling and running that
missing=""
for package in $packages $tools; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q "ok installed" || missing="$missing $package"
done
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
