#!/bin/bash
# Stands in for apptainer: `apptainer exec [--nv] --bind MOUNTS IMAGE COMMAND...`, and nothing else that it can do.
here=$(dirname "$(readlink -f "$0")")
if [ "$1" != inside ]; then exec unshare --mount --propagation=private bash "$0" inside "$@"; fi
[ "$2" = exec ] || { echo "apptainer: unknown command $2" >&2; exit 255; }
shift 2
mounts=
while [[ $1 == -* ]]; do
  case $1 in
    --bind) mounts=$2; shift 2 ;;
    --nv) shift ;;
    *) echo "apptainer: unknown flag: $1" >&2; exit 255 ;;
  esac
done
image=$1
shift
[ -d "$image" ] || { echo "FATAL: could not open image $image" >&2; exit 255; }
bash "$here/container_root.sh" "$image" "/tmp,$mounts" || exit 255
exec chroot "$image/root" env --chdir="$PWD" "$@"
