#!/bin/bash
# Process 1 of a virtual host: private /tmp and /dev/shm, the cluster's /etc/hosts; then it reaps orphans.
# usage: host_init.sh HOST RIG_FOLDER [FOLDER_UNDER_TMP...]   (the folders that all hosts share)
set -e
host=$1 rig=$2
shift 2
hostname "$host"
own=$rig/hosts/$host/tmp
mkdir -p "$own"
for folder in "$rig" "$@"; do
  mkdir -p "$own/${folder#/tmp/}"
  mount --rbind "$folder" "$own/${folder#/tmp/}"
done
chmod 1777 "$own"
mount --rbind "$own" /tmp
mount -t tmpfs -o size=2g tmpfs /dev/shm
mount --bind "$rig/etc/hosts" /etc/hosts
touch "$rig/run/$host.up"
trap : CHLD
while :; do
  sleep 3600 &
  wait $!
done
