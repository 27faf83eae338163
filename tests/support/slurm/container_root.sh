#!/bin/bash
# Makes the root of a container at IMAGE/root, in this mount namespace: what is in IMAGE/layer over this machine's own
# root, of which the paths in IMAGE/absent are not there. Stands in for what enroot and apptainer do with an image.
# usage: container_root.sh IMAGE SRC:DST[:ro][,...]
set -e
image=$1 mounts=$2 root=$1/root scratch=$1/scratch
mount -t tmpfs tmpfs "$scratch"
mkdir "$scratch/machine" "$scratch/upper" "$scratch/work"
mount --bind / "$scratch/machine"
cp -a "$image/layer/." "$scratch/upper"
mount -t overlay overlay -o "lowerdir=$scratch/machine,upperdir=$scratch/upper,workdir=$scratch/work" "$root"
while read -r path; do
  if [ -d "$root$path" ]; then mount -t tmpfs tmpfs "$root$path"; else rm -f "$root$path"; fi
done < "$image/absent"
for folder in /proc /sys /dev; do mount --rbind "$folder" "$root$folder"; done
mount --bind /etc/hosts "$root/etc/hosts"
IFS=,
for entry in $mounts; do
  IFS=: read -r from to flags <<< "$entry"
  to=${to:-$from}
  mkdir -p "$root$to"
  mount --rbind "$from" "$root$to"
  if [ "$flags" = ro ]; then mount -o remount,bind,ro "$root$to"; fi
done
