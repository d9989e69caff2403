systemd-sysusers torrentfs.conf
systemd-tmpfiles --create torrentfs.conf || :
ln -sf mount.torrentfs /usr/sbin/mount.fuse.torrentfs
systemctl daemon-reload >/dev/null 2>&1 || :
# 1 means the first installation.
if [ "$1" = 1 ]; then
    cat <<'EOF'
torrentfs: to mount a first torrent, run
  mkdir ~/film && torrentfs mount FILE.torrent ~/film
or, without a torrent, run `torrentfs demo`. mount.torrentfs(8) describes
mount(8), fstab and systemd.
EOF
fi
