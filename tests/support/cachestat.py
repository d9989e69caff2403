"""Prints how many bytes the kernel caches of each file, by its own inode (cachestat(2), Linux 6.5)."""

import ctypes
import os
import sys

CACHESTAT = 451
libc = ctypes.CDLL(None, use_errno=True)


class Range(ctypes.Structure):
    _fields_ = [("offset", ctypes.c_uint64), ("length", ctypes.c_uint64)]


class Counts(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("cached", "dirty", "writeback", "evicted", "recently_evicted")]


for path in sys.argv[1:]:
    descriptor = os.open(path, os.O_RDONLY)
    whole, counts = Range(0, 0), Counts()
    if libc.syscall(CACHESTAT, descriptor, ctypes.byref(whole), ctypes.byref(counts), 0) != 0:
        raise OSError(ctypes.get_errno(), "cachestat")
    print(counts.cached * os.sysconf("SC_PAGESIZE"))
