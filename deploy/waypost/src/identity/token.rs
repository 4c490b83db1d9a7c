//! A node to be, in one line: `waypost1.` and base64url of JSON.

use super::authority::Identity;
use crate::exit::{Exit, Failure};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use discovery_core::id::NodeId;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// The key of the user hashes.
pub(crate) type UserKeyOctets = Zeroizing<[u8; 32]>;

/// What a node needs to be one of the organisation's.
pub(crate) struct Token {
    pub(crate) id: NodeId,
    pub(crate) identity: Identity,
    /// The authority's certificate in PEM.
    pub(crate) authority: String,
    pub(crate) user_key: Option<UserKeyOctets>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    id: String,
    certificate: String,
    key: String,
    authority: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    user_key: Option<[u8; 32]>,
}

const MARK: &str = "waypost1.";

impl Token {
    pub(crate) fn line(&self) -> String {
        let written = Written {
            id: self.id.to_string(),
            certificate: self.identity.certificate.clone(),
            key: (*self.identity.key).clone(),
            authority: self.authority.clone(),
            user_key: self.user_key.as_deref().copied(),
        };
        let json = Zeroizing::new(serde_json::to_vec(&written).unwrap_or_default());
        format!("{MARK}{}", BASE64_URL_SAFE_NO_PAD.encode(&*json))
    }

    pub(crate) fn parse(text: &str) -> Result<Self, Failure> {
        let wrong = |why: &str| Failure::say(Exit::Usage, format_args!("this is no token: {why}"));
        let text = text.trim();
        let Some(body) = text.strip_prefix(MARK) else {
            return Err(wrong("it does not begin with waypost1.; `waypost token new --id NAME` makes one"));
        };
        let json = BASE64_URL_SAFE_NO_PAD
            .decode(body)
            .map(Zeroizing::new)
            .map_err(|_| wrong("it is cut short, or a character of it has changed"))?;
        let written: Written =
            serde_json::from_slice(&json).map_err(|_| wrong("it is cut short, or of another version"))?;
        let id = NodeId::new(&written.id).map_err(|bad| wrong(&bad.to_string()))?;
        let identity = Identity { certificate: written.certificate, key: Zeroizing::new(written.key) };
        let token =
            Self { id, identity, authority: written.authority, user_key: written.user_key.map(Into::into) };
        token.check().map_err(|why| wrong(&why))?;
        Ok(token)
    }

    /// Whether the parts belong together.
    fn check(&self) -> Result<(), String> {
        use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
        let pem = |_| "a part of it is not PEM".to_owned();
        let leaf = CertificateDer::from_pem_slice(self.identity.certificate.as_bytes()).map_err(pem)?;
        CertificateDer::from_pem_slice(self.authority.as_bytes()).map_err(pem)?;
        let key = PrivateKeyDer::from_pem_slice(self.identity.key.as_bytes()).map_err(pem)?;
        let keys = epc::tls::provider().key_provider;
        let key = keys.load_private_key(key).map_err(|error| error.to_string())?;
        let both = rustls::sign::CertifiedKey::new(vec![leaf], key);
        both.keys_match().map_err(|_| "its key is not that of its certificate".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::authority::NodeAuthority, *};

    fn token() -> Token {
        let dir = tempfile::tempdir().unwrap();
        NodeAuthority::create(dir.path()).unwrap();
        let authority = NodeAuthority::load(dir.path()).unwrap();
        let id = NodeId::new("branch-7").unwrap();
        let identity = authority.issue(&id).unwrap();
        Token { id, identity, authority: authority.certificate().to_owned(), user_key: Some([3; 32].into()) }
    }

    #[test]
    fn it_reads_back() {
        let token = token();
        let read = Token::parse(&format!("{}\n", token.line())).unwrap();
        assert_eq!(read.id, token.id);
        assert_eq!(read.identity.certificate, token.identity.certificate);
        assert_eq!(read.user_key, token.user_key);
    }

    #[test]
    fn what_is_wrong_with_one_is_said() {
        let line = token().line();
        let mut other = token();
        other.identity.key = token().identity.key;
        let mixed = other.line();
        for (text, why) in [
            ("", "does not begin"),
            ("hello", "does not begin"),
            (&line[..line.len() - 9], "cut short"),
            (&line.replacen("waypost1.", "waypost1.!", 1), "cut short"),
            (&mixed, "not that of its certificate"),
        ] {
            let failure = Token::parse(text).err().unwrap().to_string();
            assert!(failure.contains(why), "{failure}");
            assert!(!failure.contains("BEGIN"), "{failure}");
        }
    }
}
