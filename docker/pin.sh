#!/bin/sh
# docker/pin.sh            write the digests that the tags of our base images have now into the files that name them
# docker/pin.sh --check    say which tags have moved since, and exit with 1 if any has
# Needs docker with buildx, or skopeo, and a way to the registries.
set -eu
digest() {
    if command -v skopeo >/dev/null; then
        skopeo inspect --raw "docker://$1" | sha256sum | sed 's/^/sha256:/; s/ .*//'
    else
        docker buildx imagetools inspect --format '{{.Manifest.Digest}}' "$1"
    fi
}
# A name as registries know it: those of one word are Docker Hub's own.
full() {
    case "$1" in
    *.*/*) echo "$1" ;;
    */*) echo "docker.io/$1" ;;
    *) echo "docker.io/library/$1" ;;
    esac
}
cd "$(dirname "$0")/.."
files="Dockerfile compose.yaml compose.minio.yaml deploy/helm/ltxtrain/values.yaml"
moved=0
# shellcheck disable=SC2086 # files are words
for pinned in $(grep -oh '[a-z0-9][a-z0-9./-]*:[A-Za-z0-9._-]*@sha256:[0-9a-f]\{64\}' $files | sort -u); do
    image=${pinned%@*}
    now=$(digest "$(full "$image")")
    case "$now" in
    sha256:????????????????????????????????????????????????????????????????) ;;
    *) echo "$image: no digest, but: $now" >&2 && exit 2 ;;
    esac
    if [ "$pinned" = "$image@$now" ]; then
        echo "$image is as it was"
    else
        echo "$image has moved: ${pinned#*@} is $now now"
        moved=1
        [ "${1:-}" = --check ] || sed -i "s|$pinned|$image@$now|" $files
    fi
done
[ "${1:-}" != --check ] || exit $moved
