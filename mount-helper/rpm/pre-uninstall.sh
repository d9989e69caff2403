# 0 means that the last version is being removed. An upgrade leaves what is mounted alone.
if [ "$1" = 0 ]; then
    if [ -d /run/systemd/system ]; then
        systemctl stop 'torrentfs@*.service' || :
    fi
    # Only what mount(8) and fstab mounted: those of `torrentfs mount` are not the package's to end.
    /usr/sbin/mount.torrentfs --end-all || :
fi
