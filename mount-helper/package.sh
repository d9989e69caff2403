#!/usr/bin/env bash
# Builds the .deb and the .rpm, into target/package, or package in $CARGO_TARGET_DIR. Needs cargo-deb and
# cargo-generate-rpm.
#   mount-helper/package.sh            a release build
#   mount-helper/package.sh --debug    the debug build, for tests; not compressed
#   mount-helper/package.sh --built    the programs in target/debug as they are: those that `cargo test` has built
set -euo pipefail
# As cargo takes it: relative to the directory of the call.
target=$(realpath --canonicalize-missing "${CARGO_TARGET_DIR:-$(dirname "$0")/../target}")
export CARGO_TARGET_DIR=$target
cd "$(dirname "$0")/.."

profile=release flags=(--release) fast=() payload=()
case "${1:-}" in
--debug | --built) profile=debug flags=() fast=(--fast) payload=(--payload-compress none) ;;
esac
[ "${1:-}" = --built ] || cargo build --locked --bins "${flags[@]}"

package=$target/package made=$target/package/release/made
rm -rf "$package"
mkdir -p "$made"
for program in torrentfs mount-torrentfs; do
    strip --strip-all -o "$package/release/$program" "$target/$profile/$program"
done
"$package/release/torrentfs" man "$made"
gzip --best --no-name "$made"/*.[18]
for shell in bash zsh fish; do
    "$package/release/torrentfs" completions "$shell" > "$made/torrentfs.$shell"
done

# cargo-deb and cargo-generate-rpm look for target/release of Cargo.toml there.
export CARGO_TARGET_DIR=$package
cargo deb --quiet --no-build --no-strip "${fast[@]}" --output "$package/torrentfs.deb"
cargo generate-rpm "${payload[@]}" --output "$package/torrentfs.rpm"
ls -l "$package"/torrentfs.*
