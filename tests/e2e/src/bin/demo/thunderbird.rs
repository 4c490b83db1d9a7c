//! Thunderbird in the demo's arms.

use lab::clients;

use crate::arm::{Arm, Ground, READER};
use crate::clients::Program;
use crate::mail::Mail;

/// A running Thunderbird.
pub(crate) struct Thunderbird(clients::Thunderbird);

impl Program for Thunderbird {
    const NAME: &'static str = "Thunderbird";
    const PLACE: usize = 1;
    const STARTS_SLOWLY: bool = true;

    fn start(ground: &Ground, arm: Arm, port: u16, mailbox: &str) -> anyhow::Result<Self> {
        let profile = ground.lab.directory().join(format!("thunderbird-{}", arm.name()));
        let account = ground.account_at(READER, port)?;
        let mut program =
            clients::Thunderbird::start(&ground.lab, arm.place(), &account, &profile, control_port(arm))?;
        program.show(&account.password, mailbox, expected(ground, mailbox)?)?;
        Ok(Self(program))
    }

    fn shown(&mut self) -> anyhow::Result<Vec<(u32, String)>> {
        self.0.list()
    }

    fn open(&mut self, mail: &Mail) -> anyhow::Result<()> {
        self.0.open(mail.uid)
    }

    fn end(self) {
        drop(self.0);
    }
}

fn expected(ground: &Ground, mailbox: &str) -> anyhow::Result<usize> {
    Ok(ground.corpus.messages(ground.user(READER)?, mailbox).count())
}

/// Two of them share the branch's namespace.
const fn control_port(arm: Arm) -> u16 {
    match arm {
        Arm::Direct => 2_828,
        Arm::Lan => 2_829,
        Arm::Waypost => 2_830,
        Arm::Pair => 2_831,
    }
}
