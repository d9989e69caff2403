#!/usr/bin/python3
"""Makes a torrent with libtorrent, to compare ours with.

usage: make_torrent.py OUT PIECE_LEN ROOT [links] [executable] [private]

libtorrent keeps the order in which files are added: here the byte order of their paths. `links` keeps symbolic links,
`executable` the owner's x bits (BEP 47). Prints the info hash.
"""
import os
import sys

import libtorrent as lt

out, piece_len, root, *options = sys.argv[1:]
V1_ONLY, SYMLINKS = 64, 8
parent, name = os.path.split(os.path.abspath(root))

paths = []
if os.path.isdir(root):
    for here, dirs, files in os.walk(root, followlinks="links" not in options):
        linked = [entry for entry in dirs if os.path.islink(os.path.join(here, entry))]
        for entry in files + (linked if "links" in options else []):
            paths.append(os.path.relpath(os.path.join(here, entry), parent))
else:
    paths.append(name)
paths.sort(key=os.fsencode)

files = lt.file_storage()
for path in paths:
    full = os.path.join(parent, path)
    if "links" in options and os.path.islink(full):
        target = os.path.join(os.path.dirname(full), os.readlink(full))
        files.add_file(path, 0, lt.file_flags_t.flag_symlink, 0, os.path.relpath(target, root))
        continue
    about = os.stat(full)
    executable = "executable" in options and about.st_mode & 0o100
    files.add_file(path, about.st_size, lt.file_flags_t.flag_executable if executable else 0, 0, "")
torrent = lt.create_torrent(files, int(piece_len), flags=V1_ONLY | (SYMLINKS if "links" in options else 0))
torrent.set_priv("private" in options)
lt.set_piece_hashes(torrent, parent)
with open(out, "wb") as file:
    file.write(lt.bencode(torrent.generate()))
print(lt.torrent_info(out).info_hash())
