#!/usr/bin/env python3
"""Reads a user's mailboxes with Python's own imaplib, as a script of an office would.

  imaplib_reader.py < JSON {host, port, ca, user, password, mailboxes: [..]}

Writes {"messages": n, "digest": sha256 over everything it was given}.
"""
import hashlib, imaplib, json, ssl, sys

ITEMS = ["(FLAGS INTERNALDATE RFC822.SIZE)", "(ENVELOPE)", "(BODYSTRUCTURE)", "(BODY.PEEK[])",
         "(BODY.PEEK[HEADER])", "(BODY.PEEK[TEXT])", "(BODY.PEEK[1])", "(BODY.PEEK[1.MIME])", "(BODY.PEEK[2])",
         "(BODY.PEEK[]<100.1000>)", "(BODY.PEEK[HEADER.FIELDS (From Subject Date)])",
         "(BODY.PEEK[HEADER.FIELDS.NOT (From Subject Date)])"]


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
            whole.update(repr(data).encode())
        # Some are read as a person reads them, which sets \Seen.
        for uid in uids[-6:]:
            status, data = session.uid("FETCH", uid, "(BODY[])")
            assert status == "OK", (uid, status, data)
    session.close()
    session.logout()
    json.dump({"messages": count, "digest": whole.hexdigest()}, sys.stdout)


main()
