#!/bin/sh
# The recipe of the test hosts' image: a Debian with systemd and a container engine of its own.
#
#   recipe.sh TREE MIRROR      as root; TREE is made by it
#
# The name of the image carries the hash of this file, so a change here makes a new image, and two
# clones of the repository with the same recipe share one.
set -eu

tree=$1
mirror=$2

debootstrap --variant=minbase \
    --include=systemd,systemd-sysv,dbus,curl,ca-certificates,iproute2,procps \
    bookworm "$tree" "$mirror"

# Where this machine has Debian's own sources, its updates and security fixes come along.
sources=/etc/apt/sources.list.d/debian.sources
if grep -qs bookworm "$sources"; then
    rm -f "$tree/etc/apt/sources.list"
    cp "$sources" "$tree/etc/apt/sources.list.d/"
fi

inside() {
    chroot "$tree" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive LC_ALL=C \
        http_proxy="${http_proxy:-}" "$@"
}

# Nothing is started while it is installed.
printf '#!/bin/sh\nexit 101\n' >"$tree/usr/sbin/policy-rc.d"
chmod 755 "$tree/usr/sbin/policy-rc.d"
cp /etc/resolv.conf "$tree/etc/resolv.conf"
inside apt-get update
inside apt-get install -y --no-install-recommends docker.io docker-compose iptables busybox-static openssl
inside systemctl enable docker.service
inside systemctl mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
    e2scrub_all.timer fstrim.timer console-getty.service getty.target systemd-udev-trigger.service

# Each host makes these at its first boot, as a machine does that was installed from a good image.
: >"$tree/etc/machine-id"
rm -f "$tree/var/lib/dbus/machine-id" "$tree/etc/docker/key.json" "$tree/etc/hostname"

# The engine that runs the hosts gives each its own part of the cgroup tree, read-only; a machine
# may write to it. Thus what a host's own engine starts is below the host, and is paused, killed and
# counted with it.
cat >"$tree/sbin/test-host-init" <<'INIT'
#!/bin/sh
for at in /sys/fs/cgroup /sys/fs/cgroup/*; do
    mount -o remount,bind,rw "$at" 2>/dev/null || true
done
exec /lib/systemd/systemd
INIT
chmod 755 "$tree/sbin/test-host-init"

# What nobody reads here.
inside apt-get clean
rm -rf "$tree/usr/sbin/policy-rc.d" "$tree"/var/lib/apt/lists/* "$tree"/var/cache/* "$tree"/var/log/* \
    "$tree"/usr/share/doc/* "$tree"/usr/share/man/* "$tree"/usr/share/locale/* "$tree"/usr/share/info/* \
    "$tree"/tmp/*
# What the recipe itself had in the way is the host's own again.
: >"$tree/etc/resolv.conf"
