//! Data items of a message: the key under which a value is stored, and what kind of thing it is.

use std::fmt;

/// The normalised name of a FETCH data item without partial: `ENVELOPE`, `BODY[]`, `BODY[1.2.MIME]`,
/// `BODY[HEADER.FIELDS (CC FROM)]` (upper case, names sorted, each once). `RFC822`, `RFC822.HEADER` and
/// `RFC822.TEXT` are `BODY[]`, `BODY[HEADER]` and `BODY[TEXT]`: the same octets under another label.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ItemKey(Box<str>);

/// What kind of value a key names; decides who may answer for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ItemClass {
    /// `UID`: known from the view.
    Uid,
    /// `FLAGS`, `MODSEQ`, and everything we do not know: only the origin answers.
    Dynamic,
    /// `INTERNALDATE`, `RFC822.SIZE`, `ENVELOPE`, `BODY`, `BODYSTRUCTURE`, `EMAILID`, `SAVEDATE`,
    /// `X-GM-MSGID`: never changes for a UID, kept as the origin's own octets.
    Fixed,
    /// `BODY[…]`: octets of the message.
    Section(SectionClass),
}

/// Kinds of section, each trusted apart per server when cut from a whole message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SectionClass {
    /// `BODY[]`.
    Whole,
    /// `BODY[HEADER]`.
    Header,
    /// `BODY[HEADER.FIELDS …]` and `.NOT`.
    HeaderFields,
    /// `BODY[TEXT]`.
    Text,
    /// `BODY[1.2]`: a part's content.
    Part,
    /// `BODY[1.2.MIME]`: a part's header.
    Mime,
    /// `BODY[1.HEADER]`, `BODY[1.TEXT]`, `BODY[1.HEADER.FIELDS …]`: inside an embedded message; servers
    /// differ, so it is never cut, only kept as the origin said it.
    Embedded,
}

impl ItemKey {
    /// The key of a whole message.
    #[must_use]
    pub fn whole() -> Self {
        Self("BODY[]".into())
    }

    /// Takes a text that is already normalised (this crate's parsers make them; the store gives them back).
    #[must_use]
    pub fn from_normalised(text: &str) -> Self {
        Self(text.into())
    }

    /// The key of a section from the text between the brackets, in any case; `None` if it is not RFC 9051's
    /// `section-spec`.
    #[must_use]
    pub fn section(spec: &[u8]) -> Option<Self> {
        if spec.len() > SPEC_OCTETS_MAX {
            return None;
        }
        let spec = std::str::from_utf8(spec).ok()?.to_ascii_uppercase();
        let (path, text) = split_path(&spec)?;
        let fields = |text: &str, word: &str| -> Option<String> {
            let names = text.strip_prefix(word)?.strip_prefix(" (")?.strip_suffix(')')?;
            let mut names: Vec<&str> = names.split(' ').map(unquoted).collect::<Option<_>>()?;
            names.sort_unstable();
            names.dedup();
            Some(format!("{word} ({})", names.join(" ")))
        };
        let text = match text {
            "" => String::new(),
            "HEADER" | "TEXT" => text.to_owned(),
            "MIME" if !path.is_empty() => text.to_owned(),
            _ => fields(text, "HEADER.FIELDS.NOT").or_else(|| fields(text, "HEADER.FIELDS"))?,
        };
        let dot = if path.is_empty() || text.is_empty() { "" } else { "." };
        Some(Self(format!("BODY[{path}{dot}{text}]").into()))
    }

    /// The key of an item that is not a section, by its name in any case.
    #[must_use]
    pub fn named(name: &[u8]) -> Option<Self> {
        let name = std::str::from_utf8(name).ok()?.to_ascii_uppercase();
        Some(match name.as_str() {
            "RFC822" => Self::whole(),
            "RFC822.HEADER" => Self("BODY[HEADER]".into()),
            "RFC822.TEXT" => Self("BODY[TEXT]".into()),
            _ => Self(name.into()),
        })
    }

    /// The normalised text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The text between the brackets, for a section.
    #[must_use]
    pub fn section_spec(&self) -> Option<&str> {
        self.0.strip_prefix("BODY[")?.strip_suffix(']')
    }

    /// What kind of value it names.
    #[must_use]
    pub fn class(&self) -> ItemClass {
        let Some(spec) = self.section_spec() else {
            return match &*self.0 {
                "UID" => ItemClass::Uid,
                "INTERNALDATE" | "RFC822.SIZE" | "ENVELOPE" | "BODY" | "BODYSTRUCTURE" | "EMAILID"
                | "SAVEDATE" | "X-GM-MSGID" => ItemClass::Fixed,
                _ => ItemClass::Dynamic,
            };
        };
        let Some((path, text)) = split_path(spec) else { return ItemClass::Dynamic };
        ItemClass::Section(match (path.is_empty(), text) {
            (true, "") => SectionClass::Whole,
            (true, "HEADER") => SectionClass::Header,
            (true, "TEXT") => SectionClass::Text,
            (true, _) => SectionClass::HeaderFields,
            (false, "") => SectionClass::Part,
            (false, "MIME") => SectionClass::Mime,
            (false, _) => SectionClass::Embedded,
        })
    }
}

impl fmt::Display for ItemKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ItemKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Splits `1.2.MIME` into its path of part numbers and the rest; `None` for a number that is none.
fn split_path(spec: &str) -> Option<(&str, &str)> {
    let mut end = 0;
    for piece in spec.split('.') {
        if !piece.starts_with(|c: char| c.is_ascii_digit()) {
            break;
        }
        let number: u32 = piece.parse().ok()?;
        if number == 0 || piece.starts_with('0') {
            return None;
        }
        end += piece.len() + 1;
    }
    let path = spec.get(..end.saturating_sub(1))?;
    let text = spec.get(end.min(spec.len())..)?;
    if spec.ends_with('.') { None } else { Some((path, text)) }
}

/// A header field name, freed of the quotes that some clients put around it.
fn unquoted(name: &str) -> Option<&str> {
    let name = name.strip_prefix('"').and_then(|n| n.strip_suffix('"')).unwrap_or(name);
    let fine = !name.is_empty() && name.bytes().all(|o| o.is_ascii_graphic() && !b":\"\\(){]".contains(&o));
    fine.then_some(name)
}

/// Longer section texts are legal and pointless; they go to the origin.
const SPEC_OCTETS_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    fn section(spec: &str) -> Option<String> {
        ItemKey::section(spec.as_bytes()).map(|k| k.to_string())
    }

    #[test]
    fn the_same_item_has_one_key() {
        assert_eq!(
            section("header.fields (From \"to\" FROM cc)").as_deref(),
            Some("BODY[HEADER.FIELDS (CC FROM TO)]")
        );
        assert_eq!(section("1.2.mime").as_deref(), Some("BODY[1.2.MIME]"));
        assert_eq!(section("").as_deref(), Some("BODY[]"));
        assert_eq!(ItemKey::named(b"rfc822.text").map(|k| k.to_string()).as_deref(), Some("BODY[TEXT]"));
    }

    #[test]
    fn what_is_no_section_has_no_key() {
        for odd in
            ["0", "1..2", "1.", "MIME", "01", "4294967296", "HEADER.FIELDS ()", "HEADER.FIELDS (A:)", "X"]
        {
            assert_eq!(section(odd), None, "{odd}");
        }
    }

    #[test]
    fn classes() {
        let class = |spec: &str| ItemKey::section(spec.as_bytes()).unwrap().class();
        assert_eq!(class(""), ItemClass::Section(SectionClass::Whole));
        assert_eq!(class("HEADER.FIELDS.NOT (A)"), ItemClass::Section(SectionClass::HeaderFields));
        assert_eq!(class("2.1"), ItemClass::Section(SectionClass::Part));
        assert_eq!(class("2.MIME"), ItemClass::Section(SectionClass::Mime));
        assert_eq!(class("2.HEADER"), ItemClass::Section(SectionClass::Embedded));
        assert_eq!(ItemKey::named(b"flags").unwrap().class(), ItemClass::Dynamic);
        assert_eq!(ItemKey::named(b"preview").unwrap().class(), ItemClass::Dynamic);
        assert_eq!(ItemKey::named(b"Envelope").unwrap().class(), ItemClass::Fixed);
    }
}
