#!/usr/bin/python3
"""A libtorrent peer (Debian package python3-libtorrent, or libtorrent from PyPI).

usage: peer.py seed|leech IP PORT RATE DIR TORRENT|MAGNET [SETTING=VALUE|peer=IP:PORT]...

Listens on IP alone. `seed` assumes that DIR is complete and prints READY; `leech` checks DIR, prints READY, downloads into it
and prints DONE once it is complete. RATE is in bytes/s, 0 for unlimited. Settings are libtorrent's, and `super_seed=1`. It
connects to the peers.
"""
import sys
import time

import libtorrent as lt

role, ip, port, rate, save, torrent = sys.argv[1:7]
settings = {
    "listen_interfaces": f"{ip}:{port}", "outgoing_interfaces": ip,
    "enable_dht": False, "enable_lsd": False, "enable_upnp": False, "enable_natpmp": False,
    "enable_outgoing_utp": False, "enable_incoming_utp": False,
    "allow_multiple_connections_per_ip": True, "unchoke_slots_limit": -1,
    "upload_rate_limit": int(rate), "alert_mask": 0,
}
peers = []
super_seed = False
for setting in sys.argv[7:]:
    key, _, value = setting.partition("=")
    if key == "peer":
        host, _, number = value.rpartition(":")
        peers.append((host, int(number)))
        continue
    if key == "super_seed":
        super_seed = bool(int(value))
        continue
    kind = type(settings.get(key, lt.default_settings()[key]))
    settings[key] = value if kind is str else kind(int(value))
session = lt.session(settings)
# Loopback is exempt from rate limits unless every address is put in the global class.
everyone = lt.ip_filter()
everyone.add_rule("0.0.0.0", "255.255.255.255", 1)
session.set_peer_class_filter(everyone)
if torrent.startswith("magnet:"):
    params = lt.parse_magnet_uri(torrent)
else:
    params = lt.add_torrent_params()
    params.ti = lt.torrent_info(torrent)
params.save_path = save
params.flags &= ~(lt.torrent_flags.auto_managed | lt.torrent_flags.paused)
if role == "seed":
    params.flags |= lt.torrent_flags.seed_mode
    if super_seed:
        params.flags |= lt.torrent_flags.super_seeding
handle = session.add_torrent(params)
states = lt.torrent_status.states
while handle.status().state in (states.checking_files, states.checking_resume_data):
    time.sleep(0.02)
for peer in peers:
    handle.connect_peer(peer)
print("READY", flush=True)
if role == "leech":
    while not handle.status().is_seeding:
        time.sleep(0.02)
    handle.flush_cache()
    print("DONE", flush=True)
while True:
    # An announce before the node is ready is lost, and the next one would follow after 15 minutes.
    if settings["enable_dht"]:
        handle.force_dht_announce()
    time.sleep(1)
