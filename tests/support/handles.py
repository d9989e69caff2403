# Prints a handle of each file and directory, and opens such handles again, after the kernel has dropped its caches.
# Compares content, listing and the path by which the kernel finds a directory.
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
class Handle(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_uint), ("type", ctypes.c_int), ("data", ctypes.c_ubyte * 128)]
what, mount, payload = sys.argv[1:]
names = ["show", "show/film.bin", "show/extra", "show/extra/deep", "show/extra/deep/notes.txt"]
def check(result):
    if result < 0: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
def make(name):
    handle, mount_id = Handle(bytes=128), ctypes.c_int()
    path = os.path.join(mount, name).encode()
    check(libc.name_to_handle_at(-100, path, ctypes.byref(handle), ctypes.byref(mount_id), 0))
    return bytes(handle)
def opened(handle, root):
    handle = Handle.from_buffer_copy(handle)
    return check(libc.open_by_handle_at(root, ctypes.byref(handle), os.O_RDONLY))
def drop_caches():
    with open("/proc/sys/vm/drop_caches", "w") as file: file.write("3")
if what == "make":
    handles = [make(name) for name in names]
    inodes = [os.stat(os.path.join(mount, name)).st_ino for name in names]
    lines = [f"{handle.hex()} {inode}" for handle, inode in zip(handles, inodes)]
    print(*lines, sep=chr(10))
else:
    lines = sys.stdin.read().splitlines()
root = os.open(mount, os.O_RDONLY)
for name, line in zip(names, lines):
    handle, inode = line.split()
    drop_caches()
    file = opened(bytes.fromhex(handle), root)
    assert os.fstat(file).st_ino == int(inode), name
    source = os.path.join(payload, name)
    if os.path.isdir(source):
        assert os.listdir(file) == os.listdir(os.path.join(mount, name)), name
        assert os.readlink(f"/proc/self/fd/{file}") == os.path.join(mount, name), name
    else:
        assert os.read(file, 1 << 20) == open(source, "rb").read(), name
    os.close(file)
# Torrents and files that do not exist.
first = bytes.fromhex(lines[1].split()[0])
for forged in [bytes(12), bytes([255] * 12), bytes(Handle.from_buffer_copy(first).data)[:8]]:
    handle = Handle.from_buffer_copy(first)
    handle.data[0:len(forged)] = [byte ^ 0x55 for byte in forged]
    try: opened(bytes(handle), root)
    except OSError as error: assert error.errno == 116, error
    else: raise AssertionError("a forged handle was opened")
