#!/bin/sh
# Bring the C++ headers of a Debian 13 package, through apt from the mirror that this system uses, without installing it.
# libonnxruntime-dev's library would be a second ONNX Runtime, and older Debians have none; libvalijson-dev is 76 KB of headers that
# depend on 65 packages (Qt, POCO, MariaDB; 109 MB) for parsers that nothing here uses.
# usage: debian-headers.sh DIRECTORY PACKAGE     leaves DIRECTORY/usr/include
set -eu
target=$1 package=$2
suite=trixie
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/debian.sources 2>/dev/null |
  sed -n 's/^URIs:[[:space:]]*//p; s/^deb[[:space:]]\(\[[^]]*\][[:space:]]*\)\{0,1\}\([^[:space:]]*\).*/\2/p' |
  grep -v security | head -n 1)
[ -n "$mirror" ] || { echo "no Debian mirror in apt's sources" >&2; exit 1; }
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$work/sources.list"
set -- -qq -o Dir::State::Lists="$work/lists" -o Dir::Cache="$work/cache" -o Dir::Etc::SourceList="$work/sources.list" \
  -o Dir::Etc::SourceParts=/dev/null -o APT::Sandbox::User="$(id -un)"
apt-get "$@" update
(cd "$work" && apt-get "$@" download "$package")
mkdir -p "$target"
dpkg-deb -x "$work/$package"_*.deb "$target"
