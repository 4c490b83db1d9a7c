//! The lab's own check: real servers, real clients, an emulated WAN. Needs root and the packages of
//! `deploy/lib/packages.sh`; without root each test says so and ends.
#![allow(clippy::print_stderr, reason = "a skipped test says why")]

use std::fs;
use std::io::Write as _;

use lab::clients::{self, Account, Act};
use lab::power_cut::CuttableDisk;
use lab::{Authority, Corpus, Cyrus, Dovecot, Lab, LabSpec, Place, sys};

fn root() -> bool {
    if !sys::is_root() {
        eprintln!("skipped: needs root");
    }
    sys::is_root()
}

fn account(corpus: &Corpus, authority: &Authority, host: &str, user: &str) -> Account {
    let user = corpus.user(user).expect("a user of the corpus");
    Account {
        host: host.to_owned(),
        port: 993,
        ca: authority.certificate(),
        user: user.name.clone(),
        password: user.password.clone(),
    }
}

#[test]
fn all_clients_see_the_same_mail_over_the_wan_and_on_the_lan() {
    if !root() {
        return;
    }
    let corpus = Corpus::sized(11, 20, 200_000);
    let lab = Lab::build(LabSpec::new(40.0, 50.0).with_second_branch()).expect("a lab");
    let authority = Authority::create(&lab.directory().join("ca")).expect("an authority");
    let _dovecot = Dovecot::start(&lab, &authority, &corpus).expect("Dovecot");
    let alice = account(&corpus, &authority, lab::net::DOVECOT, "alice");
    let acts = [
        Act::new("select", &["SELECT INBOX"]),
        Act::new("noop", &["NOOP"]),
        Act::new(
            "all",
            &["UID FETCH 1:* (FLAGS ENVELOPE BODYSTRUCTURE INTERNALDATE RFC822.SIZE BODY.PEEK[])"],
        ),
    ];
    let wan = lab.wan().expect("a WAN");
    wan.reset().expect("an emulator");
    let far = clients::scripted(&lab, Place::Client, &alice, &acts).expect("a session over the WAN");
    let counters = wan.read().expect("an emulator");
    let second =
        clients::scripted(&lab, Place::Client2, &alice, &acts).expect("a session in the second branch");
    let near = clients::scripted(&lab, Place::Lan, &alice, &acts).expect("a session on the LAN");
    assert_eq!(far.digest, near.digest);
    assert_eq!(far.digest, second.digest);
    assert_eq!(far.flags, near.flags);
    assert!(far.conflicts.is_empty() && far.digest.len() == 20 * 5, "{} values", far.digest.len());
    let noop = far.acts[1].seconds;
    assert!((0.040..0.060).contains(&noop), "a NOOP over 40 ms took {noop} s");
    // TLS 1.3, login, three acts.
    assert!((5..=8).contains(&counters.round_trips()), "{} round trips", counters.round_trips());
    assert!(counters.down.in_octets > far.acts[2].octets);

    let curl = |place| clients::curl(&lab, place, &alice, "INBOX", 3).expect("curl").1;
    assert_eq!(curl(Place::Client), far.digest["INBOX/3/BODY[]"]);
    let sync = |place, name: &str| {
        clients::mbsync(&lab, place, &alice, &lab.directory().join(name)).expect("mbsync")
    };
    let (far, near) = (sync(Place::Client, "far"), sync(Place::Lan, "near"));
    assert_eq!((far.messages, &far.digest), (20, &near.digest));
    let open =
        |place, name: &str| clients::mutt(&lab, place, &alice, 2, &lab.directory().join(name)).expect("mutt");
    let (far, near) = (open(Place::Client, "mutt-far"), open(Place::Lan, "mutt-near"));
    assert_eq!(far.1, near.1);
    assert!(far.0 > near.0 + 0.1, "mutt took {} s over the WAN and {} s on the LAN", far.0, near.0);
}

#[test]
fn cyrus_serves_the_mail_that_it_was_given() {
    if !root() {
        return;
    }
    let corpus = Corpus::sized(12, 20, 100_000);
    let lab = Lab::build(LabSpec::new(10.0, 100.0)).expect("a lab");
    let authority = Authority::create(&lab.directory().join("ca")).expect("an authority");
    let cyrus = Cyrus::start(&lab, &authority, &corpus).expect("Cyrus");
    let alice = account(&corpus, &authority, lab::net::CYRUS, "alice");
    let acts = [Act::new("all", &["SELECT INBOX", "UID FETCH 1:* (FLAGS ENVELOPE BODY.PEEK[])"])];
    let report = clients::scripted(&lab, Place::Client, &alice, &acts).expect("a session");
    assert_eq!(report.digest.len(), 20 * 2);
    assert!(report.conflicts.is_empty());
    assert!(cyrus.refused().len() < 10, "{:?}", cyrus.refused());
}

#[test]
fn two_labs_stand_side_by_side_and_leave_nothing() {
    if !root() {
        return;
    }
    let (one, two) =
        (Lab::build(LabSpec::new(1.0, 0.0)).expect("one"), Lab::build(LabSpec::new(1.0, 0.0)).expect("two"));
    let names = [one.namespace(Place::Client), two.namespace(Place::Client)];
    let directories = [one.directory().to_owned(), two.directory().to_owned()];
    assert_ne!(names[0], names[1]);
    let sleeper = one.command(Place::Server, "sleep").arg("600").spawn();
    drop((one, two));
    for name in &names {
        assert!(!fs::exists(format!("/run/netns/{name}")).unwrap_or(true), "{name} is left");
        assert!(!fs::exists(format!("/etc/netns/{name}")).unwrap_or(true), "the names of {name} are left");
    }
    assert!(directories.iter().all(|directory| !directory.exists()));
    assert!(!sleeper.and_then(|mut sleeper| sleeper.wait()).expect("a sleeper").success());
}

#[test]
fn a_power_cut_takes_what_was_not_synced() {
    if !root() {
        return;
    }
    let directory = std::env::temp_dir().join(format!("waypost-cut-{}", std::process::id()));
    let disk = CuttableDisk::create(&directory, 32).expect("a disk");
    let write = |name: &str, sync: bool| {
        let mut file = fs::File::create(disk.mountpoint().join(name)).expect("a file");
        file.write_all(b"kept?").expect("room");
        if sync {
            file.sync_all().expect("a sync");
            fs::File::open(disk.mountpoint()).and_then(|directory| directory.sync_all()).expect("a sync");
        }
    };
    write("synced", true);
    write("unsynced", false);
    disk.cut().expect("a cut");
    assert!(fs::File::create(disk.mountpoint().join("later")).is_err());
    disk.restore().expect("power");
    assert_eq!(fs::read(disk.mountpoint().join("synced")).expect("synced data"), b"kept?");
    assert!(!fs::read(disk.mountpoint().join("unsynced")).is_ok_and(|data| data == b"kept?"));
    drop(disk);
    fs::remove_dir(&directory).expect("nothing else in it");
}
