#!/usr/bin/python3
"""A libtorrent node of the DHT, or a libtorrent peer for local discovery (Debian package python3-libtorrent).

usage: dht.py node|peer|ask|lsd IP PORT BOOTSTRAP INFO_HASH    (BOOTSTRAP: HOST:PORT, or - for none)

Listens on IP alone and prints READY. `node` only joins the DHT. `peer` adds the torrent and so announces itself to the DHT.
`ask` searches the DHT for the torrent's peers and prints PEER IP:PORT for each. `lsd` adds the torrent with local discovery
alone and prints LSD and the announces that it receives.
"""
import sys
import time

import libtorrent as lt

role, ip, port, bootstrap, info_hash = sys.argv[1:6]
session = lt.session({
    "listen_interfaces": f"{ip}:{port}", "outgoing_interfaces": ip.strip("[]"),
    "enable_dht": role != "lsd", "enable_lsd": role == "lsd", "enable_upnp": False, "enable_natpmp": False,
    "dht_bootstrap_nodes": "" if bootstrap == "-" else bootstrap,
    "dht_restrict_routing_ips": False, "dht_restrict_search_ips": False, "dht_prefer_verified_node_ids": False,
    "dht_ignore_dark_internet": False, "allow_multiple_connections_per_ip": True, "alert_mask": 0x7fffffff,
})
info_hash = lt.sha1_hash(bytes.fromhex(info_hash))
if role in ("peer", "lsd"):
    params = lt.add_torrent_params()
    params.info_hash = info_hash
    params.save_path = "."
    params.flags &= ~(lt.torrent_flags.auto_managed | lt.torrent_flags.paused)
    handle = session.add_torrent(params)
up = False
asked = 0
while True:
    if role in ("ask", "peer") and time.monotonic() > asked + 1:
        asked = time.monotonic()
        # An announce before the node is ready is lost, and the next one would follow after 15 minutes.
        session.dht_get_peers(info_hash) if role == "ask" else handle.force_dht_announce()
    for alert in session.pop_alerts():
        if not up and isinstance(alert, lt.listen_succeeded_alert):
            up = True
            print("READY", flush=True)
        if isinstance(alert, lt.dht_get_peers_reply_alert):
            for peer in alert.peers():
                print("PEER", "%s:%d" % tuple(peer), flush=True)
        # The bindings have no type for this alert. Its message begins with the address.
        if alert.what() == "lsd_peer":
            print("LSD", alert.message(), flush=True)
    time.sleep(0.1)
