#!/usr/bin/env python3
"""Reads a user's mailboxes with Python's own imaplib, as a script of an office would.

  imaplib_reader.py < JSON {host, port, ca, user, password, mailboxes: [..]}

Writes {"messages": n, "digest": sha256 over the contents of all literals, in the order of their messages}. What else it is
given, the recorder tells apart.
"""
import hashlib, imaplib, json, re, ssl, sys

ITEMS = ["(FLAGS INTERNALDATE RFC822.SIZE)", "(ENVELOPE)", "(BODYSTRUCTURE)", "(BODY.PEEK[])",
         "(BODY.PEEK[HEADER])", "(BODY.PEEK[TEXT])", "(BODY.PEEK[1])", "(BODY.PEEK[1.MIME])", "(BODY.PEEK[2])",
         "(BODY.PEEK[]<100.1000>)", "(BODY.PEEK[HEADER.FIELDS (From Subject Date)])",
         "(BODY.PEEK[HEADER.FIELDS.NOT (From Subject Date)])"]


def literals(data):
    """(message number, content) of each literal; a response of several is several parts, the first with the number."""
    found, number = [], 0
    for part in data:
        if isinstance(part, tuple):
            start = re.match(rb"(\d+) \(", part[0])
            number = int(start.group(1)) if start else number
            # An empty string may also come quoted, and then imaplib shows it as text.
            if part[1]:
                found.append((number, part[1]))
    return sorted(found, key=lambda pair: pair[0])


def main():
    script, whole, count = json.load(sys.stdin), hashlib.sha256(), 0
    context = ssl.create_default_context(cafile=script["ca"])
    session = imaplib.IMAP4_SSL(script["host"], script["port"], ssl_context=context)
    session.login(script["user"], script["password"])
    for mailbox in script["mailboxes"]:
        session.select(mailbox)
        _, (uids,) = session.uid("SEARCH", "ALL")
        uids = uids.decode().split()
        count += len(uids)
        # As a list view asks, and as an opened message does.
        for uid, items in [("1:*", items) for items in ITEMS] + [(uid, "(FLAGS BODY.PEEK[])") for uid in uids[:6]]:
            status, data = session.uid("FETCH", uid, items)
            assert status == "OK", (uid, items, status, data)
            whole.update(repr(literals(data)).encode())
        # Some are read as a person reads them, which sets \Seen.
        for uid in uids[-6:]:
            status, data = session.uid("FETCH", uid, "(BODY[])")
            assert status == "OK", (uid, status, data)
    session.close()
    session.logout()
    json.dump({"messages": count, "digest": whole.hexdigest()}, sys.stdout)


main()
