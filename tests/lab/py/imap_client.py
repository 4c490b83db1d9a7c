#!/usr/bin/env python3
"""A scripted IMAP client: raw octets in and out, timings, and digests of every value it was given.

Reads one JSON object from standard input:
  host, port, tls ("implicit", "starttls", "none"), ca, user, password, sasl_ir (default false)
  acts: [{"name", "commands": ["SELECT INBOX", "UID FETCH 1:5 (BODY.PEEK[])", ..], "pipeline": false, "wait_s": 0}]
Writes one JSON object:
  acts: [{name, seconds, literal_seconds, octets, status}]   seconds: first octet of the act's first command until the
        last octet of its last tagged reply; literal_seconds: until the last octet of its last literal
  digest: {"mailbox/uid/label": sha256}   flags: {"mailbox/uid": [..]}   conflicts: [..]
  greeting, login (its tagged reply), connect_seconds, login_seconds
"""
import base64, hashlib, json, re, socket, ssl, sys, time

LITERAL = re.compile(rb"\{(\d+)\}\r\n$")
# What a server may change between two sessions without the message being another.
VOLATILE = {"FLAGS", "MODSEQ", "UID"}


class Broken(Exception):
    pass


class Session:
    def __init__(self, script):
        self.mailbox, self.number, self.octets = "", 0, 0
        self.digest, self.flags, self.conflicts, self.uid_of = {}, {}, [], {}
        self.literal_at = None
        start = time.perf_counter()
        plain = socket.create_connection((script["host"], script["port"]), timeout=script.get("timeout_s", 120))
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        context = ssl.create_default_context(cafile=script.get("ca"))
        tls = script.get("tls", "implicit")
        self.socket = context.wrap_socket(plain, server_hostname=script["host"]) if tls == "implicit" else plain
        self.buffer = b""
        self.greeting = self.line()
        if tls == "starttls":
            self.command("STARTTLS")
            self.socket = context.wrap_socket(plain, server_hostname=script["host"])
            self.buffer = b""
        self.connect_seconds = time.perf_counter() - start
        start = time.perf_counter()
        if script.get("sasl_ir"):
            secret = base64.b64encode(b"\0%s\0%s" % (script["user"].encode(), script["password"].encode())).decode()
            self.login = self.command("AUTHENTICATE PLAIN " + secret)
        else:
            self.login = self.command('LOGIN "%s" "%s"' % (script["user"], script["password"]))
        self.login_seconds = time.perf_counter() - start

    def fill(self):
        more = self.socket.recv(1 << 16)
        if not more:
            raise Broken("the server closed the connection")
        self.octets += len(more)
        self.buffer += more

    def line(self):
        at = self.buffer.find(b"\r\n")
        while at < 0:
            seen = max(0, len(self.buffer) - 1)
            self.fill()
            at = self.buffer.find(b"\r\n", seen)
        line, self.buffer = self.buffer[:at + 2], self.buffer[at + 2:]
        return line

    def exactly(self, count):
        parts, have = [self.buffer], len(self.buffer)
        while have < count:
            more = self.socket.recv(min(1 << 18, count - have + 4096))
            if not more:
                raise Broken("the server closed the connection inside a literal")
            self.octets += len(more)
            parts.append(more)
            have += len(more)
        whole = b"".join(parts)
        self.buffer = whole[count:]
        self.literal_at = time.perf_counter()
        return whole[:count]

    def response(self):
        """One response: octets and literals by turns."""
        parts = []
        while True:
            line = self.line()
            parts.append(line)
            size = LITERAL.search(line)
            if not size:
                return parts
            parts.append(self.exactly(int(size.group(1))))

    def send(self, text):
        self.number += 1
        tag = b"c%d" % self.number
        self.socket.sendall(tag + b" " + text.encode() + b"\r\n")
        return tag

    def until(self, tag):
        while True:
            parts = self.response()
            first = parts[0]
            if first.startswith(tag + b" "):
                return first[len(tag) + 1:].decode("latin1").strip()
            if first.startswith(b"* BYE") and self.mailbox != "?logout":
                raise Broken(first.decode("latin1").strip())
            self.note(parts)

    def command(self, text):
        self.enter(text)
        return self.until(self.send(text))

    def enter(self, text):
        word = text.split()
        if word and word[0].upper() in ("SELECT", "EXAMINE") and len(word) > 1:
            self.mailbox, self.uid_of = word[1].strip('"'), {}
        if word and word[0].upper() == "LOGOUT":
            self.mailbox = "?logout"

    def note(self, parts):
        head = re.match(rb"\* (\d+) (\w+)", parts[0])
        if not head:
            return
        number, kind = int(head.group(1)), head.group(2).upper()
        if kind == b"EXPUNGE":
            self.uid_of = {(n - 1 if n > number else n): u for n, u in self.uid_of.items() if n != number}
        if kind != b"FETCH":
            return
        items = dict(Reader(parts, head.end()).items())
        if "UID" in items:
            self.uid_of[number] = items["UID"][1].decode()
        uid = self.uid_of.get(number, "msn%d" % number)
        if "FLAGS" in items:
            flags = items["FLAGS"][1].decode("latin1").strip("()").split()
            self.flags["%s/%s" % (self.mailbox, uid)] = sorted(f for f in flags if f != "\\Recent")
        for label, (_, value) in items.items():
            if label in VOLATILE:
                continue
            key, value = "%s/%s/%s" % (self.mailbox, uid, label), hashlib.sha256(value).hexdigest()
            if self.digest.setdefault(key, value) != value:
                self.conflicts.append(key)


class Reader:
    """Splits a FETCH response into labels and values. A string's value is its content, quoted or literal; any other
    value is its octets, with each string inside replaced by length and content."""

    def __init__(self, parts, at):
        self.parts, self.part, self.at = parts, 0, at

    def peek(self):
        return self.parts[self.part][self.at:self.at + 1]

    def skip(self):
        while self.peek() == b" ":
            self.at += 1

    def items(self):
        self.skip()
        if self.peek() != b"(":
            raise Broken("FETCH without a list: %r" % self.parts[0][:80])
        self.at += 1
        while True:
            self.skip()
            if self.peek() == b")":
                return
            label = self.label()
            self.skip()
            yield label, self.value()

    def label(self):
        text, start = self.parts[self.part], self.at
        depth = 0
        while self.at < len(text):
            octet = text[self.at:self.at + 1]
            depth += (octet == b"[") - (octet == b"]")
            if octet in (b" ", b"\r") and depth == 0:
                break
            self.at += 1
        if self.at == start or self.at >= len(text):
            raise Broken("no item label in %r" % text[start:start + 80])
        return re.sub(r"\s+", " ", text[start:self.at].decode("latin1")).upper()

    def value(self):
        octet = self.peek()
        if octet == b'"':
            return "string", self.quoted()
        if octet == b"{":
            return "string", self.literal()
        if octet == b"(":
            return "list", self.list()
        start = self.at
        text = self.parts[self.part]
        while self.at < len(text) and text[self.at:self.at + 1] not in (b" ", b")", b"\r"):
            self.at += 1
        if self.at == start:
            raise Broken("no value in %r" % text[start:start + 80])
        return "atom", text[start:self.at]

    def quoted(self):
        text, out = self.parts[self.part], bytearray()
        self.at += 1
        while True:
            octet = text[self.at:self.at + 1]
            if octet == b"\\":
                self.at += 1
                octet = text[self.at:self.at + 1]
            elif octet == b'"':
                self.at += 1
                return bytes(out)
            if not octet:
                raise Broken("an open quoted string: %r" % text[-80:])
            out += octet
            self.at += 1

    def literal(self):
        content = self.parts[self.part + 1]
        self.part, self.at = self.part + 2, 0
        return content

    def list(self):
        """Iterative: a server may nest as deep as it likes."""
        out, depth = bytearray(), 0
        while True:
            octet = self.peek()
            if octet == b"(":
                depth += 1
            elif octet == b")":
                depth -= 1
            elif octet in (b'"', b"{"):
                content = self.quoted() if octet == b'"' else self.literal()
                out += b"s%d:" % len(content) + content
                continue
            elif octet in (b"\r", b""):
                raise Broken("an open list: %r" % self.parts[self.part][-80:])
            out += octet
            self.at += 1
            if depth == 0:
                return bytes(out)


def perform(session, act):
    if act.get("wait_s"):
        time.sleep(act["wait_s"])
    before, session.literal_at, statuses = session.octets, None, []
    start = time.perf_counter()
    if act.get("pipeline"):
        tags = []
        for text in act["commands"]:
            session.enter(text)
            tags.append(session.send(text))
        statuses = [session.until(tag) for tag in tags]
    else:
        statuses = [session.command(text) for text in act["commands"]]
    end = time.perf_counter()
    literal = None if session.literal_at is None else session.literal_at - start
    return {"name": act["name"], "seconds": end - start, "literal_seconds": literal,
            "octets": session.octets - before, "status": statuses}


def main():
    script = json.load(sys.stdin)
    session = Session(script)
    acts = [perform(session, act) for act in script["acts"]]
    json.dump({"acts": acts, "digest": session.digest, "flags": session.flags, "conflicts": session.conflicts,
               "greeting": session.greeting.decode("latin1").strip(), "login": session.login,
               "connect_seconds": session.connect_seconds, "login_seconds": session.login_seconds}, sys.stdout)


if __name__ == "__main__":
    main()
