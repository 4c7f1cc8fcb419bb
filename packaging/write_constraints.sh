#!/bin/sh
# write_constraints.sh UV TORCH FILE: writes the newest versions of all dependencies in pyproject.toml,
# for all supported systems and Pythons. torch itself chooses the libraries of its CUDA build.
set -eu
pinned=$(mktemp)
trap 'rm -f "$pinned"' EXIT
echo "$(echo "$2" | grep -o '^torch==[0-9.]*') ; python_version < '3.15'" > "$pinned"
{
    echo "# The versions that the tests ran with. Written by \`make constraints\`; do not edit by hand."
    "$1" pip compile --quiet --universal --upgrade --python-version 3.11 --all-extras --no-header \
        --no-annotate --constraint "$pinned" pyproject.toml | grep -v -E "^(cuda|nvidia|triton)|>= '3.15'"
} > "$3.new"
mv "$3.new" "$3"
