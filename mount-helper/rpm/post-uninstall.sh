# 0 means that the last version is being removed.
if [ "$1" = 0 ]; then
    rm -f /usr/sbin/mount.fuse.torrentfs
fi
systemctl daemon-reload >/dev/null 2>&1 || :
