//! Who a node is towards other nodes: a certificate of the organisation's own node authority, never of the interception
//! authority, which is for what mail programs see.
//!
//! ```text
//! ca init --node            token new --id branch-7              join FILE
//! node-ca/ca.pem, ca.key ──► one line: certificate, key, ──────► <state>/node/cert.pem, key.pem, ca.pem
//!  (one data-centre machine)  authority, key of the user hashes   and the user key, on the new node
//! ```
//! The token is the node: whoever reads it can be that node until its certificate is revoked by name.

pub(crate) mod authority;
pub(crate) mod token;

use crate::{
    config::Surroundings,
    durable::{self, Audience},
    exit::{Exit, Failure},
    say, trust,
};
use authority::NodeAuthority;
use discovery_core::id::NodeId;
use std::{
    fs,
    io::{self, Read},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};
use token::Token;

/// `waypost ca init --node`.
pub(crate) fn init(dir: Option<PathBuf>) -> Result<Exit, Failure> {
    let dir = dir.unwrap_or_else(default_authority);
    let sha256 = NodeAuthority::create(&dir)?;
    say::text(format_args!(
        "Made the authority of this organisation's nodes in {}\n\n\
         SHA-256:  {}\n\
         Secret:   {} (keep this directory on one machine, and a copy of it offline)\n\n\
         Next, for each node:  waypost token new --id NAME > NAME.token\n\
         and on that node:     waypost join NAME.token\n",
        dir.display(),
        trust::colons(&sha256),
        dir.join(authority::KEY).display(),
    ));
    Ok(Exit::Fine)
}

/// `waypost token new`.
pub(crate) fn new_token(id: &str, dir: Option<PathBuf>, user_key: Option<&Path>) -> Result<Exit, Failure> {
    let id = NodeId::new(id).map_err(|bad| Failure::say(Exit::Usage, format_args!("--id {id}: {bad}")))?;
    let dir = dir.unwrap_or_else(default_authority);
    let authority = NodeAuthority::load(&dir)?;
    let usual = Surroundings::of_process().state_dir.join("user.key");
    let user_key = match user_key {
        Some(path) => Some(read_user_key(path)?),
        None if usual.exists() => Some(read_user_key(&usual)?),
        None => None,
    };
    if user_key.is_none() {
        say::note(format_args!(
            "There is no {} here, so the node will make a key of its own for the hashes of users, and reports will not \
             know that a user of one office is a user of another. --user-key FILE names one.",
            usual.display()
        ));
    }
    let token = Token {
        identity: authority.issue(&id)?,
        authority: authority.certificate().to_owned(),
        id,
        user_key,
    };
    say::line(token.line());
    Ok(Exit::Fine)
}

/// `waypost join`: the token in the file `from`, or on standard input.
pub(crate) fn join(from: &Path, state_dir: Option<PathBuf>, replace: bool) -> Result<Exit, Failure> {
    let token = Token::parse(&read_token(from)?)?;
    let state_dir = state_dir.unwrap_or_else(|| Surroundings::of_process().state_dir);
    let place = Place::within(&state_dir);
    if place.cert().exists() && !replace {
        return Err(Failure::say(
            Exit::Usage,
            format_args!(
                "this node has an identity already, in {}; --replace puts the new one in its place",
                place.0.display()
            ),
        ));
    }
    take_user_key(&state_dir, &token)?;
    place.write(&token)?;
    say::text(format_args!(
        "This node is {} now; its identity is in {}\n\
         SHA-256 of the authority, to compare with `waypost ca init --node`: {}\n\
         [node] of the configuration:  id = \"{}\"\n\
         Delete the token: who has it can be this node.\n",
        token.id,
        place.0.display(),
        trust::colons(&authority::fingerprint(&token.authority)?),
        token.id,
    ));
    Ok(Exit::Fine)
}

/// Where a node keeps who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place(pub(crate) PathBuf);

impl Place {
    pub(crate) fn within(state_dir: &Path) -> Self {
        Self(state_dir.join("node"))
    }

    pub(crate) fn cert(&self) -> PathBuf {
        self.0.join("cert.pem")
    }

    pub(crate) fn key(&self) -> PathBuf {
        self.0.join("key.pem")
    }

    pub(crate) fn authority(&self) -> PathBuf {
        self.0.join("ca.pem")
    }

    /// The certificate last: without it nothing counts as written.
    fn write(&self, token: &Token) -> Result<(), Failure> {
        make_private(&self.0)?;
        put(&self.key(), token.identity.key.as_bytes(), Audience::Owner)?;
        put(&self.authority(), token.authority.as_bytes(), Audience::All)?;
        put(&self.cert(), token.identity.certificate.as_bytes(), Audience::All)
    }
}

/// A different key would make the store cold and is never put in the place of one that is in use.
fn take_user_key(state_dir: &Path, token: &Token) -> Result<(), Failure> {
    let Some(key) = &token.user_key else { return Ok(()) };
    let path = state_dir.join("user.key");
    match fs::read(&path) {
        Ok(there) if *there == key[..] => Ok(()),
        Ok(_) => Err(Failure::say(
            Exit::Usage,
            format_args!(
                "{} is another key than the organisation's: what this node has stored is keyed by it; move it away, \
                 and the store with it, or make the token with --user-key {0}",
                path.display()
            ),
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make_private(state_dir)?;
            put(&path, &key[..], Audience::Owner)
        }
        Err(error) => Err(Failure::io(path.display().to_string(), error)),
    }
}

fn read_user_key(path: &Path) -> Result<token::UserKeyOctets, Failure> {
    let octets = fs::read(path).map_err(|error| Failure::io(path.display().to_string(), error))?;
    let octets: [u8; 32] = octets.try_into().map_err(|_| {
        Failure::say(Exit::Usage, format_args!("{} is not a file of 32 octets", path.display()))
    })?;
    Ok(octets.into())
}

fn read_token(from: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let read = if from == Path::new("-") {
        io::stdin().take(TOKEN_OCTETS_MAX).read_to_string(&mut text)
    } else {
        fs::File::open(from).and_then(|file| file.take(TOKEN_OCTETS_MAX).read_to_string(&mut text))
    };
    read.map_err(|error| {
        if error.kind() == io::ErrorKind::InvalidData {
            Failure::say(Exit::Usage, format_args!("this is no token: {} is not text", from.display()))
        } else {
            Failure::io(format!("the token in {}", from.display()), error)
        }
    })?;
    Ok(text)
}

/// One has some two thousand.
const TOKEN_OCTETS_MAX: u64 = 64 << 10;

pub(crate) fn make_private(dir: &Path) -> Result<(), Failure> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|error| Failure::io(dir.display().to_string(), error))
}

pub(crate) fn put(path: &Path, octets: &[u8], audience: Audience) -> Result<(), Failure> {
    durable::write(path, octets, audience).map_err(|error| Failure::io(path.display().to_string(), error))
}

fn default_authority() -> PathBuf {
    Surroundings::of_process().state_dir.join("node-ca")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn organisation() -> (tempfile::TempDir, NodeAuthority) {
        let dir = tempfile::tempdir().unwrap();
        NodeAuthority::create(dir.path()).unwrap();
        let authority = NodeAuthority::load(dir.path()).unwrap();
        (dir, authority)
    }

    fn token(user_key: Option<[u8; 32]>) -> Token {
        let (_dir, authority) = organisation();
        let id = NodeId::new("branch-7").unwrap();
        let identity = authority.issue(&id).unwrap();
        Token {
            id,
            identity,
            authority: authority.certificate().to_owned(),
            user_key: user_key.map(Into::into),
        }
    }

    #[test]
    fn a_token_makes_a_node_once() {
        let at = tempfile::tempdir().unwrap();
        let (file, state) = (at.path().join("t"), at.path().join("state"));
        fs::write(&file, token(Some([7; 32])).line()).unwrap();
        join(&file, Some(state.clone()), false).unwrap();
        let place = Place::within(&state);
        assert!(fs::read_to_string(place.cert()).unwrap().contains("BEGIN CERTIFICATE"));
        assert_eq!(fs::read(state.join("user.key")).unwrap(), [7; 32]);
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(fs::metadata(place.key()).unwrap().permissions().mode() & 0o777, 0o600);
        let twice = join(&file, Some(state.clone()), false).err().unwrap();
        assert!(twice.to_string().contains("--replace"), "{twice}");
        join(&file, Some(state), true).unwrap();
    }

    #[test]
    fn what_is_not_text_is_no_token() {
        let at = tempfile::tempdir().unwrap();
        let file = at.path().join("t");
        fs::write(&file, [0xff, 0xfe, 0x00]).unwrap();
        let failure = join(&file, Some(at.path().join("state")), false).err().unwrap();
        assert_eq!(failure.exit, Exit::Usage);
        assert!(failure.to_string().contains("is not text"), "{failure}");
    }

    #[test]
    fn a_key_in_use_is_never_replaced() {
        let at = tempfile::tempdir().unwrap();
        fs::write(at.path().join("user.key"), [1; 32]).unwrap();
        fs::write(at.path().join("t"), token(Some([7; 32])).line()).unwrap();
        let failure = join(&at.path().join("t"), Some(at.path().to_owned()), false).err().unwrap();
        assert!(failure.to_string().contains("another key"), "{failure}");
        assert_eq!(fs::read(at.path().join("user.key")).unwrap(), [1; 32]);
        assert!(!Place::within(at.path()).cert().exists());
    }
}
