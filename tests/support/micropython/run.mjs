// node run.mjs MICROPYTHON.mjs BOARD SCRIPT [LINE]: runs BOARD/SCRIPT under MicroPython.
//
// The folder BOARD is the board's flash, "/flash", on the real disk: what is flushed there outlives a kill.
// LINE is a serial port, "/line"; reading it never waits. The module "node" sleeps without burning the core, and exits.
// With "-" as SCRIPT it serves its prompt on standard input, both ways, as a board does over USB, until it is killed.
import fs from "node:fs";
import path from "node:path";
import { pathToFileURL } from "node:url";

const [, , micropython, board, script, line] = process.argv;
const { loadMicroPython } = await import(pathToFileURL(micropython));

const PROMPT = 0;
let mute = false;

const mp = await loadMicroPython({
  heapsize: 256 * 1024, // a Cortex-M7 board's, without its SDRAM
  linebuffer: false,
  stdout: (bytes) => void (mute || fs.writeSync(script === "-" ? PROMPT : 1, bytes)),
  stderr: (bytes) => fs.writeSync(2, bytes),
});
const { FS } = mp;

// Emscripten numbers errors as WASI does; but EAGAIN has to be MicroPython's own, by which it knows that what
// it has read so far is all there is.
const WASI = { EACCES: 2, EAGAIN: 11, EEXIST: 20, EISDIR: 31, ENOENT: 44, ENOSPC: 51, ENOTDIR: 54, ENOTEMPTY: 55 };

function attempt(call) {
  try {
    return call();
  } catch (error) {
    throw new FS.ErrnoError(WASI[error.code] ?? 29);
  }
}

// A file system whose nodes are paths on the disk of this machine.
function diskFolder(root) {
  const where = (node) => {
    const parts = [];
    for (; node.parent !== node; node = node.parent) parts.unshift(node.name);
    return path.join(root, ...parts);
  };
  const ops = { node_ops: {}, stream_ops: {} };
  const createNode = (parent, name, mode) => Object.assign(FS.createNode(parent, name, mode, 0), ops);
  Object.assign(ops.node_ops, {
    getattr: (node) => {
      const { mode, size, mtime } = attempt(() => fs.lstatSync(where(node)));
      return { dev: 1, ino: node.id, mode, nlink: 1, uid: 0, gid: 0, rdev: 0, size,
               atime: mtime, mtime, ctime: mtime, blksize: 4096, blocks: Math.ceil(size / 512) };
    },
    setattr: (node, attr) => {
      if (attr.size !== undefined) attempt(() => fs.truncateSync(where(node), attr.size));
    },
    lookup: (parent, name) =>
      createNode(parent, name, attempt(() => fs.lstatSync(path.join(where(parent), name))).mode),
    mknod: (parent, name, mode) => {
      const full = path.join(where(parent), name);
      attempt(() => (FS.isDir(mode) ? fs.mkdirSync(full) : fs.writeFileSync(full, "")));
      return createNode(parent, name, mode);
    },
    rename: (node, folder, name) => {
      attempt(() => fs.renameSync(where(node), path.join(where(folder), name)));
      node.name = name;
    },
    unlink: (parent, name) => attempt(() => fs.unlinkSync(path.join(where(parent), name))),
    rmdir: (parent, name) => attempt(() => fs.rmdirSync(path.join(where(parent), name))),
    readdir: (node) => attempt(() => fs.readdirSync(where(node))),
  });
  Object.assign(ops.stream_ops, {
    open: (stream) => {
      const writes = (stream.flags & 3) !== 0;
      stream.descriptor = attempt(() => fs.openSync(where(stream.node), writes ? "r+" : "r"));
    },
    close: (stream) => fs.closeSync(stream.descriptor),
    read: (stream, buffer, offset, length, position) =>
      attempt(() => fs.readSync(stream.descriptor, buffer, offset, length, position)),
    write: (stream, buffer, offset, length, position) =>
      attempt(() => fs.writeSync(stream.descriptor, buffer, offset, length, position)),
    fsync: (stream) => attempt(() => fs.fsyncSync(stream.descriptor)),
    llseek: (stream, offset, whence) => {
      if (whence === 1) return offset + stream.position;
      return whence === 2 ? offset + attempt(() => fs.fstatSync(stream.descriptor)).size : offset;
    },
  });
  return { mount: () => createNode(null, "/", fs.statSync(root).mode) };
}

FS.mkdir("/flash");
FS.mount(diskFolder(board), {}, "/flash");
FS.chdir("/flash");

if (line) {
  const flags = fs.constants.O_RDWR | fs.constants.O_NOCTTY | fs.constants.O_NONBLOCK;
  const descriptor = fs.openSync(line, flags);
  const device = FS.makedev(64, 0);
  FS.registerDevice(device, {
    open: (stream) => (stream.seekable = false),
    read: (_, buffer, offset, length) => attempt(() => fs.readSync(descriptor, buffer, offset, length)),
    write: (_, buffer, offset, length) => attempt(() => fs.writeSync(descriptor, buffer, offset, length)),
  });
  FS.mkdev("/line", device);
}

const bell = new Int32Array(new SharedArrayBuffer(4));
mp.registerJsModule("node", {
  sleep_ms: (duration_ms) => void Atomics.wait(bell, 0, 0, duration_ms),
  exit: (code) => process.exit(code),
});

const SET_UP = `import sys\nsys.path[:] = ["/flash", ".frozen"]\n`;

// mpremote wants MicroPython's own number of a file that is not there.
const OWN_ERRORS = `
from uos import *
import builtins
import uos
def own(call):
    def wrapped(*arguments):
        try:
            return call(*arguments)
        except OSError as error:
            raise OSError(2 if error.errno == ${WASI.ENOENT} else error.errno)
    return wrapped
stat = own(uos.stat)
builtins.open = own(open)
`;

function startPrompt() {
  mute = true;
  mp.replInit();
  mp.runPython(SET_UP + 'sys.path.insert(0, "/own")\nimport os\n');
  mute = false;
}

function servePrompt() {
  FS.mkdir("/own");
  FS.writeFile("/own/os.py", OWN_ERRORS);
  startPrompt();
  const RAW_PASTE = "\x05A\x01";
  const SOFT_REBOOT = 256;
  const buffer = Buffer.alloc(4096);
  let text = "";
  for (;;) {
    text += buffer.toString("latin1", 0, fs.readSync(PROMPT, buffer));
    for (; text; text = text.slice(1)) {
      // Raw paste reads standard input on its own, which this build has not: say that there is none.
      if (text.length < RAW_PASTE.length && RAW_PASTE.startsWith(text)) break;
      if (text.startsWith(RAW_PASTE)) {
        text = text.slice(RAW_PASTE.length - 1);
        fs.writeSync(PROMPT, "R\0");
      } else if (mp.replProcessChar(text.charCodeAt(0)) & SOFT_REBOOT) {
        fs.writeSync(PROMPT, "MPY: soft reboot\r\n");
        startPrompt();
        mp.replProcessChar(1);
      }
    }
  }
}

try {
  if (script === "-") servePrompt();
  mp.runPython(SET_UP + fs.readFileSync(path.join(board, script), "utf8"));
} catch (error) {
  fs.writeSync(2, `${error.message ?? error}\n`);
  process.exitCode = error.type === "SystemExit" ? 2 : 1;
}
