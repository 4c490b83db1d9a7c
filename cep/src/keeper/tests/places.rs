//! Orders and news in other mailboxes than the one at home.

use super::{orders::*, *};

fn other(uid_validity: u32) -> MailboxKey {
    let home = facts(b"").mailbox.unwrap().key;
    let name = Bytes::from_static(b"R&D \"old\"");
    MailboxKey { name, uid_validity: UidValidity::new(uid_validity).unwrap(), ..home }
}

fn opened(capabilities: &[u8], script: &Script) -> Dialogue {
    let mut d = ordered(facts(capabilities), Box::new(script.clone()));
    d.says("t1 EXAMINE INBOX\nt2 UID SEARCH RETURN (ALL) ALL\n");
    d.server(OPENED);
    d
}

/// The answers to EXAMINE and SEARCH with these tags.
fn opening(examine: u32, validity: u32, uids: &str) -> String {
    let search = examine + 1;
    format!(
        "* OK [UIDVALIDITY {validity}] v\n<t{examine} OK x\n* ESEARCH (TAG \"<t{search}\") UID{uids}\n<t{search} OK x\n"
    )
}

#[test]
fn an_order_elsewhere_is_followed_there_and_then_it_goes_home() {
    let script = Script::default();
    script.order_in(other(9), [whole(5)]);
    let mut d = opened(b"IDLE ESEARCH", &script);
    d.says("t3 EXAMINE \"R&D \\\"old\\\"\"\nt4 UID SEARCH RETURN (ALL) ALL\n");
    d.server(&opening(3, 9, " ALL 5:6")).says("t5 UID FETCH 5 (UID BODY.PEEK[])\n");
    d.server("* 1 FETCH (UID 5 BODY[] {5}\nhello)\n<t5 OK x\n");
    d.says("t6 EXAMINE INBOX\nt7 UID SEARCH RETURN (ALL) ALL\n");
    d.server(&opening(6, 7, " ALL 1:3")).says("t8 IDLE\n");
    let heard = ["listed 3", "listed 3", "listed 2", "fetched 5 5", "held 5 Whole", "listed 3"];
    assert_eq!(script.heard(), heard);
}

#[test]
fn an_order_in_another_generation_is_not_followed() {
    let script = Script::default();
    script.order_in(other(9), [whole(5)]);
    let mut d = opened(b"IDLE ESEARCH", &script);
    d.said.clear();
    d.server(&opening(3, 10, " ALL 5")).says("t5 EXAMINE INBOX\nt6 UID SEARCH RETURN (ALL) ALL\n");
}

#[test]
fn a_mailbox_that_may_not_be_opened_is_empty_and_ends_nothing() {
    let script = Script::default();
    script.order_in(other(9), [whole(5)]);
    let mut d = opened(b"IDLE ESEARCH", &script);
    d.said.clear();
    d.server("<t3 NO x\n<t4 BAD x\n").says("t5 EXAMINE INBOX\nt6 UID SEARCH RETURN (ALL) ALL\n");
    d.server(&opening(5, 7, " ALL 1:3")).says("t7 IDLE\n");
    assert_eq!(
        (d.ended, script.heard()),
        (None, ["listed 3", "listed 3", "listed 0", "listed 3"].map(str::to_owned).into())
    );
}

#[test]
fn mailboxes_of_others_are_left_alone() {
    let script = Script::default();
    let account = AccountKey { user: UserKey { version: 1, hash: [2; 16] }, ..other(9).account };
    script.order_in(MailboxKey { account, ..other(9) }, [whole(5)]);
    script.order_in(MailboxKey { name: "a\r\nb".into(), ..other(9) }, [whole(5)]);
    opened(b"IDLE ESEARCH", &script).says("t3 IDLE\n");
}

#[test]
fn what_notify_tells_is_looked_at() {
    let script = Script::default();
    let mut d = opened(b"IDLE ESEARCH NOTIFY", &script);
    let notify =
        "NOTIFY SET (SELECTED (MessageNew (UID) MessageExpunge)) (personal (MessageNew MessageExpunge))";
    d.says(&format!("t3 {notify}\nt4 IDLE\n"));
    d.server("<t3 OK x\n+ idling\n* STATUS \"R&D \\\"old\\\"\" (MESSAGES 2 UIDNEXT 3 UIDVALIDITY 9)\n")
        .says("DONE\n");
    d.server("<t4 OK x\n").says("t5 EXAMINE INBOX\nt6 UID SEARCH RETURN (ALL) ALL\n");
    d.server(&opening(5, 7, " ALL 1:3"));
    d.says("t7 EXAMINE \"R&D \\\"old\\\"\"\nt8 UID SEARCH RETURN (ALL) ALL\n");
    script.order_in(other(9), [whole(2)]);
    d.server(&opening(7, 9, " ALL 1:2")).says("t9 UID FETCH 2 (UID BODY.PEEK[])\n");
    // News at home while it is away, and it is said once only that news are wanted.
    d.server("* STATUS inbox (MESSAGES 4)\n* 2 FETCH (UID 2 BODY[] {5}\nhello)\n<t9 OK x\n");
    d.says("t10 EXAMINE INBOX\nt11 UID SEARCH RETURN (ALL) ALL\n");
    d.server(&opening(10, 7, " ALL 1:4")).says("t12 IDLE\n");
}

#[test]
fn nobody_is_away_from_home_for_long() {
    let script = Script::default();
    script.order_in(other(9), [whole(5), whole(6)]);
    let mut d = opened(b"IDLE ESEARCH", &script);
    d.server(&opening(3, 9, " ALL 5:6"));
    d.said.clear();
    d.now.mono += Duration::from_secs(30);
    d.server("* 1 FETCH (UID 5 BODY[] {5}\nhello)\n<t5 OK x\n");
    d.says("t6 EXAMINE INBOX\nt7 UID SEARCH RETURN (ALL) ALL\n");
    d.server(&opening(6, 7, " ALL 1:3"));
    d.says("t8 EXAMINE \"R&D \\\"old\\\"\"\nt9 UID SEARCH RETURN (ALL) ALL\n");
}

#[test]
fn without_notify_the_others_are_visited_now_and_then() {
    let script = Script::default();
    script.order_in(other(9), [whole(5)]);
    let mut d = opened(b"IDLE ESEARCH", &script);
    d.server(&opening(3, 9, " ALL 5")).server("* 1 FETCH (UID 5 BODY[] {5}\nhello)\n<t5 OK x\n");
    d.server(&opening(6, 7, " ALL 1:3"));
    d.said.clear();
    assert_eq!(d.keeper.poll_timeout(), Some(d.now.mono + TOUR));
    d.after(TOUR).says("DONE\n").server("<t8 OK x\n").server(&opening(9, 7, " ALL 1:3"));
    assert!(
        d.said.ends_with("t11 EXAMINE \"R&D \\\"old\\\"\"\r\nt12 UID SEARCH RETURN (ALL) ALL\r\n"),
        "{}",
        d.said
    );
}
