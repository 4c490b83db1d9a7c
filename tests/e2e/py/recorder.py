#!/usr/bin/env python3
"""Stands between a mail client and whatever it talks to, TLS on both sides, and tells what the client was given.

  recorder.py IMAP_CLIENT_PY < JSON {listen: [host, port], to: [host, port], name, cert, key, ca, out, raw}

What passed is kept in RAW.N.up and RAW.N.down, for looking into failures.

Until SIGTERM; then writes to `out`: {"digest": {"mailbox/uid/label": sha256}, "flags": {"mailbox/uid": [..]},
"conflicts": [..], "commands": {"FETCH": n, ..}, "octets": n, "connections": n, "trouble": [..]}. COMPRESS is taken
out of what the client is offered, in every arm alike: deflated octets cannot be told apart.
"""
import asyncio, hashlib, importlib.util, json, re, signal, ssl, sys

spec = importlib.util.spec_from_file_location("imap_client", sys.argv[1])
imap_client = importlib.util.module_from_spec(spec)
spec.loader.exec_module(imap_client)

CLIENT_LITERAL = re.compile(rb"\{(\d+)\+?\}\r\n$")
STATUS = re.compile(rb"(\* (OK|NO|BAD|BYE|PREAUTH)\b|\+)", re.I)


class Totals:
    def __init__(self):
        self.digest, self.flags, self.conflicts, self.commands = {}, {}, [], {}
        self.octets = self.connections = 0
        self.trouble = []


class Connection:
    """Reads both streams of one connection in the order in which they passed."""

    def __init__(self, totals):
        self.totals, self.mailbox, self.uid_of = totals, "?", {}
        self.client, self.server = bytearray(), bytearray()
        self.command, self.parts = bytearray(), []
        self.open = []  # commands without their tagged reply: (tag, words)

    def from_client(self, octets):
        self.client += octets
        while True:
            at = self.client.find(b"\r\n")
            if at < 0:
                return
            line = bytes(self.client[:at + 2])
            literal = CLIENT_LITERAL.search(line)
            length = int(literal.group(1)) if literal else 0
            if len(self.client) < at + 2 + length:
                return
            self.command += line
            del self.client[:at + 2 + length]
            if not literal:
                self.enter(bytes(self.command).split())
                self.command.clear()

    def enter(self, words):
        if any(name == b"AUTHENTICATE" for _, name, _ in self.open) or len(words) < 2:
            return
        name = words[1].upper()
        if name == b"UID" and len(words) > 2:
            name += b" " + words[2].upper()
        self.totals.commands[name.decode("latin1")] = self.totals.commands.get(name.decode("latin1"), 0) + 1
        if name == b"COMPRESS":
            self.totals.trouble.append("the client asked for COMPRESS")
        self.open.append((words[0], name, words[2:]))

    def from_server(self, octets):
        self.totals.octets += len(octets)
        self.server += octets
        while True:
            at = self.server.find(b"\r\n")
            if at < 0:
                return
            line = bytes(self.server[:at + 2])
            literal = None if not self.parts and self.is_status(line) else imap_client.LITERAL.search(line)
            length = int(literal.group(1)) if literal else 0
            if len(self.server) < at + 2 + length:
                return
            self.parts.append(line)
            if literal:
                self.parts.append(bytes(self.server[at + 2:at + 2 + length]))
            del self.server[:at + 2 + length]
            if not literal:
                parts, self.parts = self.parts, []
                self.response(parts)

    def is_status(self, line):
        return STATUS.match(line) or any(line.startswith(tag + b" ") for tag, _, _ in self.open)

    def response(self, parts):
        if self.open and self.open[0][1] in (b"SELECT", b"EXAMINE") and self.open[0][2]:
            name = self.open[0][2][0].decode("latin1").strip('"')
            if name != self.mailbox:
                self.mailbox, self.uid_of = name, {}
        first = parts[0]
        for number, (tag, _, _) in enumerate(self.open):
            if first.startswith(tag + b" "):
                del self.open[number]
                return
        head = re.match(rb"\* (\d+) (\w+)", first)
        if not head:
            return
        number, kind = int(head.group(1)), head.group(2).upper()
        if kind == b"EXPUNGE":
            self.uid_of = {(n - 1 if n > number else n): u for n, u in self.uid_of.items() if n != number}
        if kind != b"FETCH":
            return
        items = dict(imap_client.Reader(parts, head.end()).items())
        if "UID" in items:
            self.uid_of[number] = items["UID"][1].decode()
        key = "%s/%s" % (self.mailbox, self.uid_of.get(number, "msn%d" % number))
        if "FLAGS" in items:
            flags = items["FLAGS"][1].decode("latin1").strip("()").split()
            self.totals.flags[key] = sorted(flag for flag in flags if flag != "\\Recent")
        for label, (_, value) in items.items():
            if label in imap_client.VOLATILE:
                continue
            whole, value = key + "/" + label, hashlib.sha256(value).hexdigest()
            if self.totals.digest.setdefault(whole, value) != value:
                self.totals.conflicts.append(whole)


async def pump(reader, writer, note):
    try:
        while octets := await reader.read(1 << 16):
            octets = note(octets)
            writer.write(octets)
            await writer.drain()
    except (OSError, ssl.SSLError):
        pass
    writer.close()


async def main():
    script, totals = json.load(sys.stdin), Totals()
    front = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    front.load_cert_chain(script["cert"], script["key"])
    back = ssl.create_default_context(cafile=script["ca"])

    async def serve(reader, writer):
        totals.connections += 1
        connection = Connection(totals)
        raw = [open("%s.%d.%s" % (script["raw"], totals.connections, way), "wb", 0) for way in ("up", "down")]
        try:
            far = await asyncio.open_connection(*script["to"], ssl=back, server_hostname=script["name"])
        except (OSError, ssl.SSLError) as error:
            totals.trouble.append("cannot reach the server: %s" % error)
            writer.close()
            return

        def up(octets):
            raw[0].write(octets)
            connection.from_client(octets)
            return octets

        def down(octets):
            octets = octets.replace(b" COMPRESS=DEFLATE", b"")
            raw[1].write(octets)
            try:
                connection.from_server(octets)
            except imap_client.Broken as error:
                totals.trouble.append(str(error))
            return octets

        await asyncio.gather(pump(reader, far[1], up), pump(far[0], writer, down))

    server = await asyncio.start_server(serve, *script["listen"], ssl=front, limit=1 << 20)
    done = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, done.set)
    await done.wait()
    server.close()
    with open(script["out"], "w") as out:
        json.dump(vars(totals), out)


asyncio.run(main())
