#!/usr/bin/env bash
# The first process of a host of the lab, in namespaces of its own: host.sh NAME LAB [PATH...].
# It makes a file system in which /root, /tmp, /run and /dev/shm are the host's own, with those PATHs below /root and /tmp to be read,
# and /mnt is shared by all hosts. Then it becomes sshd: that one's end is the machine's.
set -euo pipefail
name=$1 lab=$2
shift 2
own=$lab/$name
mount --make-rprivate /

for path in "$@"; do
  case $path in
  /root/* | /tmp/*)
    mkdir -p "$own$path"
    mount --bind "$path" "$own$path"
    mount -o remount,bind,ro "$own$path"
    ;;
  esac
done
mount --bind "$lab/shared" /mnt
mount --bind "$lab/hosts" /etc/hosts
if [ -f /etc/resolv.conf ]; then mount --bind "$lab/nothing" /etc/resolv.conf; fi

# The one that the lab itself lies below comes last: after it the lab is out of sight.
case $lab in
/root/*) places="/tmp /root" ;;
*) places="/root /tmp" ;;
esac
for place in $places; do mount --rbind "$own$place" "$place"; done
mount -t tmpfs -o size=2g,mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/sshd
mount -t proc proc /proc
hostname "$name"
cd /
# In place of this shell as process 1 it also takes in orphans.
exec env -i HOME=/root LANG=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
  /usr/sbin/sshd -D -e -f /root/.lab/sshd_config
