#!/bin/sh
# Bring ONNX Runtime's C++ headers: Debian 13's libonnxruntime-dev, through apt from the mirror that this system uses.
# The package itself is not installed: its library would pull in a second ONNX Runtime, and older Debians have none.
# usage: onnxruntime-headers.sh DIRECTORY     leaves DIRECTORY/usr/include/onnxruntime
set -eu
target=$1
suite=${2:-trixie}
[ -e "$target/usr/include/onnxruntime/onnxruntime_cxx_api.h" ] && exit 0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/debian.sources 2>/dev/null |
  sed -n 's/^URIs:[[:space:]]*//p; s/^deb[[:space:]]\(\[[^]]*\][[:space:]]*\)\{0,1\}\([^[:space:]]*\).*/\2/p' |
  grep -v security | head -n 1)
[ -n "$mirror" ] || { echo "no Debian mirror in apt's sources; pass -DGRIDPOOL_ONNXRUNTIME_INCLUDE=DIR" >&2; exit 1; }
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$work/sources.list"
set -- -qq -o Dir::State::Lists="$work/lists" -o Dir::Cache="$work/cache" -o Dir::Etc::SourceList="$work/sources.list" \
  -o Dir::Etc::SourceParts=/dev/null -o APT::Sandbox::User="$(id -un)"
apt-get "$@" update
(cd "$work" && apt-get "$@" download libonnxruntime-dev)
mkdir -p "$target"
dpkg-deb -x "$work"/libonnxruntime-dev_*.deb "$target"
