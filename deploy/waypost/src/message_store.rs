//! The message store as configured, opened; and the key that seals it.

use crate::{
    config::{Config, Seal},
    exit::{Exit, Failure},
};
use epc::store::{Store, StoreConfig, StoreOpenError};
use std::{env, fs, io::Read, path::PathBuf};
use zeroize::Zeroizing;

const KEY_OCTETS: usize = 32;

/// Opens the store, or makes it.
pub(crate) fn open(config: &Config) -> Result<Store, Failure> {
    let opened = Store::open(StoreConfig {
        path: config.store.path.clone(),
        size_max: config.store.size_max.0,
        seal_key: seal_key(&config.store.seal)?,
        shadow: config.servers.iter().map(|server| (server.name.clone(), server.shadow)).collect(),
    });
    opened.map_err(|error| {
        let exit = if let StoreOpenError::Io { source, .. } = &error {
            Exit::of(source, Exit::Unavailable)
        } else {
            Exit::Unavailable
        };
        Failure::new(exit, error)
    })
}

fn seal_key(seal: &Seal) -> Result<Option<Zeroizing<[u8; KEY_OCTETS]>>, Failure> {
    let path = match seal {
        Seal::Off => return Ok(None),
        Seal::File(path) => path.clone(),
        Seal::Credential(name) => env::var_os("CREDENTIALS_DIRECTORY")
            .map(|directory| PathBuf::from(directory).join(name))
            .ok_or_else(|| {
                Failure::say(
                    Exit::Unavailable,
                    format!("the credential {name} is not here; systemd gives it to a service with LoadCredential="),
                )
            })?,
    };
    let shown = format!("the seal key {}", path.display());
    // One octet more than it may have, so that a longer file is not taken for a key.
    let mut octets = Zeroizing::new(Vec::with_capacity(KEY_OCTETS + 1));
    let read =
        fs::File::open(&path).and_then(|file| file.take(KEY_OCTETS as u64 + 1).read_to_end(&mut octets));
    read.map_err(|error| Failure::io(shown.clone(), error))?;
    let key: &[u8; KEY_OCTETS] = octets
        .as_slice()
        .try_into()
        .map_err(|_| Failure::say(Exit::Usage, format!("{shown} has not {KEY_OCTETS} octets")))?;
    Ok(Some(Zeroizing::new(*key)))
}
