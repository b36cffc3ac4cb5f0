#!/bin/sh
# Headers of Debian's arm64 and every library that the program loads, through apt, into DIRECTORY; nothing of it is installed.
# usage: aarch64-sysroot.sh DIRECTORY
set -eu
target=$1
[ -e "$target/.complete" ] && exit 0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$target"
set -- -qq -o Dir::State::Lists="$work/lists" -o Dir::Cache="$work/cache" -o APT::Architecture=arm64 -o APT::Architectures=arm64 \
  -o Dir::Etc::SourceList=/etc/apt/sources.list.d/debian.sources -o Dir::Etc::SourceParts=/dev/null -o APT::Sandbox::User="$(id -un)"
apt-get "$@" update
packages="libavformat-dev libavcodec-dev libavutil-dev libswscale-dev libswresample-dev libonig-dev libutf8proc-dev"
# a -dev package links to the library of the same version, whose name ends in a number
libraries=$(apt-cache "$@" depends $packages | sed -n 's/^ *Depends: \(lib[a-z0-9]*[0-9]\)$/\1/p' | sort -u)
# and libraries load libraries: with all of them an emulator runs what was compiled
loaded=$(apt-cache "$@" depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances \
  $libraries libstdc++6 | grep '^[a-z0-9]' | sort -u)
(cd "$work" && apt-get "$@" download $packages $loaded)
for package in "$work"/*.deb; do dpkg-deb -x "$package" "$target"; done
touch "$target/.complete"
